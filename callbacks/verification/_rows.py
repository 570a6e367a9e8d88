"""Rows of what layers are given and put out, as fingerprints that two runs of one step are compared by.

A row is what belongs to one index of a tensor's first dimension, or to one item of a list that holds an item a sample.
A fingerprint is the sum of a row's bits as integers, each times an odd factor of its place: equal rows have equal ones,
and a GB of activations fits into kB. Without factors two numbers and their negatives would often have the same.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ._tensors import odd_factors

__all__ = ["Tree", "changed", "halves", "leaves", "prints", "resized", "sizes", "with_negatives"]

# Fingerprints `(N,)` of a tensor's rows, nested as the value was: a list holds what lists held, a dict all else.
Tree = Tensor | list["Tree"] | dict[Any, "Tree"]

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def halves(size: int, split: int = 0) -> Tensor:
    """`(size,)`, True for about a half of the rows, in one of two ways.

    In the first way those whose number has an odd count of ones in binary, so neighbours, and rows a power of two
    apart, stand on both sides. In the second a fixed random half of these and of the others, so that of the pairs that
    the first leaves together about every other one is parted; of up to 4 rows, all are.

    >>> halves(4).tolist()
    [False, True, True, False]
    """
    odd = torch.tensor([row.bit_count() % 2 == 1 for row in range(size)], dtype=torch.bool)
    if not split:
        return odd
    # By this seed no flip, roll or exclusive-or of up to 65 rows keeps each row in its half both times.
    mixed = torch.randperm(size, generator=torch.Generator().manual_seed(size + 1))
    rows = mixed[odd[mixed].sort(stable=True).indices]  # the even ones, then the odd ones, each mixed
    return torch.zeros(size, dtype=torch.bool).index_fill_(0, rows[::2], True)


def negative(images: Tensor) -> Tensor:
    """The same with bright for dark, in the tensor's own range; a constant is raised by one.

    >>> negative(torch.tensor([0.0, 0.2, 1.0])).tolist()
    [1.0, 0.800000011920929, 0.0]
    """
    low, high = images.min(), images.max()
    return images + 1 if low == high else (low + high - images).to(images.dtype)


def with_negatives(
    value: Any, half: Callable[[int], Tensor], others: Callable[[Tensor], bool] = lambda tensor: False
) -> tuple[Any, int]:
    """What a layer is given with some samples as their negatives, and how many samples there are; 0 if nobody knows.

    Samples are tensors of four dimensions or more, else lists of tensors `(C, H, W)`, else tensors `(N, D)`; the first
    of them counts, and those of the same kind and number are exchanged. Integers stay, but for uint8 images.

    Args:
        value: Any containers of tensors.
        half: Which samples of N.
        others: Whether a tensor is none of samples.
    """
    for kind in (_is_batch, _is_list, _is_table):
        fits = partial(_fits, kind, others)
        if count := next(_counts(value, fits), 0):
            return _exchanged(value, fits, half(count), count), count
    return value, 0


def _fits(kind: Callable[[Any], bool], others: Callable[[Tensor], bool], value: Any) -> bool:
    return kind(value) and not (isinstance(value, Tensor) and others(value))


def _is_batch(value: Any) -> bool:
    return isinstance(value, Tensor) and _turns(value) and value.ndim > 3 and len(value) > 1


def _is_list(value: Any) -> bool:
    fits = isinstance(value, (list, tuple)) and len(value) > 1
    return fits and all(isinstance(it, Tensor) and it.ndim == 3 and _turns(it) for it in value)


def _is_table(value: Any) -> bool:
    return isinstance(value, Tensor) and _turns(value) and value.ndim == 2 and len(value) > 1


def _turns(value: Tensor) -> bool:
    return value.is_floating_point() or (value.dtype == torch.uint8 and value.ndim > 2)


def _counts(value: Any, fits: Callable[[Any], bool]) -> Iterator[int]:
    if fits(value):
        yield len(value)
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    for part in parts:
        yield from _counts(part, fits)


def _exchanged(value: Any, fits: Callable[[Any], bool], half: Tensor, count: int) -> Any:
    if fits(value) and len(value) == count:
        if isinstance(value, Tensor):
            return torch.where(half.to(value.device).view(-1, *[1] * (value.ndim - 1)), negative(value), value)
        parts = [negative(image) if own else image for image, own in zip(value, half.tolist(), strict=True)]
    elif isinstance(value, dict):
        return {key: _exchanged(part, fits, half, count) for key, part in value.items()}
    elif isinstance(value, (list, tuple)):
        parts = [_exchanged(part, fits, half, count) for part in value]
    else:
        return value
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def resized(batch: Any) -> Any:
    """A batch without its last sample, or of two samples with the last one twice; None if nobody knows the samples."""
    _, count = with_negatives(batch, halves)
    return _picked(batch, count, [*range(count - 1)] if count > 2 else [0, 1, 1], outermost=True) if count else None


def _picked(value: Any, count: int, rows: list[int], outermost: bool = False) -> Any:
    if isinstance(value, Tensor):
        return value[rows] if value.ndim and len(value) == count else value
    if isinstance(value, dict):
        return {key: _picked(part, count, rows) for key, part in value.items()}
    if not isinstance(value, (list, tuple)):
        return value
    parts = [_picked(part, count, rows) for part in value]
    if not outermost and len(value) == count:
        alike = all(isinstance(it, dict) for it in value)
        if alike or not any(it.ndim and len(it) == count for it in leaves(value)):
            parts = [value[row] for row in rows]
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def prints(value: Any) -> Tree:
    """Fingerprints of all tensors in a value, also in the attributes of objects that are no containers."""
    if isinstance(value, Tensor):
        bits = torch.view_as_real(value.detach()) if value.is_complex() else value.detach()
        bits = bits.view(_INTEGERS[bits.element_size()])
        if bits.ndim < 2:
            return bits.reshape(-1).long()
        rows = bits.flatten(1)
        factors = odd_factors(rows.shape[1], rows.device)
        # Products are of 64 bits; a few rows at a time, for they take more room than the tensor.
        return torch.cat([(it * factors).sum(1) for it in rows.split(max(1, 2**22 // max(1, rows.shape[1])))])
    if isinstance(value, Mapping):
        return {key: prints(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [prints(part) for part in value]
    return {key: prints(part) for key, part in getattr(value, "__dict__", {}).items() if isinstance(part, Tensor)}


def leaves(tree: Any) -> list[Tensor]:
    """All tensors in nested containers, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, (list, tuple)) else ()
    return [leaf for part in parts for leaf in leaves(part)]


def sizes(tree: Tree) -> set[int]:
    """The numbers of rows in it, of lists their lengths too."""
    own = {len(tree)} if isinstance(tree, (Tensor, list)) else set()
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return own.union(*map(sizes, parts))


def rows_of(tree: Tree, count: int) -> tuple[list[Tensor], list[Tensor]]:
    """Fingerprints of what has `count` rows, and of all else.

    A list of `count` items of a kind has an item a row, unless a tensor in it has that many rows itself.
    """
    if isinstance(tree, Tensor):
        return ([tree], []) if len(tree) == count else ([], [tree])
    parts = list(tree.values()) if isinstance(tree, dict) else tree
    if isinstance(tree, list) and len(tree) == count and _are_items(tree, count):
        return [torch.stack([sum((leaf.sum() for leaf in leaves(it)), torch.tensor(0)) for it in tree])], []
    found = [rows_of(part, count) for part in parts]
    return [it for rows, _ in found for it in rows], [it for _, others in found for it in others]


def _are_items(trees: list[Tree], count: int) -> bool:
    """Boxes of each image, or a dict for each; neither two results of which one is a list, nor numbers."""
    found = leaves(trees)
    alike = all(isinstance(it, Tensor) for it in trees) or all(
        isinstance(it, dict) and isinstance(trees[0], dict) and it.keys() == trees[0].keys() for it in trees
    )
    return alike and any(len(it) != 1 for it in found) and all(len(it) != count for it in found)


def changed(before: Tree, after: Tree, count: int, alone: bool = False) -> Tensor | None:
    """`(count,)`, which rows are others; None if shapes are, or, with `alone`, if something without such rows is."""
    (rows, others), (rows_after, others_after) = rows_of(before, count), rows_of(after, count)
    if [it.shape for it in rows] != [it.shape for it in rows_after] or (alone and not _equal(others, others_after)):
        return None
    found = torch.zeros(count, dtype=torch.bool)
    for a, b in zip(rows, rows_after, strict=True):
        found |= (a != b).cpu()
    return found


def _equal(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(map(torch.equal, left, right))

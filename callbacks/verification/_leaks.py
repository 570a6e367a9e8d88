"""Which layers mix the samples of a batch, by running a step with some of them exchanged."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..hooks._frozen import part_name
from ._watch import STEP, Call, Key, Watch, leaking_rows

__all__ = ["Leak", "Leaks", "batch_leaks"]

_HALVES = ((0, False), (0, True), (1, False), (1, True))  # by which split, and whether the others are meant


@dataclass(frozen=True)
class Leak:
    """A layer that mixes samples.

    Args:
        path: Of the layer; "" is the module's own forward, `training_step` what the step computes between layers.
        kind: Its class.
        rows: Numbers of the rows that changed though their samples had not.
        share: By how much, as a share of the largest value that the layer puts out.
    """

    path: str
    kind: str
    rows: tuple[int, ...]
    share: float


@dataclass(frozen=True)
class Leaks:
    """What was found in a step.

    Args:
        leaks: Layers that mix samples, the first one in the order of calls first.
        batch_norms: Paths of batch norms that measure the batch while training.
        judged: Calls of layers that could be judged.
    """

    leaks: tuple[Leak, ...]
    batch_norms: tuple[str, ...]
    judged: int


def batch_leaks(
    run: Callable[[], Any],
    module: nn.Module,
    labels: Sequence[Tensor] = (),
    tolerance: float = 1e-4,
    agree: Callable[[bool], bool] = bool,
) -> Leaks:
    """Look for layers whose row i depends on what they are given in row j, by running a step five times.

    In two of the runs half of the samples, and then the other half, enter the outermost layers as their negatives, in
    two more the halves of another split, for a layer may exchange rows that stand in the same half. A row that changes
    though it came in unchanged has seen another sample. Batch norms rest meanwhile, or they would hide what comes after
    them. Of nested layers the innermost is named. What is found is confirmed in six more runs, two of which are equal,
    for a layer may compute differently each time.

    Args:
        run: Computes the step, each time from the same start, random streams included.
        module: Whose layers are called.
        labels: Of the batch, so that the loss's rows are known to be samples.
        tolerance: Changes of at most this share of a layer's largest output are rounding.
        agree: Of several processes, whether any has found something.
    """
    with Watch(module, labels) as first:
        run()
    judged, suspects = set[Key](), dict[Key, Tensor]()
    for split, others in _HALVES:
        with Watch(module, labels, first.calls, split, others) as watch:
            run()
        for key in first.calls:
            rows = leaking_rows(key, first.calls, watch.calls)
            if rows is not None:
                judged.add(key)
                suspects[key] = suspects.get(key, torch.zeros_like(rows)) | rows
    found = _innermost(first.calls, {key: rows for key, rows in suspects.items() if rows.any()})
    leaks: list[Leak] = []
    if agree(bool(found)):
        leaks = list(_confirmed(run, module, labels, found, tolerance))
    return Leaks(tuple(leaks), tuple(first.batch_norms), len(judged))


def _innermost(calls: dict[Key, Call], suspects: dict[Key, Tensor]) -> dict[Key, Tensor]:
    """Those in which no other one lies; the step itself only if there is no other."""

    def inside(key: Key) -> Iterator[Key]:
        for it in calls[key].inside:
            if it in calls:
                yield it
                yield from inside(it)

    layers = {key: rows for key, rows in suspects.items() if key[0] != STEP}
    innermost = {key: rows for key, rows in layers.items() if not any(it in layers for it in inside(key))}
    return innermost or suspects


def _confirmed(
    run: Callable[[], Any], module: nn.Module, labels: Sequence[Tensor], found: dict[Key, Tensor], tolerance: float
) -> Iterator[Leak]:
    """Those whose rows move further than rounding and than in two equal runs."""
    watches: list[Watch] = []
    for exchanged in (None, None, *_HALVES):
        reference = watches[0].calls if exchanged else None
        with Watch(module, labels, reference, *(exchanged or (0, False)), found) as watch:
            run()
        watches.append(watch)
    kinds = {part_name(path): type(part).__name__ for path, part in module.named_modules()}
    told = set[str]()
    for key, rows in found.items():
        same, again, *halved = (watch.calls[key].kept if key in watch.calls else () for watch in watches)
        largest = max((float(it.abs().max()) for it in same if it.numel()), default=0.0)
        noise = _furthest(same, again, rows)
        masks = [leaking_rows(key, watches[0].calls, watch.calls) for watch in watches[2:]]
        moved = [_furthest(same, it, mask) for it, mask in zip(halved, masks, strict=True) if mask is not None]
        share = max(moved, default=0.0) / (largest or 1.0)
        if share > tolerance and max(moved) > 10 * noise and key[0] not in told:
            told.add(key[0])
            yield Leak(key[0], kinds.get(key[0], ""), tuple(rows.nonzero().flatten().tolist()), share)


def _furthest(left: Sequence[Tensor], right: Sequence[Tensor], rows: Tensor) -> float:
    """The largest difference in the rows of two lists of tensors; of tensors that have no such rows, in all of them."""
    if not rows.any() or [it.shape for it in left] != [it.shape for it in right]:
        return 0.0
    pairs = list(zip(left, right, strict=True))
    if own := [pair for pair in pairs if pair[0].ndim and len(pair[0]) == len(rows)]:
        pairs = [(a[rows.to(a.device)], b[rows.to(b.device)]) for a, b in own]
    return max((float((a.double() - b.double()).abs().max()) for a, b in pairs if a.numel()), default=0.0)

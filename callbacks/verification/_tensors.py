"""What several checks ask of tensors: whether any bit of them changed, and which of them lie on each other."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

__all__ = ["fingerprints", "overlapping", "some"]

COLUMNS = 1024
WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element


@torch.no_grad()
def fingerprints(tensors: Iterable[Tensor]) -> Tensor:
    """A whole number for each tensor that tells its bits apart, int64 `(N,)`; nothing is waited for.

    The bits of elements are whole numbers, summed in 1,024 columns, each of which has a factor of its own. Every change
    of one element is noticed, and of several all but those that cancel out in a column.
    """
    # Odd, so that no bit of a sum is lost; 2**64 over the golden ratio spreads them.
    factors = (torch.arange(COLUMNS) * -7046029254386353131) | 1
    found = []
    for it in tensors:
        factors = factors.to(it.device)
        found.append(_fingerprint(it.detach(), factors))
    return torch.stack([it.to(found[0].device) for it in found]) if found else torch.zeros(0, dtype=torch.int64)


def _fingerprint(tensor: Tensor, factors: Tensor) -> Tensor:
    flat = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).contiguous().view(-1)
    bits = flat.view(WHOLE[flat.element_size()])
    full = len(bits) // COLUMNS * COLUMNS
    rest = bits[full:].long()
    found = torch.dot(rest, factors[: len(rest)])
    if full:
        found += torch.dot(bits[:full].view(-1, COLUMNS).sum(0, dtype=torch.int64), factors)
    return found


def overlapping(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Names of a left and a right tensor that share memory, for each left one the first such right one.

    Views of different places of one storage, as of flattened parameters, share nothing.
    """
    places: dict[int, list[tuple[int, int, str]]] = {}
    for name, it in right.items():
        if it.numel():
            places.setdefault(it.untyped_storage().data_ptr(), []).append((*_range(it), name))
    found = []
    for name, it in left.items():
        first, last = _range(it) if it.numel() else (0, -1)
        for begin, end, other in places.get(it.untyped_storage().data_ptr(), ()):
            if first <= end and begin <= last:
                found.append((name, other))
                break
    return found


def _range(tensor: Tensor) -> tuple[int, int]:
    """First and last byte in its storage."""
    size, first = tensor.element_size(), tensor.storage_offset() * tensor.element_size()
    reach = sum((length - 1) * step for length, step in zip(tensor.shape, tensor.stride(), strict=True))
    return int(first), int(first + (reach + 1) * size - 1)


def some(names: list[str]) -> str:
    """The first names of a list, and how many there are.

    >>> some(["a", "b"]), some(["a", "b", "c", "d"])
    ('`a` and `b`', '`a`, `b` and 2 more')
    """
    shown = [f"`{it}`" for it in names[: 3 if len(names) == 3 else 2]]
    if len(names) > len(shown):
        return f"{', '.join(shown)} and {len(names) - len(shown)} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)

"""What several checks ask of tensors: whether any bit of them changed, and which of them lie on each other."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

__all__ = ["fingerprints", "odd_factors", "overlapping", "some"]

COLUMNS, ROWS = 1024, 4096
WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element


def odd_factors(count: int, device: torch.device | None = None) -> Tensor:
    """Whole numbers `(count,)` that look random: odd, so that no bit of what they multiply is lost."""
    # 2**64 over the golden ratio spreads them; the second product breaks up what is linear in the first.
    spread = (torch.arange(1, count + 1, device=device) * -7046029254386353131) >> 17
    return (spread * spread) ^ (spread * -4658895280553007687) | 1


@torch.no_grad()
def fingerprints(tensors: Iterable[Tensor]) -> Tensor:
    """A whole number for each tensor that tells its bits apart, int64 `(N,)`; nothing is waited for.

    The bits of elements are whole numbers, each times an odd factor of its column, one of 1,024, and then of its row of
    columns, so every change of one element is noticed. Several, such as rows that are exchanged, go unseen only where
    their products cancel out by chance.
    """
    found = []
    for it in tensors:
        found.append(_fingerprint(it.detach(), odd_factors(COLUMNS, it.device)))
    return torch.stack([it.to(found[0].device) for it in found]) if found else torch.zeros(0, dtype=torch.int64)


def _fingerprint(tensor: Tensor, factors: Tensor) -> Tensor:
    flat = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).contiguous().view(-1)
    bits = flat.view(WHOLE[flat.element_size()])
    full = len(bits) // COLUMNS * COLUMNS
    rest = bits[full:].long()
    found = torch.dot(rest, factors[: len(rest)])
    if full:
        rows = bits[:full].view(-1, COLUMNS)
        own = odd_factors(COLUMNS + len(rows), flat.device)[COLUMNS:, None]
        # Some at a time, for products take more room than the tensor.
        for part, weights in zip(rows.split(ROWS), own.split(ROWS), strict=True):
            found += torch.dot((part * weights).sum(0), factors)
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

"""Rows that grow at their ends, in few arrays, and travel between processes as one."""

from collections.abc import Mapping
from typing import Self

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Packed"]


class Packed:
    """Named arrays to which rows are appended; each keeps spare room, so that many small batches cost no copies.

    Args:
        columns: Of each array its numpy type and how many columns it has.
    """

    def __init__(self, columns: Mapping[str, tuple[str, int]]) -> None:
        self._columns = dict(columns)
        self._room = {name: np.empty((0, width), kind) for name, (kind, width) in columns.items()}
        self._used = dict.fromkeys(columns, 0)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._room[name][: self._used[name]]

    def append(self, name: str, rows: np.ndarray) -> None:
        """Add rows, whose type is changed where it differs, below those of an array."""
        end = self._used[name] + len(rows)
        if end > len(self._room[name]):
            wider = np.empty((max(2 * end, 256), self._columns[name][1]), self._columns[name][0])
            wider[: self._used[name]] = self[name]
            self._room[name] = wider
        self._room[name][self._used[name] : end] = rows
        self._used[name] = end

    def gathered(self, device: torch.device) -> list[Self] | None:
        """Those of every process in the order of the ranks on rank 0, None on the others; all must call it.

        Two collective calls, however many rows a process has: the sizes, then everything as bytes of equal length.

        Args:
            device: Where the processes' backend takes tensors from.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return [self]
        used = torch.tensor([self._used[name] for name in self._columns], device=device)
        sizes = [torch.empty_like(used) for _ in range(dist.get_world_size())]
        dist.all_gather(sizes, used)
        lengths = [self._bytes(size) for size in sizes]
        padded = torch.zeros(max(lengths), dtype=torch.uint8, device=device)
        own = b"".join(self[name].tobytes() for name in self._columns)
        padded[: len(own)] = torch.frombuffer(bytearray(own), dtype=torch.uint8) if own else padded[:0]
        if dist.get_rank():
            dist.gather(padded)
            return None
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.gather(padded, parts)
        return [self._read(part.cpu().numpy(), size.tolist()) for part, size in zip(parts, sizes, strict=True)]

    def _bytes(self, rows: Tensor) -> int:
        widths = (width * np.dtype(kind).itemsize for kind, width in self._columns.values())
        return max(1, sum(count * width for count, width in zip(rows.tolist(), widths, strict=True)))

    def _read(self, whole: np.ndarray, rows: list[int]) -> Self:
        packed, start = type(self)(self._columns), 0
        for count, (name, (kind, width)) in zip(rows, self._columns.items(), strict=True):
            end = start + count * width * np.dtype(kind).itemsize
            packed.append(name, np.frombuffer(whole[start:end].tobytes(), kind).reshape(count, width))
            start = end
        return packed

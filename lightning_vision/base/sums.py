"""Weighted means of logged scalars, summed where the scalars are computed.

`self.log` costs more per step than a small network's forward pass. Here a step costs one stack and one add per call;
the host sees the numbers on log steps and at the end of an epoch, when all ranks are summed in one all-reduce.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

__all__ = ["Sums"]


class Sums:
    """Means of named scalars, each weighted by the size of its batch.

    Sums are float64 where the device has it, so an epoch's mean does not depend on the number of steps. On several
    ranks every rank must `add` the same names in the same order.

    Example:
        >>> sums = Sums()
        >>> _ = sums.add({"loss": torch.tensor(1.0)}, weight=3)
        >>> _ = sums.add({"loss": torch.tensor(5.0)}, weight=1)
        >>> sums.means()
        {'loss': tensor(2.)}
    """

    def __init__(self) -> None:
        self._totals: dict[tuple[str, ...], Tensor] = {}
        self._weights: dict[tuple[str, ...], float] = {}

    def __bool__(self) -> bool:
        return bool(self._totals)

    def add(self, values: Mapping[str, Tensor], weight: float) -> Tensor:
        """Count `values`, scalars on one device, with `weight`; nothing is copied to the host.

        Returns:
            The values, stacked and detached, `(len(values),)`.
        """
        names = tuple(values)
        stacked = torch.stack([value.detach() for value in values.values()])
        total = self._totals.get(names)
        if total is None:
            total = torch.zeros(len(names), dtype=_widest(stacked.device), device=stacked.device)
        elif total.device != stacked.device:
            total = total.to(device=stacked.device, dtype=_widest(stacked.device))
        self._totals[names] = total.add_(stacked, alpha=weight)
        self._weights[names] = self._weights.get(names, 0.0) + weight
        return stacked

    def means(self, reduce: Callable[[Tensor], Tensor] = lambda sums: sums) -> dict[str, Tensor]:
        """Mean of each name as a float32 scalar in host memory.

        Args:
            reduce: Sums a vector over all ranks.
        """
        if not self:
            return {}
        sums = reduce(self.vector()).cpu().split([len(names) + 1 for names in self._totals])
        means = {
            name: (total / part[-1]).float()
            for names, part in zip(self._totals, sums, strict=True)
            for name, total in zip(names, part[:-1], strict=True)
        }
        return means

    def reset(self) -> None:
        """Forget everything counted so far."""
        self._totals.clear()
        self._weights.clear()

    def vector(self) -> Tensor:
        """This rank's sums as one vector: for each `add`ed set of names the totals, then the weight."""
        parts = [torch.cat([total, total.new_tensor([self._weights[names]])]) for names, total in self._totals.items()]
        return torch.cat(parts)

    def names(self) -> list[list[str]]:
        """The names that `vector` holds, set by set."""
        return [list(names) for names in self._totals]

    def load(self, names: list[list[str]], vector: Tensor) -> None:
        """Continue from `names()` and `vector()` of an earlier run."""
        self.reset()
        for group, part in zip(names, vector.split([len(group) + 1 for group in names]), strict=True):
            self._totals[tuple(group)] = part[:-1].clone()
            self._weights[tuple(group)] = float(part[-1])


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64

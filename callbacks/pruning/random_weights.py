"""Pruning at random: the control that any criterion has to beat."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ._criterion import Criterion, Moment
from ._scores import keep_largest

__all__ = ["RandomWeights"]


class RandomWeights(Criterion):
    """Keeps weights drawn at random, each with the same chance."""

    def keep(self, moment: Moment, count: int) -> Mapping[str, Tensor]:
        # Float64, in which ties among millions are rare; drawn on the CPU, where `random` lives.
        draws = {
            name: torch.rand(weight.shape, generator=moment.random, dtype=torch.float64).to(weight.device)
            for name, weight in moment.weights.items()
        }
        return keep_largest(draws, moment.kept, count)

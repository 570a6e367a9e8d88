"""A network that follows another one."""

from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["MomentumCopy"]


class MomentumCopy(nn.Module):
    """A copy of a network that gets no gradient and moves towards it: copy <- tau copy + (1 - tau) network.

    It shares no storage with the network. In training its batch norms normalise by the batch, as those of the network
    do, and leave their running statistics to `follow`, which moves them like weights; counts are copied.

    Args:
        network: What is copied, and what `follow` is to be given.

    Reference: He et al. 2020, arXiv:1911.05722, equation 2; Grill et al. 2020, arXiv:2006.07733, equation 1
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.copy = deepcopy(network).requires_grad_(False)
        for module in self.copy.modules():
            if isinstance(module, _BatchNorm):
                module.momentum = 0.0

    @torch.no_grad()
    def forward(self, *args: Any) -> Any:
        return self.copy(*args)

    @torch.no_grad()
    def follow(self, network: nn.Module, tau: float) -> None:
        """Move once.

        Args:
            network: The network that was copied.
            tau: Share of the copy that stays, 0..1; 1 leaves it where it is.
        """
        pairs = [*zip(self.copy.parameters(), network.parameters(), strict=True)]
        for own, other in zip(self.copy.buffers(), network.buffers(), strict=True):
            if own.is_floating_point():
                pairs.append((own, other))  # type: ignore[arg-type]  # a buffer moves as a parameter does
            else:
                own.copy_(other)
        if pairs:
            torch._foreach_lerp_([own for own, _ in pairs], [other for _, other in pairs], 1 - tau)

"""What all processes have: a loss of a network, of which every random number is given."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor

__all__ = ["Process"]

# Maps x `(B, C, H, W)`, a time `(B,)` and labels, or None, to a tensor of x's shape.
Network = Callable[[Tensor, Tensor, Any], Tensor]


class Process(ABC):
    """A way from images to noise, and what a network is to say of images on it.

    See also:
        `FlowMatching`, `Diffusion`, `EDM`, `NCSN`.
    """

    @abstractmethod
    def loss(self, network: Network, data: Tensor, noise: Tensor, uniform: Tensor, label: Any = None) -> Tensor:
        """What is minimised, the mean over images and their numbers.

        Args:
            network: Maps x `(B, C, H, W)`, a time `(B,)` of about unit size and the labels to an answer of x's shape.
            data: Images `(B, C, H, W)`.
            noise: Standard normal, of their shape.
            uniform: Draws of the times, `(B,)` in [0, 1).
            label: Handed to the network.
        """

"""What all processes have: a loss of a network, of which every random number is given, and ways back to images."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .edit import Edit

__all__ = ["Process"]

# Maps x `(B, C, H, W)`, a time `(B,)` and labels, or None, to a tensor of x's shape.
Network = Callable[[Tensor, Tensor, Any], Tensor]


class Process(ABC):
    """A way from images to noise, what a network is to say of images on it, and how its answers lead back.

    See also:
        `FlowMatching`, `Diffusion`, `EDM`, `NCSN`, `ConstantAcceleration`, `Consistency`.
    """

    # Samplers by name, the first one is taken where none is named.
    samplers: ClassVar[Mapping[str, Callable[..., Tensor]]]
    # Whether the loss changes with the training's progress.
    scheduled: ClassVar[bool] = False
    # Of several networks those whose answers guidance leaves as they are.
    unguided: ClassVar[tuple[str, ...]] = ()

    def build(self, make: Callable[..., nn.Module], channels: int) -> nn.Module:
        """The network, or a `nn.ModuleDict` of several, that the process asks.

        Args:
            make: Makes a network; takes `in_channels` and `out_channels` where they are not the images'.
            channels: C of the images.
        """
        return make()

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

    def terms(
        self, network: Any, data: Tensor, noise: Tensor, uniform: Tensor, label: Any = None, progress: float = 0.0
    ) -> dict[str, Tensor]:
        """The loss by its terms; `loss` is the sum that is minimised.

        Args:
            network: What `build` made, or functions in its place.
            data: Images `(B, C, H, W)`.
            noise: Standard normal, of their shape.
            uniform: Draws of the times, `(B,)` in [0, 1).
            label: Handed to the network.
            progress: Share of the training that is over, 0..1.
        """
        return {"loss": self.loss(network, data, noise, uniform, label)}

    def sample(
        self,
        network: Any,
        noise: Tensor,
        steps: int,
        label: Any = None,
        sampler: str | None = None,
        draw: Callable[[Tensor], Tensor] = torch.randn_like,
        edit: Edit | None = None,
        **settings: Any,
    ) -> Tensor:
        """Images `(B, C, H, W)` from noise.

        Args:
            network: What `build` made, or functions in its place.
            noise: Standard normal `(B, C, H, W)`.
            steps: Of the sampler, at least 1.
            label: Handed to the network.
            sampler: One of `samplers`; None is the first.
            draw: Makes fresh standard normal numbers like a tensor, for samplers that need them.
            edit: An image to go on from, or pixels to keep.
            **settings: Further arguments of the sampler, for example `eta` of `ddim`.

        Raises:
            ValueError: the sampler, one of its settings or the number of steps is none that there is.
        """
        name, kind = next(iter(self.samplers)) if sampler is None else sampler, type(self).__name__
        if name not in self.samplers:
            raise ValueError(f"{kind}: sampler is {name!r}; give one of {', '.join(self.samplers)}")
        if steps < 1:
            raise ValueError(f"the number of steps is {steps}; give at least 1")
        takes = signature(self.samplers[name]).parameters
        if unknown := [it for it in settings if it not in takes]:
            raise ValueError(f"{kind}: the sampler {name} has no setting {unknown[0]!r}; leave it out")
        if "draw" in takes:
            settings["draw"] = draw
        made = self.solve(partial(self.samplers[name], **settings), network, noise, steps, label, edit)
        return made if edit is None else edit.kept(made)

    @abstractmethod
    def solve(
        self,
        sampler: Callable[..., Tensor],
        network: Any,
        noise: Tensor,
        steps: int,
        label: Any,
        edit: Edit | None,
    ) -> Tensor:
        """Give the sampler what it asks for; arguments as `sample`, which has looked at them."""

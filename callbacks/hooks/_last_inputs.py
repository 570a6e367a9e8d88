"""What the last linear layer of a network is given, which is what a classifier knows of an image before it decides."""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["last_inputs"]


def last_inputs(owner: str, network: nn.Module, images: Any) -> Tensor:
    """Features float32 `(B, D)` of images `(B, ...)`, without gradients: the input of the `nn.Linear` that runs last.

    Where none is given one row an image, as behind a convolution that classifies, it is the answer itself.

    Args:
        owner: Who speaks in a refusal.
        network: In evaluation mode.
        images: What it is called with.

    Raises:
        ValueError: the network answers no row of numbers an image either.
    """
    given: list[Tensor] = []

    def keep(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        given.extend(it for it in inputs[:1] if isinstance(it, Tensor) and it.ndim == 2 and len(it) == len(images))

    with ExitStack() as stack, torch.no_grad():
        for part in network.modules():
            if isinstance(part, nn.Linear):
                stack.callback(part.register_forward_pre_hook(keep).remove)
        answer = network(images)
    found = given[-1] if given else answer
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(images):
        got = f"{tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise ValueError(
            f"{owner}: {type(network).__name__} answered {got} to {len(images)} images; name with network= the part "
            "that makes one row of logits an image."
        )
    return found.detach().float()

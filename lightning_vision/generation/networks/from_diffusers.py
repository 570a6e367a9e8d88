"""Networks of the diffusers library in the place of ours."""

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["FromDiffusers", "is_diffusers"]


def is_diffusers(network: nn.Module) -> bool:
    """Whether a module is one of diffusers'."""
    return any(cls.__module__.partition(".")[0] == "diffusers" for cls in type(network).__mro__)


class FromDiffusers(nn.Module):
    """One of diffusers' networks, asked as ours are: a `UNet2DModel`, a `DiTTransformer2DModel` or one alike.

    Times become their timesteps, 1000 t.

    Args:
        network: Takes a sample, timesteps and `class_labels`.
        num_classes: Of labels; the network's table of labels has one row more, which stands for none.

    Raises:
        ValueError: the network has no table of labels of that size.
    """

    def __init__(self, network: nn.Module, num_classes: int = 0) -> None:
        super().__init__()
        told: Any = network.config
        # The latter's table has one row more by itself.
        rows = told.get("num_class_embeds") or (told.get("num_embeds_ada_norm") or -1) + 1
        if num_classes and rows != num_classes + 1:
            raise ValueError(
                f"the {type(network).__name__} tells {rows} labels apart and num_classes is {num_classes}; build "
                f"it with num_class_embeds={num_classes + 1}, the last of which stands for no label"
            )
        self.network, self.num_classes = network, num_classes

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        asked = {}
        if self.num_classes:
            none = torch.full((len(x),), self.num_classes, device=x.device)
            asked["class_labels"] = none if label is None else label
        found: Tensor = self.network(x, 1000 * time, return_dict=False, **asked)[0]
        return found

"""Modules that make images, as ours do: an image is a function of the weights, the seed and its number."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .modules import Plain

__all__ = ["Maker"]


class Maker(Plain):
    """Makes what `labelled_images` holds: noise, and a third of the label on top; `scale` begins at 1 and learns.

    Args:
        scale: Of what it makes.
        num_classes: Of which it makes images on demand.
    """

    def __init__(self, scale: float = 1.0, num_classes: int = 10) -> None:
        super().__init__(dropout=0.0)
        self.num_classes = num_classes
        self.scale = nn.Parameter(torch.tensor(scale))
        self.asked: list[dict[str, Any]] = []
        self.network_calls: int | None = None

    def sample(self, count: int, label: Sequence[int] | Tensor | None = None, seed: int = 0, first: int = 0) -> Tensor:
        self.asked.append({"count": count, "label": label, "seed": seed, "first": first})
        self.network_calls = 7
        streams = [torch.Generator().manual_seed(1000 * seed + first + it) for it in range(count)]
        noise = torch.stack([torch.randn(1, 8, 8, generator=stream) for stream in streams])
        given = torch.zeros(count) if label is None else torch.as_tensor(label).cpu()
        return self.scale * (noise + given[:, None, None, None] / 3).to(self.device)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) + self.scale

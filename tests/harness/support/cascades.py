"""A cascade on its own: heads over one map of a few images, without a network before it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

from lightning_vision.detection.cascade_criterion import CascadeCriterion
from lightning_vision.detection.cascade_detections import CascadeDetections
from lightning_vision.detection.cascade_heads import CascadeHead, CascadeHeads

__all__ = [
    "CODERS",
    "SIDE",
    "THRESHOLDS",
    "WEIGHTS",
    "cascade",
    "everything",
    "map_of",
    "objects_on",
    "scene",
    "shaken",
]

SIDE = 64
THRESHOLDS = (0.5, 0.6, 0.7)
CODERS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
WEIGHTS = (1.0, 0.5, 0.25)


def everything(labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """A sampler that draws nothing: all candidates."""
    return [each > 0 for each in labels], [each == 0 for each in labels]


def cascade(
    num_classes: int,
    thresholds: Sequence[float] = THRESHOLDS,
    coders: Sequence[Sequence[float]] = CODERS,
    weights: Sequence[float] = WEIGHTS,
    sampler: Any = everything,
    channels: int = 4,
    width: int = 16,
) -> CascadeHeads:
    """Heads over one map of stride 4, `(B, channels, 16, 16)`."""
    heads = [CascadeHead(channels * 25, width, num_classes) for _ in thresholds]
    criteria = [CascadeCriterion(*stage, sampler) for stage in zip(thresholds, coders, weights, strict=True)]
    return CascadeHeads(MultiScaleRoIAlign(["0"], 5, 2), heads, criteria, CascadeDetections(0.05, 0.5, 100))


def objects_on(images: int, seed: int = 0, count: int = 3, num_classes: int = 3) -> list[dict[str, Tensor]]:
    """Objects of 12 to 28 pixels, one in each of `count` fields that do not touch."""
    random = torch.Generator().manual_seed(seed)
    corners = torch.tensor([[0.0, 0.0], [32.0, 0.0], [0.0, 32.0], [32.0, 32.0]])[:count]
    targets = []
    for _ in range(images):
        size = 12 + 16 * torch.rand(count, 2, generator=random)
        left_top = corners + (32 - size) * torch.rand(count, 2, generator=random)
        labels = torch.randint(1, num_classes + 1, (count,), generator=random)
        targets.append({"boxes": torch.cat([left_top, left_top + size], 1), "labels": labels})
    return targets


def map_of(targets: Sequence[dict[str, Tensor]], channels: int = 4) -> dict[str, Tensor]:
    """A map of stride 4 that shows each object as a filled box, brighter in the channel of its class."""
    edges = torch.arange(0, SIDE, 4) + 2.0
    maps = torch.zeros(len(targets), channels, len(edges), len(edges))
    for drawn, target in zip(maps, targets, strict=True):
        for (left, top, right, bottom), label in zip(target["boxes"], target["labels"], strict=True):
            across = ((edges - left) / 4 + 0.5).clamp(0, 1) * ((right - edges) / 4 + 0.5).clamp(0, 1)
            down = ((edges - top) / 4 + 0.5).clamp(0, 1) * ((bottom - edges) / 4 + 0.5).clamp(0, 1)
            drawn[0] += down[:, None] * across
            drawn[int(label)] += down[:, None] * across
    return {"0": maps}


def shaken(targets: Sequence[dict[str, Tensor]], seed: int = 0, each: int = 20) -> list[Tensor]:
    """Proposals: `each` boxes about every object, off by a sixth of its size, and as many anywhere."""
    random = torch.Generator().manual_seed(seed)
    proposals = []
    for target in targets:
        near = target["boxes"].repeat(each, 1)
        size = (near[:, 2:] - near[:, :2]).repeat(1, 2)
        near = near + size * torch.randn(near.shape, generator=random) / 6
        anywhere = torch.rand(each, 4, generator=random) * SIDE / 2 + torch.tensor([0.0, 0.0, SIDE / 2, SIDE / 2])
        proposals.append(torch.cat([near, anywhere]).clamp(0, SIDE))
    return proposals


def scene(
    images: int = 2, seed: int = 0, num_classes: int = 3
) -> tuple[dict[str, Tensor], list[Tensor], list[tuple[int, int]], list[dict[str, Tensor]]]:
    """What `CascadeHeads.losses` takes: maps, proposals, sizes and targets."""
    targets = objects_on(images, seed, num_classes=num_classes)
    return map_of(targets), shaken(targets, seed), [(SIDE, SIDE)] * images, targets

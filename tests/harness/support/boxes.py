"""Bright rectangles on dark images: where an object is can be read off the pixels."""

from dataclasses import replace

import torch
from torch import Tensor

from lightning_vision.datamodules.detection import Annotations, pack_boxes

__all__ = ["extent", "rectangles", "union"]


def rectangles(count: int, size: tuple[int, int], seed: int = 0, channels: int = 1) -> tuple[Tensor, Annotations]:
    """An image with one white rectangle each, uint8 `(count, channels, *size)`, with its box, label and mask.

    Sides are a quarter to a half of the image's; image i has label i + 1.
    """
    generator = torch.Generator().manual_seed(seed)
    sides = torch.tensor(size[::-1])
    draws = torch.rand(count, 2, 2, generator=generator)
    spans = ((0.25 + 0.25 * draws[:, 0]) * sides).long()
    starts = (draws[:, 1] * (sides - spans + 1)).long()
    boxes = torch.cat([starts, starts + spans], 1)
    row, column = torch.arange(size[0])[:, None], torch.arange(size[1])
    left, top, right, bottom = boxes[:, :, None, None].unbind(1)
    masks = ((row >= top) & (row < bottom) & (column >= left) & (column < right)).to(torch.uint8)
    labels = list(torch.arange(1, count + 1)[:, None])
    annotations = replace(pack_boxes(list(boxes[:, None]), labels, size), masks=masks)
    return (masks * 255)[:, None].repeat(1, channels, 1, 1), annotations


def extent(pixels: Tensor) -> Tensor:
    """Left, top, right and bottom of what is not 0 in `(H, W)`, float32 `(4,)`."""
    rows, columns = pixels.nonzero().unbind(1)
    return torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()


def union(annotations: Annotations) -> Tensor:
    """The masks of each image's objects together, uint8 0 and 1 `(B, H, W)`."""
    return torch.stack([target["masks"].any(0).to(torch.uint8) for target in annotations.targets()])

"""From the pixels of a batch back to those of the image that a source gave."""

import numpy as np
import torch
import torch.nn.functional as F
from faster_coco_eval.core import mask as rle
from torch import Tensor

__all__ = ["original_boxes", "original_rles"]

AT_ONCE = 16


def original_boxes(
    boxes: np.ndarray, placement: np.ndarray | None, size: np.ndarray | tuple[int, int] | None = None
) -> np.ndarray:
    """Boxes in the pixels of their original images.

    Args:
        boxes: Left, top, right, bottom in the batch's pixels, `(N, 4)`.
        placement: Of each box's image, or of the one that all are of: scale across and down, shift right and down,
            `(N, 4)` or `(4,)`; None where nothing was moved.
        size: Height and width of the originals, pixels, `(N, 2)` or two numbers, at whose edges boxes end; None leaves
            them as they are.

    Returns:
        float64 `(N, 4)`.

    Example:
        >>> original_boxes(np.array([[8.0, 4.0, 16.0, 8.0]]), np.array([0.5, 0.5, 0.0, 2.0])).tolist()
        [[16.0, 4.0, 32.0, 12.0]]
    """
    boxes = boxes.astype(np.float64)
    if placement is not None:
        placed = np.asarray(placement, np.float64)
        boxes = (boxes - placed[..., [2, 3, 2, 3]]) / placed[..., [0, 1, 0, 1]]
    return boxes if size is None else np.clip(boxes, 0, np.asarray(size)[..., [1, 0, 1, 0]])


def original_rles(masks: Tensor, placement: np.ndarray | None, size: tuple[int, int]) -> list[bytes]:
    """Run lengths, as COCO compresses them, of masks in the pixels of their original image.

    Args:
        masks: `(N, H, W)` or `(N, 1, H, W)`, what exceeds one half is inside; bool, 0 and 1, or probabilities.
        placement: Scale across and down, shift right and down, `(4,)`; None where nothing was moved.
        size: Height and width of the original image, pixels.

    Raises:
        ValueError: nothing was moved and the masks are not of that size.
    """
    masks = masks.reshape(-1, *masks.shape[-2:])
    if placement is None and masks.shape[1:] != size:
        raise ValueError(f"masks are {tuple(masks.shape[1:])} and their image {size}; give `placement`, or masks of it")
    counts: list[bytes] = []
    for part in masks.split(AT_ONCE):  # of large images a hundred masks would fill the memory
        if placement is not None and (tuple(placement) != (1, 1, 0, 0) or part.shape[1:] != size):
            part = _taken_back(part.float(), placement, size)
        inside = (part > 0.5).to(torch.uint8).cpu().permute(1, 2, 0).numpy()
        counts += [encoded["counts"] for encoded in rle.encode(np.asfortranarray(inside))]
    return counts


def _taken_back(masks: Tensor, placement: np.ndarray, size: tuple[int, int]) -> Tensor:
    """`(N, *size)`: for each pixel of the original image what lies where its middle went, between pixels linearly."""
    height, width = masks.shape[-2:]
    across, down, right, below = placement.tolist()
    x = (torch.arange(size[1], device=masks.device) + 0.5) * across + right
    y = (torch.arange(size[0], device=masks.device) + 0.5) * down + below
    grid = torch.stack(torch.meshgrid(2 * x / width - 1, 2 * y / height - 1, indexing="xy"), -1)
    return F.grid_sample(masks[None], grid[None], padding_mode="border", align_corners=False)[0]

"""The pointing game: whether a map's highest value lies on the object.

Zhang et al. 2016, arXiv:1608.00507, section 4.1.
"""

import torch
from torch import Tensor

__all__ = ["box_masks", "pointing_game"]


def pointing_game(maps: Tensor, objects: Tensor, tolerance: int = 0) -> Tensor:
    """Whether each map peaks on the object, 1 or 0; its mean over images is the accuracy of the pointing game.

    Args:
        maps: `(B, H, W)`.
        objects: Masks bool `(B, H, W)`, true on the object.
        tolerance: How far from the object a peak may lie, pixels, >= 0; the authors allow 15 on photographs.

    Shape:
        float `(B,)`; of a map that peaks at several pixels the share of them that hit, so a constant map scores as
        pointing at random does.

    Raises:
        ValueError: shapes disagree, an object is empty, or `tolerance` is negative.

    Reference: Zhang et al. 2016, arXiv:1608.00507
    """
    if objects.shape != maps.shape or objects.dtype != torch.bool:
        raise ValueError(
            f"objects are {objects.dtype} {tuple(objects.shape)} for maps {tuple(maps.shape)}; give bool masks of the "
            "same shape, as box_masks makes them of boxes."
        )
    if tolerance < 0:
        raise ValueError(f"tolerance is {tolerance}; give pixels, 0 or more.")
    if not bool(objects.flatten(1).any(1).all()):
        raise ValueError("a mask has no pixel of an object, so no map can point at it; leave that image out.")
    peaks = maps == maps.amax((1, 2), keepdim=True)
    hits = torch.zeros(len(maps))
    for index, (peak, there) in enumerate(zip(peaks, objects, strict=True)):
        distance = torch.cdist(peak.nonzero().double(), there.nonzero().double()).amin(1)
        hits[index] = (distance <= tolerance).float().mean()
    return hits


def box_masks(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes as masks, bool `(B, H, W)`.

    Args:
        boxes: left, top, right, bottom in pixels, the last two outside, `(B, 4)`.
        size: Height and width of the images, pixels.
    """
    left, top, right, bottom = (it[:, None, None] for it in boxes.unbind(1))
    row = torch.arange(size[0], device=boxes.device)[:, None]
    column = torch.arange(size[1], device=boxes.device)
    return (row >= top) & (row < bottom) & (column >= left) & (column < right)

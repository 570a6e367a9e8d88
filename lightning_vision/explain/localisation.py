"""Weakly supervised localisation: the box that a map draws around its object, against the true one.

Zhou et al. 2015, arXiv:1512.04150, section 3.2.
"""

import torch
from scipy import ndimage
from torch import Tensor
from torchvision.ops import box_iou

__all__ = ["localisation_boxes", "localisation_iou"]


def localisation_boxes(maps: Tensor, threshold: float = 0.2) -> Tensor:
    """The box around the largest connected part of each map that is above a share of its maximum.

    Args:
        maps: `(B, H, W)`, larger where the object is; values below 0 count as 0.
        threshold: Share of the maximum, 0 to below 1; 0.2 as the authors of class activation maps took it.

    Shape:
        int64 `(B, 4)`: left, top, right, bottom in pixels, the last two outside; a map without a positive value gives
        the whole image. Pixels are connected across corners.

    Raises:
        ValueError: `threshold` is not from 0 to below 1.

    Reference: Zhou et al. 2015, arXiv:1512.04150
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold is {threshold}; give a share of the maximum, 0 to below 1.")
    boxes = []
    for values in maps.cpu().double():
        above = values > threshold * values.amax() if bool(values.amax() > 0) else torch.ones_like(values).bool()
        labels, count = ndimage.label(above.numpy(), structure=[[1] * 3] * 3)
        sizes = torch.from_numpy(labels).flatten().bincount(minlength=count + 1)
        rows, columns = ndimage.find_objects(labels)[int(sizes[1:].argmax())]
        boxes.append([columns.start, rows.start, columns.stop, rows.stop])
    return torch.tensor(boxes).view(-1, 4)


def localisation_iou(maps: Tensor, boxes: Tensor, threshold: float = 0.2) -> Tensor:
    """Intersection over union of each map's box and the true one, `(B,)`, 0 to 1.

    Args:
        maps: `(B, H, W)`, larger where the object is.
        boxes: left, top, right, bottom in pixels, the last two outside, `(B, 4)`.
        threshold: Share of a map's maximum above which it belongs to the object, 0 to below 1.

    Raises:
        ValueError: there is not one box an image, or `threshold` is not from 0 to below 1.

    Reference: Zhou et al. 2015, arXiv:1512.04150
    """
    if boxes.shape != (len(maps), 4):
        raise ValueError(f"boxes are {tuple(boxes.shape)} for {len(maps)} maps; give (B, 4), one an image.")
    return box_iou(localisation_boxes(maps, threshold).double(), boxes.cpu().double()).diagonal().float()

"""Images at another size, and what is known of their pixels moved along."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Size", "move_targets", "resize_images", "resize_target", "size_of"]

Size = tuple[int, int]


def resize_images(images: Tensor, size: Size) -> Tensor:
    """Images `(B, C, H, W)` of any dtype at another size, bilinear with antialiasing, as torchvision's `resize`."""
    if tuple(images.shape[-2:]) == size:
        return images
    # In float32: half precision and bytes have no such kernel everywhere.
    resized = F.interpolate(images.float(), size, mode="bilinear", antialias=True, align_corners=False)
    if not images.is_floating_point():
        resized = resized.round_()
    return resized.to(images.dtype)


def resize_target(target: Any, old: Size, new: Size) -> Any:
    """What is known of an image, or of a batch, moved with its pixels; the target itself is left alone.

    A map `(..., H, W)` of the image's size is resized to the nearest pixel. Of a mapping `boxes` `(N, 4)`, left, top,
    right and bottom, and `keypoints` `(N, K, 2)` or `(N, K, 3)`, x, y and visibility, are scaled, to float32 where they
    are integers, `masks` `(N, H, W)` are resized as maps, and `placement` `(4,)` (scale across, scale down, shift
    right, shift down) is brought up to date; anything else stays.

    Args:
        target: Anything.
        old: Height and width of the image before.
        new: Height and width of the image now.

    Example:
        >>> resize_target({"boxes": torch.tensor([[2.0, 4.0, 6.0, 8.0]])}, (8, 8), (4, 8))["boxes"].tolist()
        [[2.0, 2.0, 6.0, 4.0]]
    """
    if isinstance(target, Tensor) and tuple(target.shape[-2:]) == old:
        return _nearest(target, new)
    if not isinstance(target, Mapping):
        return target
    across, down = new[1] / old[1], new[0] / old[0]
    corners = [across, down, across, down]
    changed = dict(target)
    for name, factors in (("boxes", corners), ("placement", corners), ("keypoints", [across, down, 1.0])):
        # Of an image without objects some have an empty tensor of any shape.
        if isinstance(value := changed.get(name), Tensor) and value.numel():
            dtype = value.dtype if value.is_floating_point() else torch.float32
            changed[name] = value * torch.tensor(factors[: value.shape[-1]], dtype=dtype, device=value.device)
    if isinstance(masks := changed.get("masks"), Tensor) and tuple(masks.shape[-2:]) == old:
        changed["masks"] = _nearest(masks, new)
    return changed


def move_targets(target: Any, sizes: Sequence[tuple[Size, Size]], channels: int) -> Any:
    """Targets of a batch, moved with their images, each from its old to its new size.

    Floating `(B, C, H, W)` of the images' size and channels are images.
    """
    if isinstance(target, (list, tuple)):
        if len(target) == len(sizes):
            return [resize_target(its, old, new) for its, (old, new) in zip(target, sizes, strict=True)]
        return [move_targets(part, sizes, channels) for part in target]
    # A tensor, or a mapping of tensors, of all images, which are of one size then. What is `(B, K)` is no map, though K
    # classes may be as many as an image has columns.
    if len(set(sizes)) > 1 or (isinstance(target, Tensor) and target.ndim < 3):
        return target
    old, new = sizes[0]
    if isinstance(target, Tensor) and target.is_floating_point() and target.shape[1:] == (channels, *old):
        return resize_images(target, new)
    return resize_target(target, old, new)


def size_of(image: Tensor) -> Size:
    return int(image.shape[-2]), int(image.shape[-1])


def _nearest(maps: Tensor, size: Size) -> Tensor:
    """Maps `(..., H, W)` of any dtype at another size, each pixel that of the nearest old one."""
    rows, columns = (
        ((torch.arange(new, device=maps.device) + 0.5) * (old / new)).long().clamp_(max=old - 1)
        for old, new in zip(maps.shape[-2:], size, strict=True)
    )
    return maps.index_select(-2, rows).index_select(-1, columns)

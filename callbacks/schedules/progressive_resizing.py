"""Progressive resizing: early training on small images, the last part on whole ones.

Tan and Le 2021, arXiv:2104.00298, section 4, whose image size of each stage is here a function of the share s of the
training that is done: side(s) = round(side (a + (1 - a) min(1, s / (1 - f)))). Symbols: a `start`, f `full`, s `done`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor

from ..hooks._checks import number, whole
from ..hooks.paced import Paced

__all__ = ["ProgressiveResizing", "resize_images", "resize_target", "size_at"]

Size = tuple[int, int]


def size_at(size: Size, done: float, start: float, full: float, multiple: int) -> Size:
    """Height and width of the images when a share `done` of the training is done, pixels.

    Args:
        size: Height and width of the whole images.
        done: 0..1.
        start: Share of each side at the beginning, above 0, at most 1.
        full: Last share of the training, on whole images, 0..1.
        multiple: Sides are rounded to the nearest multiple of this, at least one, and never above the whole side.

    Example:
        >>> [size_at((224, 160), done / 10, 0.5, 0.2, 32) for done in (0, 2, 4, 6, 8)]
        [(128, 96), (128, 96), (160, 128), (192, 128), (224, 160)]
    """
    grown = 1.0 if done >= 1 - full else done / (1 - full)
    share = start + (1 - start) * grown
    if share >= 1:
        return size
    height, width = (min(side, max(1, int(side * share / multiple + 0.5)) * multiple) for side in size)
    return height, width


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


@final
class ProgressiveResizing(Paced):
    """Trains on small images first, which cost less, and on larger and larger ones up to the whole size.

    Each training batch is resized once, on the device, before methods that mix it and before all that replays it. The
    side grows linearly from `start` to the whole, in steps of `multiple`, over the optimizer steps of the training, the
    last part of which sees whole images, for batch norm's statistics and positions that depend on the size. Boxes,
    keypoints and masks of detection batches move along, as do label maps `(B, H, W)`. Validation, test and prediction
    stay untouched.

    Args:
        start: Share of each side at the beginning, above 0, at most 1; the paper goes from 128 to 300 pixels. Neutral:
            1, whole images all the time.
        full: Last share of the training on whole images, 0 to below 1.
        multiple: Sides are rounded to a multiple of this, pixels, >= 1; None takes 32, for images below 128 pixels the
            largest power of two in a quarter of their shorter side.
        image_key: Key of the images where batches are mappings; elsewhere they come first.
        target_key: Key of the targets where batches are mappings; elsewhere they come second.
        name: Part of the state key.

    Shape:
        Images `(B, C, H, W)`, or a list of `(C, H, W)`, each of which has its own whole size; targets of any kind, of
        which `resize_target` and label maps are moved along.

    Raises:
        ValueError: an argument out of its range; at set-up, if the Trainer has two; before the first batch, if the
            training has no end that can be told; at the first batch, if it has no images, or if these are so small that
            no size but the whole one is a multiple.

    Example:
        >>> resizing = ProgressiveResizing(start=0.5, full=0.2)
        >>> images, labels = resizing.change_at((torch.zeros(2, 3, 64, 64), torch.zeros(2)), done=0.0)
        >>> images.shape
        torch.Size([2, 3, 32, 32])

    Reference: Tan and Le 2021, arXiv:2104.00298

    BibTeX:
        @inproceedings{tan2021efficientnetv2,
          title = {EfficientNetV2: Smaller Models and Faster Training},
          author = {Tan, Mingxing and Le, Quoc V.},
          booktitle = {International Conference on Machine Learning},
          year = {2021},
        }

    Differs from the paper:
        Sizes alone: its regularisation, which grows along (dropout, RandAugment, mixup), is left as it is set. The
        paper's four stages are steps of `multiple` pixels here, and training ends with whole images for `full` of it.

    See also:
        `torchvision.transforms.v2.functional.resize`, whose pixels these are; MosaicML Composer's
        `ProgressiveResizing`.
    """

    neutral = ({"start": 1.0},)
    needs = "any size"

    def __init__(
        self,
        start: float = 0.5,
        full: float = 0.2,
        multiple: int | None = None,
        image_key: str = "image",
        target_key: str = "target",
        name: str | None = None,
    ) -> None:
        super().__init__(seed=0, image_key=image_key, target_key=target_key, name=name)
        number("ProgressiveResizing", "start", start, 0, 1)
        number("ProgressiveResizing", "full", full, 0, 1)
        if start == 0 or (full == 1 and start != 1):
            raise ValueError(
                f"ProgressiveResizing: start={start} and full={full} leave no size to begin with, or no time to grow; "
                "give a start above 0 and a full below 1."
            )
        if multiple is not None:
            whole("ProgressiveResizing", "multiple", multiple, 1)
        self.start, self.full, self.multiple = start, full, multiple

    def change_at(self, batch: Any, done: float) -> Any:
        images = batch if isinstance(batch, Tensor) else self.fields.image(batch)
        listed = isinstance(images, (list, tuple))
        each = images if listed else [images]
        if not all(isinstance(it, Tensor) and it.ndim == (3 if listed else 4) for it in each):
            raise ValueError(
                "ProgressiveResizing: images must be a tensor (B, C, H, W) or a list of (C, H, W), got "
                f"{tuple(images.shape) if isinstance(images, Tensor) else f'a {type(images).__name__}'}; say with "
                "image_key= which entry of the batch they are."
            )
        sizes = [(_size_of(it), self._size(it, done)) for it in each]
        # Later, among lists of images, a batch of small ones is nothing to end a training for.
        if self._fresh and all(self._size(it, 0.0) == _size_of(it) for it in each):
            raise ValueError(
                "ProgressiveResizing: images of {}x{} pixels have no size between start={:g} of their sides and the "
                "whole that is a multiple of {}; give a smaller multiple=, or a smaller start=.".format(
                    *sizes[0][0], self.start, self._multiple(sizes[0][0])
                )
            )
        if all(old == new for old, new in sizes):
            return batch
        resized: Any = [
            resize_images(it[None], new)[0] if listed else resize_images(it, new)
            for it, (_, new) in zip(each, sizes, strict=True)
        ]
        if not listed:
            (resized,), sizes = resized, sizes * len(images)
        if isinstance(batch, Tensor):
            return resized
        if len(batch) == 1:
            return self.fields.with_image(batch, resized)
        return self.fields.replaced(batch, resized, _moved(self.fields.target(batch), sizes))

    def advice(self) -> str:
        return (
            f"the first batch had images of {self.start:g} of their sides; if the network takes images of one size "
            "only, make it one that takes any (timm's vision transformers do with dynamic_img_size=True), or leave "
            "this out."
        )

    def _size(self, image: Tensor, done: float) -> Size:
        size = _size_of(image)
        return size_at(size, done, self.start, self.full, self._multiple(size))

    def _multiple(self, size: Size) -> int:
        return self.multiple or min(32, 2 ** max(0, (min(size) // 4).bit_length() - 1))


def _moved(target: Any, sizes: Sequence[tuple[Size, Size]]) -> Any:
    """Targets of a batch, moved with their images, each from its old to its new size."""
    if isinstance(target, (list, tuple)):
        if len(target) == len(sizes):
            return [resize_target(its, old, new) for its, (old, new) in zip(target, sizes, strict=True)]
        return [_moved(part, sizes) for part in target]
    # A tensor, or a mapping of tensors, of all images, which are of one size then. What is `(B, K)` is no map, though K
    # classes may be as many as an image has columns.
    if len(set(sizes)) > 1 or (isinstance(target, Tensor) and target.ndim < 3):
        return target
    return resize_target(target, *sizes[0])


def _nearest(maps: Tensor, size: Size) -> Tensor:
    """Maps `(..., H, W)` of any dtype at another size, each pixel that of the nearest old one."""
    rows, columns = (
        ((torch.arange(new, device=maps.device) + 0.5) * (old / new)).long().clamp_(max=old - 1)
        for old, new in zip(maps.shape[-2:], size, strict=True)
    )
    return maps.index_select(-2, rows).index_select(-1, columns)


def _size_of(image: Tensor) -> Size:
    return int(image.shape[-2]), int(image.shape[-1])

"""Progressive resizing: early training on small images, with weak regularisation if asked for, the end on whole ones.

Tan and Le 2021, arXiv:2104.00298, section 4 and Algorithm 1: of M stages i = 0 .. M - 1 of equal length each trains on
images of S_i = S_0 + (S_e - S_0) i / (M - 1) pixels with the strengths phi_i = phi_0 + (phi_e - phi_0) i / (M - 1).
Without stages the way g = i / (M - 1) is a function of the share s of the training that is done: g(s) = min(1, s / (1 -
f)). Symbols: S_e the whole side, S_0 = a S_e, a `start`, f `full`, s `done`, g `grown`, phi_0 and phi_e `strengthen`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

from lightning.pytorch import LightningModule
from torch import Tensor

from ..hooks._checks import number, whole
from ..hooks.paced import Moment, Paced
from ._resizing import Size, move_targets, resize_images, resize_target, size_of
from ._stretch import finite, moved

__all__ = ["ProgressiveResizing", "grown_at", "resize_images", "resize_target", "size_at"]


def grown_at(done: float, full: float, stages: int | None = None) -> float:
    """How much of the way from the smallest images to whole ones is gone when a share `done` of training is done, 0..1.

    Args:
        done: 0..1.
        full: Last share of the training, on whole images, 0..1; with stages their last one is that.
        stages: Stages of equal length in each of which it stays the same, 0 in the first and 1 in the last; of one
            stage 1. None: it grows with every step.

    Example:
        >>> [round(grown_at(done / 8, 0.2, stages=4), 2) for done in range(8)]
        [0.0, 0.0, 0.33, 0.33, 0.67, 0.67, 1.0, 1.0]
    """
    if stages is None:
        return 1.0 if done >= 1 - full else done / (1 - full)
    # A little more than `done`, for 1 / 49 times 49 is 0.9999999999999999.
    stage = min(stages - 1, int(done * stages + 1e-9))
    return 1.0 if stage == stages - 1 else stage / (stages - 1)


def size_at(size: Size, done: float, start: float, full: float, multiple: int, stages: int | None = None) -> Size:
    """Height and width of the images when a share `done` of the training is done, pixels.

    Args:
        size: Height and width of the whole images.
        done: 0..1.
        start: Share of each side at the beginning, above 0, at most 1.
        full: See `grown_at`.
        multiple: Sides are rounded to the nearest multiple of this, at least one, and never above the whole side.
        stages: See `grown_at`.

    Example:
        >>> [size_at((224, 160), done / 10, 0.5, 0.2, 32) for done in (0, 2, 4, 6, 8)]
        [(128, 96), (128, 96), (160, 128), (192, 128), (224, 160)]
        >>> [size_at((300, 300), stage / 4, 128 / 300, 0.0, 1, stages=4)[0] for stage in range(4)]
        [128, 185, 243, 300]
    """
    share = start + (1 - start) * grown_at(done, full, stages)
    if share >= 1:
        return size
    height, width = (min(side, max(1, int(side * share / multiple + 0.5)) * multiple) for side in size)
    return height, width


@final
class ProgressiveResizing(Paced):
    """Trains on small images first, which cost less, and on larger and larger ones up to the whole size.

    Each training batch is resized once, on the device, before methods that mix it and before all that replays it. The
    side grows linearly from `start` to the whole, in steps of `multiple`, over the optimizer steps of the training, the
    last part of which sees whole images, for batch norm's statistics and positions that depend on the size. With
    `stages` it grows in the paper's stages. Boxes, keypoints and masks of detection batches move along, as do label
    maps `(B, H, W)`. Numbers named in `strengthen`, such as dropouts, grow with the side: a batch is augmented,
    resized, mixed and trained on with those of its stage, and after the fit they are what they were. Validation, test
    and prediction stay untouched.

    Args:
        start: Share of each side at the beginning, above 0, at most 1; the paper goes from 128 to 300 pixels. Neutral
            without `strengthen`: 1, whole images all the time.
        full: Last share of the training on whole images, 0 to below 1; not asked for with `stages`, of which the last
            is that.
        multiple: Sides are rounded to a multiple of this, pixels, >= 1; None takes 32, for images below 128 pixels the
            largest power of two in a quarter of their shorter side.
        stages: M, stages of equal length, >= 1; the paper's are 4. None: the side grows with every step. Neutral
            without `strengthen`: 1, the last stage all the time.
        strengthen: By dotted name (see `Ramp`) the number at the smallest and at the whole size, `[low, high]`: dropout
            `network.*.p`, `datamodule.augmentation.stages.1.magnitude`, `callbacks.MixUp.alpha`. None: none.
        image_key: Key of the images where batches are mappings; elsewhere they come first.
        target_key: Key of the targets where batches are mappings; elsewhere they come second. In a mapping without this
            key everything but the images is moved as targets are.
        name: Part of the state key.

    Shape:
        Images `(B, C, H, W)`, or a list of `(C, H, W)`, each of which has its own whole size; targets of any kind, of
        which `resize_target` and label maps are moved along, and floating `(B, C, H, W)` of the images' channels and
        size, such as a second view or a clean image, are resized as images are.

    Raises:
        ValueError: an argument out of its range; at set-up, if the Trainer has two; before the first batch, if the
            training has no end that can be told, or a name in `strengthen` leads to no number that can be set; at the
            first batch, if it has no images, or if these are so small that no size but the whole one is a multiple.

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
        Without `stages` and `strengthen`: its four stages are steps of `multiple` pixels, training ends with whole
        images for `full` of it, and regularisation is left as it is set. With them: images are augmented at the whole
        size and resized then.

    See also:
        `torchvision.transforms.v2.functional.resize`, whose pixels these are; MosaicML Composer's
        `ProgressiveResizing`.
    """

    neutral = ({"start": 1.0, "strengthen": None}, {"stages": 1, "strengthen": None})
    needs = "any size"

    def __init__(
        self,
        start: float = 0.5,
        full: float = 0.2,
        multiple: int | None = None,
        stages: int | None = None,
        strengthen: dict[str, list[float]] | None = None,
        image_key: str = "image",
        target_key: str = "target",
        name: str | None = None,
    ) -> None:
        super().__init__(seed=0, image_key=image_key, target_key=target_key, name=name)
        number("ProgressiveResizing", "start", start, 0, 1)
        number("ProgressiveResizing", "full", full, 0, 1)
        if start == 0 or (full == 1 and start != 1 and stages is None):
            raise ValueError(
                f"ProgressiveResizing: start={start} and full={full} leave no size to begin with, or no time to grow; "
                "give a start above 0 and a full below 1."
            )
        if multiple is not None:
            whole("ProgressiveResizing", "multiple", multiple, 1)
        if stages is not None:
            whole("ProgressiveResizing", "stages", stages, 1)
        if strengthen is not None and not isinstance(strengthen, Mapping):
            raise ValueError(
                f"ProgressiveResizing: strengthen is {strengthen!r}; give a dictionary of names to [low, high]."
            )
        for attribute, pair in (strengthen or {}).items():
            if not (isinstance(pair, Sequence) and len(pair) == 2 and all(map(finite, pair))):
                raise ValueError(
                    f"ProgressiveResizing: strengthen has {pair!r} for {attribute!r}; give two finite numbers, "
                    "[low, high]."
                )
        self.start, self.full, self.multiple = start, full, multiple
        self.stages, self.strengthen = stages, strengthen or None
        self._pairs = dict(strengthen or {})

    def names(self, pl_module: LightningModule) -> Sequence[str]:
        return tuple(self._pairs)

    def bounds(self, name: str, own: float) -> Sequence[float]:
        return self._pairs[name]

    def value(self, name: str, own: float, moment: Moment) -> float:
        low, high = self._pairs[name]
        return moved(grown_at(moment.done or 0.0, self.full, self.stages), low, high)

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
        sizes = [(size_of(it), self._size(it, done)) for it in each]
        # Later, among lists of images, a batch of small ones is nothing to end a training for.
        grows = self.start < 1 and self.stages != 1
        if grows and self._fresh and all(self._size(it, 0.0) == size_of(it) for it in each):
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
        channels = each[0].shape[-3]
        if isinstance(batch, Mapping) and self.fields.target_key not in batch:
            changed = self.fields.with_image(batch, resized)
            for key in batch.keys() - {self.fields.image_key}:
                changed[key] = move_targets(batch[key], sizes, channels)
            return changed
        return self.fields.replaced(batch, resized, move_targets(self.fields.target(batch), sizes, channels))

    def advice(self) -> str:
        if self.start == 1 or self.stages == 1:
            return ""
        return (
            f"the first batch had images of {self.start:g} of their sides; if the network takes images of one size "
            "only, make it one that takes any (timm's vision transformers do with dynamic_img_size=True), or leave "
            "this out."
        )

    def _size(self, image: Tensor, done: float) -> Size:
        size = size_of(image)
        return size_at(size, done, self.start, self.full, self._multiple(size), self.stages)

    def _multiple(self, size: Size) -> int:
        return self.multiple or min(32, 2 ** max(0, (min(size) // 4).bit_length() - 1))

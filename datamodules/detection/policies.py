"""Named policies of augmentation for images with boxes."""

from collections.abc import Callable

from lightning_vision.catalogue import nearest

from ..augmentation.augmentation import Augmentation
from .box_augmentation import BoxAugmentation, BoxChain
from .flip import HorizontalFlip
from .mixup import BoxMixUp
from .mosaic import Mosaic
from .object_crop import ObjectCrop
from .photometric import PhotometricDistortion, PixelsOnly
from .scale_jitter import ScaleJitter

__all__ = ["box_augmentation_for", "box_policy"]

Size = tuple[int, int]
# The list stands first, because a parser takes whatever is typed for a string.
BoxAugment = list[str | BoxAugmentation | Augmentation] | str | BoxAugmentation | Augmentation


def _light(size: Size) -> list[BoxAugmentation]:
    return [HorizontalFlip()]


def _standard(size: Size) -> list[BoxAugmentation]:
    return [ScaleJitter(scale=(0.8, 1.25), size=size), HorizontalFlip(), PixelsOnly(PhotometricDistortion())]


def _strong(size: Size) -> list[BoxAugmentation]:
    return [ScaleJitter(scale=(0.1, 2.0), size=size), HorizontalFlip(), PixelsOnly(PhotometricDistortion())]


def _ssd(size: Size) -> list[BoxAugmentation]:
    zoom_out = ScaleJitter(scale=(0.25, 1.0), prob=0.5, size=size)
    return [PixelsOnly(PhotometricDistortion()), zoom_out, ObjectCrop(), HorizontalFlip()]


def _mixup(size: Size) -> list[BoxAugmentation]:
    return [BoxMixUp(prob=0.5), *_standard(size)]


def _mosaic(size: Size) -> list[BoxAugmentation]:
    return [Mosaic(), *_standard(size)]


_MAKERS: dict[str, Callable[[Size], list[BoxAugmentation]]] = {
    "none": lambda size: [],
    "light": _light,
    "standard": _standard,
    "strong": _strong,
    "ssd": _ssd,
    "mixup": _mixup,
    "mosaic": _mosaic,
}

BOX_POLICIES = tuple(_MAKERS)
"""Names that `box_policy` knows."""


def box_policy(name: str, size: tuple[int, int]) -> BoxAugmentation | None:
    """The box augmentation that a policy's name stands for, making images of `size`.

    Args:
        name: One of `BOX_POLICIES`, "none" is None.
        size: Height and width of the results, pixels.

    Raises:
        ValueError: There is no such policy.

    Example:
        >>> box_policy("light", (32, 32)).draws
        1
    """
    if name not in _MAKERS:
        raise ValueError(
            f"no augmentation policy {name!r} for images with boxes{nearest(name, BOX_POLICIES)}; there are "
            f"{', '.join(BOX_POLICIES)}"
        )
    stages = _MAKERS[name](size)
    return BoxChain(stages) if len(stages) > 1 else next(iter(stages), None)


def box_augmentation_for(augment: BoxAugment, image_size: tuple[int, int]) -> BoxAugmentation | None:
    """What the `augment` of a detection datamodule stands for, making images of `image_size`; None changes nothing.

    Args:
        augment: The name of a policy, a `BoxAugmentation`, an `Augmentation` that moves no pixels, or a list of these,
            which act in its order.
        image_size: Height and width of the results, pixels.

    Raises:
        ValueError: It is none of those, names no policy, or moves pixels without their boxes.
    """
    stages = []
    for it in augment if isinstance(augment, list) else [augment]:
        if isinstance(it, str):
            stages.append(box_policy(it, image_size))
        elif isinstance(it, Augmentation):
            stages.append(PixelsOnly(it))
        elif isinstance(it, BoxAugmentation):
            stages.append(it)
        else:
            known = "the name of a policy, a BoxAugmentation, an Augmentation that moves no pixels or a list of these"
            raise ValueError(f"augment is {it!r}; give {known}.")
    kept = [stage for stage in stages if stage is not None]
    return BoxChain(kept) if len(kept) > 1 else next(iter(kept), None)

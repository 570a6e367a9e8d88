"""Named augmentation policies."""

from collections.abc import Callable

from lightning_vision.catalogue import nearest

from .augmentation import Augmentation
from .augmix import AugMix
from .auto_augment import AutoAugment
from .chain import Chain
from .color_jitter import ColorJitter
from .rand_augment import RandAugment
from .random_erasing import RandomErasing
from .resized_crop import ResizedCrop
from .shift_crop import ShiftCrop
from .trivial_augment import TrivialAugment

__all__ = ["augmentation_for", "policy"]

Size = tuple[int, int]
# The list stands first, because a parser takes whatever is typed for a string.
Augment = list[str | Augmentation] | str | Augmentation


def _light(size: Size) -> Augmentation:
    return ShiftCrop(padding="auto", flip=True, size=size)


def _standard(size: Size) -> Augmentation:
    return Chain([ResizedCrop(size), ColorJitter(0.4, 0.4, 0.4)])


def _strong(size: Size) -> Augmentation:
    return Chain([ResizedCrop(size), RandAugment(num_ops=2, magnitude=9), RandomErasing(prob=0.25)])


def _auto(size: Size) -> Augmentation:
    return Chain([ResizedCrop(size), AutoAugment("imagenet")])


def _auto_cifar10(size: Size) -> Augmentation:
    return Chain([_light(size), AutoAugment("cifar10")])


def _auto_svhn(size: Size) -> Augmentation:
    return Chain([ShiftCrop(padding="auto", size=size), AutoAugment("svhn")])


def _randaugment(size: Size) -> Augmentation:
    return Chain([ResizedCrop(size), RandAugment()])


def _trivialaugment(size: Size) -> Augmentation:
    return Chain([ResizedCrop(size), TrivialAugment()])


def _augmix(size: Size) -> Augmentation:
    return Chain([ResizedCrop(size), AugMix()])


def _erasing(size: Size) -> Augmentation:
    return Chain([ResizedCrop(size), RandomErasing()])


_MAKERS: dict[str, Callable[[Size], Augmentation] | None] = {
    "none": None,
    "light": _light,
    "standard": _standard,
    "strong": _strong,
    "auto": _auto,
    "auto_cifar10": _auto_cifar10,
    "auto_svhn": _auto_svhn,
    "randaugment": _randaugment,
    "trivialaugment": _trivialaugment,
    "augmix": _augmix,
    "erasing": _erasing,
}

POLICIES = tuple(_MAKERS)
"""Names that `policy` knows."""


def policy(name: str, size: tuple[int, int]) -> Augmentation | None:
    """The augmentation that a policy's name stands for, making images of `size`.

    Args:
        name: One of `POLICIES`, "none" is None; or a YAML file of sub-policies, which is `AutoAugment` alone.
        size: Height and width of the results, pixels. Images may come larger.

    Raises:
        ValueError: There is no such policy, or no policy in the file.

    Example:
        >>> policy("light", (32, 32)).draws
        3
    """
    if name.endswith((".yaml", ".yml")):
        return AutoAugment(name)
    if name not in _MAKERS:
        raise ValueError(
            f"no augmentation policy {name!r}{nearest(name, POLICIES)}; there are {', '.join(POLICIES)}; "
            "`lightning_vision list augmentations` tells more"
        )
    make = _MAKERS[name]
    return None if make is None else make(size)


def augmentation_for(augment: Augment, size: tuple[int, int]) -> Augmentation | None:
    """What the `augment` of a datamodule stands for, making images of `size`; None changes nothing.

    Args:
        augment: The name of a policy, a policy's YAML file, an `Augmentation`, or a list of these, which act in its
            order.
        size: Height and width of the results, pixels.

    Raises:
        ValueError: It is none of those, or names no policy.
    """
    stages = []
    for it in augment if isinstance(augment, list) else [augment]:
        if not isinstance(it, str | Augmentation):
            known = "the name of a policy, its YAML file, an Augmentation or a list of these"
            raise ValueError(f"augment is {it!r}; give {known}.")
        stages.append(policy(it, size) if isinstance(it, str) else it)
    kept = [stage for stage in stages if stage is not None]
    return Chain(kept) if len(kept) > 1 else next(iter(kept), None)

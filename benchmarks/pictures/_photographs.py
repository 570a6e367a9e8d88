"""What the pictures of recipes share: a photograph, and an augmentation as a recipe describes it."""

from typing import Any

from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor

from lightning_vision.configs import read_config, shipped
from lightning_vision.datamodules.augmentation import Chain, RandAugment, RandomErasing, ResizedCrop
from lightning_vision.images import convert_image

__all__ = ["described", "temple"]

KINDS = {kind.__name__: kind for kind in (RandAugment, RandomErasing, ResizedCrop)}


def temple(side: int) -> Tensor:
    """scikit-learn's photograph of a temple, a square from its middle, uint8 `(3, side, side)`."""
    return convert_image(Image.fromarray(load_sample_image("china.jpg")), 3, (side, side))


def described(recipe: str, side: int, **changed: Any) -> Chain:
    """The augmentation that a shipped config names, with crops of `side` pixels and RandAugment `changed`."""
    given: dict[str, Any] = read_config(shipped()[f"classification/{recipe}"])["data"]["init_args"]["augment"]
    other = {"ResizedCrop": {"size": side}, "RandAugment": changed}
    stages = [(stage["class_path"], stage.get("init_args", {})) for stage in given["init_args"]["stages"]]
    return Chain([KINDS[kind](**settings | other.get(kind, {})) for kind, settings in stages])

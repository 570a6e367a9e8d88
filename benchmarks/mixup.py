"""MixUp of a batch of ImageNet's size against torchvision, timm and kornia."""

from kornia.augmentation import RandomMixUpV2
from timm.data import Mixup
from torchvision.transforms import v2

from lightning_vision.callbacks import MixUp

from .mixing import CLASSES, mixing_rows
from .side_by_side import Row

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Mix (256, 3, 224, 224), float32.

    Args:
        quick: One repetition with (8, 3, 32, 32).
    """
    peers = {
        "torchvision": v2.MixUp(alpha=1.0, num_classes=CLASSES),
        "timm": Mixup(mixup_alpha=1.0, label_smoothing=0.0, num_classes=CLASSES),
        "kornia": RandomMixUpV2(p=1.0, same_on_batch=True, data_keys=["input", "class"]),
    }
    return mixing_rows(MixUp, peers, quick)

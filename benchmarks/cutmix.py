"""CutMix of a batch of ImageNet's size against torchvision, timm and kornia."""

from kornia.augmentation import RandomCutMixV2
from timm.data import Mixup
from torchvision.transforms import v2

from lightning_vision.callbacks import CutMix

from .mixing import CLASSES, mixing_rows
from .side_by_side import Row

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Mix (256, 3, 224, 224), float32.

    Args:
        quick: One repetition with (8, 3, 32, 32).
    """
    peers = {
        "torchvision": v2.CutMix(alpha=1.0, num_classes=CLASSES),
        "timm": Mixup(mixup_alpha=0.0, cutmix_alpha=1.0, label_smoothing=0.0, num_classes=CLASSES),
        "kornia": RandomCutMixV2(p=1.0, same_on_batch=True, use_correct_lambda=True, data_keys=["input", "class"]),
    }
    return mixing_rows(CutMix, peers, quick)

"""Several trained classifiers that answer as one: the mean of their logits.

Four networks evaluated so are what Szegedy et al. 2016, arXiv:1602.07261, section 5 report as their best result.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_vision.base.module import shortened
from lightning_vision.base.weights import module_from_checkpoint

from .classifier import ImageClassifier

__all__ = ["LogitEnsemble"]

# What an image must have gone through alike; class names are compared by themselves.
PREPARED = ("channels", "image_size", "resize", "mean", "std")


class LogitEnsemble(nn.Module):
    """Averages the logits of classifiers from several checkpoints.

    It stands in the place of a network, `ImageClassifier(backbone=LogitEnsemble([...]))`, so what evaluates, predicts
    and exports one classifier does so with all of them. Members' own calibration is left out: it was fitted to one
    member, and the ensemble can be calibrated as a whole. Members that give several labels need `loss="bce"` of the
    `ImageClassifier`, as they had it.

    Args:
        checkpoints: Paths of checkpoints of `ImageClassifier`, at least one, trained on the same classes, with one
            label an image or all with several, and on images prepared alike; architectures may differ.

    Attributes:
        num_classes: K.
        multilabel: Whether the members give several labels an image.
        preprocessing: How an image is prepared for them, as plain data.

    Shape:
        `(B, C, H, W)` to `(B, K)`.

    Raises:
        FileNotFoundError: a checkpoint does not exist.
        ValueError: no checkpoint is given, one is of another task, or it has other classes, another kind of labels or
            other preprocessing than the first.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.datamodules import Digits
        >>> off = ("logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary")
        >>> trainer = Trainer(max_steps=1, accelerator="cpu", **dict.fromkeys(off, False))
        >>> trainer.fit(ImageClassifier("resnet8_cifar", num_classes=10, in_channels=1), datamodule=Digits())
        >>> trainer.save_checkpoint("member.ckpt")
        >>> LogitEnsemble(["member.ckpt", "member.ckpt"])(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])

    Reference: Szegedy et al. 2016, arXiv:1602.07261

    See also:
        The callbacks with `snapshots`, whose members are moments of one training.
    """

    def __init__(self, checkpoints: Sequence[str | Path]) -> None:
        super().__init__()
        if isinstance(checkpoints, (str, Path)) or not checkpoints:
            raise ValueError(f"LogitEnsemble: checkpoints is {checkpoints!r}; give a list of at least one path")
        members = [_member(path) for path in checkpoints]
        first = members[0]
        for path, member in zip(checkpoints, members, strict=True):
            if (member.num_classes, member.class_names) != (first.num_classes, first.class_names):
                theirs, ours = (shortened(it.class_names, 3) for it in (member, first))
                raise ValueError(
                    f"LogitEnsemble: {path} has other classes than {checkpoints[0]} ({theirs} and {ours}); members "
                    "must be trained on the same data"
                )
            if member.multilabel != first.multilabel:
                raise ValueError(
                    f"LogitEnsemble: {path} gives {_kind(member)} and {checkpoints[0]} {_kind(first)}; members must "
                    "be trained with losses of one kind"
                )
            if other := [name for name in PREPARED if _told(member, name) != _told(first, name)]:
                name = other[0]
                raise ValueError(
                    f"LogitEnsemble: {path} was trained on images prepared otherwise than those of {checkpoints[0]} "
                    f"({name} {_told(member, name)} and {_told(first, name)}); members must see the same image"
                )
        self.num_classes, self.multilabel = first.num_classes, first.multilabel
        self.preprocessing = first.preprocessing
        self.members = nn.ModuleList(member.network for member in members)

    def forward(self, image: Tensor) -> Tensor:
        """Mean logits `(B, K)` of normalised images `(B, C, H, W)`."""
        return torch.stack([member(image) for member in self.members]).mean(0)


def _member(path: str | Path) -> ImageClassifier:
    module = module_from_checkpoint(path)
    if not isinstance(module, ImageClassifier):
        kind = type(module).__name__
        raise ValueError(f"LogitEnsemble: {path} holds a {kind}; members must be checkpoints of ImageClassifier")
    return module


def _kind(member: ImageClassifier) -> str:
    return "several labels an image" if member.multilabel else "one label an image"


def _told(member: ImageClassifier, name: str) -> Any:
    found = (member.preprocessing or {}).get(name)
    return list(found) if isinstance(found, (list, tuple)) else found

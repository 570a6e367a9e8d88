"""A split's images and labels as a model gets them, in any datamodule."""

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from lightning_vision.classification.calibration import Calibration
from lightning_vision.classification.classifier import ImageClassifier
from lightning_vision.classification.targets import image_and_target, known_labels
from lightning_vision.datamodules.common.datamodule import VisionDataModule

__all__ = ["KnownImages", "known_splits"]


class KnownImages:
    """A split of a datamodule: normalised images on the model's device, and known labels, again and again.

    Args:
        datamodule: Set up for the split.
        name: `val` or `test`.
        module: In evaluation mode.
    """

    def __init__(self, datamodule: Any, name: str, module: ImageClassifier) -> None:
        self.datamodule, self.module = datamodule, module
        ours = isinstance(datamodule, VisionDataModule)
        absent = ours and getattr(datamodule, f"{name}_set") is None
        offered = not absent and is_overridden(f"{name}_dataloader", datamodule)
        loaders = getattr(datamodule, f"{name}_dataloader")() if offered else None
        self.loaders = loaders if isinstance(loaders, list | tuple) else [] if loaders is None else [loaders]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        data, module = self.datamodule, self.module
        for number, loader in enumerate(self.loaders):
            for batch in loader:
                batch = data.on_before_batch_transfer(batch, number)
                batch = data.transfer_batch_to_device(batch, module.device, number)
                image, target = image_and_target(data.on_after_batch_transfer(batch, number))
                yield image, known_labels(target, module.num_classes, module.multilabel)

    def outputs(self, calibration: Calibration | None = None) -> tuple[Tensor, Tensor]:
        """Logits `(N, K)`, calibrated where a calibration is given, and what is known of the images, on the CPU."""
        found = calibration or Calibration()
        logits, known = [], []
        with torch.no_grad():
            for image, target in self:
                logits.append(found.logits(self.module, image).float().cpu())
                known.append(target.cpu())
        return torch.cat(logits), torch.cat(known)


def known_splits(datamodule: Any, module: ImageClassifier) -> dict[str, KnownImages]:
    """`val` and `test`, as far as a datamodule has them; it is set up for both.

    Raises:
        ValueError: it has no `val`.
    """
    splits = {}
    for name, stage in (("val", "validate"), ("test", "test")):
        datamodule.setup(stage)
        split = KnownImages(datamodule, name, module)
        if split.loaders:
            splits[name] = split
    if "val" not in splits:
        source = type(datamodule).__name__
        raise ValueError(f"{source} has no validation split, on which a calibration is fitted; give it one")
    return splits

"""The features seam: what a layer makes of some images of a validation or test, read while their steps run anyway.

Public hooks used: those of `evaluation.py`, `on_fit_start`; torch's forward hooks, during the batches that are read.
"""

from abc import abstractmethod
from collections.abc import Mapping
from math import inf
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_vision.inspection.layers import find_layer

from ._answer import LastAnswer
from ._checks import whole
from ._fields import Fields
from ._listener import Listener
from ._metadata import class_names
from ._readings import features_of
from ._unnoticed import as_if_nobody_looked
from .drawings import Drawings
from .evaluation import Stage

__all__ = ["Features"]


class Features(Drawings):
    """Reads features of images in the first process and draws them when all batches are over.

    Features are what the module's method `features(images)` answers, where it has one; else what the linear layer is
    given that puts out the answer; or what a named layer puts out, averaged over positions. They are read in as many
    batches as hold the samples, spread evenly over the loader, because files are often sorted by class; of each the
    first images. Of several calls in a step (views of an image) the first is read. A compiled module runs those batches
    eagerly, for torch's hooks do not fire in compiled code. Numbers that are drawn with the picture go to the loggers
    as `STAGE/TITLE_NAME`.

    Args:
        samples: How many images, >= 2.
        layer: Dotted name of the layer; None asks `features`, or finds the linear one that puts out the answer.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, if batches are mappings; in other batches they come second.
        others: Go to the next base class, among them `every_n_epochs` and `name`.

    Raises:
        ValueError: `samples` is no integer >= 2; before the first step, if there is no such layer; in the first batch,
            sanity check included, if no linear layer puts out the answer, or a layer has no row for each image.
    """

    def __init__(self, *, samples: int, layer: str | None, image_key: str, target_key: str, **others: Any) -> None:
        super().__init__(**others)
        kind = type(self).__name__
        whole(kind, "samples", samples, 2)
        self.samples, self.layer, self.image_key, self.target_key = samples, layer, image_key, target_key
        self.fields = Fields(kind, image_key, target_key)
        self._listener: Listener | None = None
        self._answer: LastAnswer | None = None
        self._part: nn.Module | None = None
        self._parts: list[tuple[Tensor, Tensor | None]] = []
        # In how many batches samples are read, known from the first on, and of how many.
        self._spread, self._batches = 0, 0.0

    @abstractmethod
    def draw(
        self, pl_module: LightningModule, features: Tensor, labels: Tensor | None, names: list[str] | None
    ) -> tuple[NDArray[np.uint8] | None, Mapping[str, float]]:
        """A picture `(H, W, 3)`, or None, and numbers by name.

        Args:
            pl_module: Whose features they are.
            features: Float32 `(N, D)` on the CPU.
            labels: Classes `(N,)` or labels `(N, K)` on the CPU, if the batches have them.
            names: Of the classes, if datamodule or module say so.
        """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.undo_later(self._release)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if not self.off:
            self._named(pl_module)

    def starts(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        self._release()
        self._part = self._named(pl_module)
        counts: Any = trainer.num_test_batches if stage == "test" else trainer.num_val_batches
        if trainer.sanity_checking:
            counts = trainer.num_sanity_val_batches
        self._batches = counts[0] if isinstance(counts, list) else counts

    def batch_starts(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_index: int, stage: Stage
    ) -> None:
        if not trainer.is_global_zero or not self._wanted(batch_index) or self._asks(pl_module):
            return
        if self._part is None:
            self._answer = LastAnswer(pl_module)
        linear = [it for it in pl_module.modules() if isinstance(it, nn.Linear)]
        parts = linear if self._part is None else [self._part]
        shape = getattr(self.fields.image(batch), "shape", (1, 1))
        self._listener = Listener(pl_module, parts, self.layer, shape[-2:])

    def batch_ends(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_index: int, stage: Stage
    ) -> None:
        if self._asks(pl_module):
            if trainer.is_global_zero and self._wanted(batch_index):
                with as_if_nobody_looked(trainer, pl_module):
                    self._add(batch, features_of(type(self).__name__, pl_module, self.fields.image(batch)))
            return
        if self._listener is None:
            return
        self._listener.undo()
        heard, self._listener = self._listener.heard, None
        if self._answer is not None:
            self._answer.undo()
            self._part, self._answer = self._classifier(pl_module, heard, self._answer.take()), None
        found = [features for part, features, _ in heard if part is self._part]
        count = len(self.fields.image(batch))
        if not found or len(found[0]) != count:
            got = f"{len(found[0])} rows for {count} images" if found else "no features (B, D) in a step"
            called = "that answers" if self.layer is None else repr(self.layer)
            raise ValueError(
                f"{type(self).__name__}: layer {called} of {type(pl_module).__name__} gave {got}; name another one "
                "with layer=."
            )
        self._add(batch, found[0])

    def epoch_ends(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        parts = self._parts
        self._release()
        if not parts:
            return
        features = torch.cat([it for it, _ in parts])[: self.samples].cpu()
        labels = [it for _, it in parts if it is not None]
        target = torch.cat(labels)[: self.samples].cpu() if len(labels) == len(parts) else None
        names = class_names(trainer, pl_module)
        drawn = self.attempted(trainer, lambda: self.draw(pl_module, features, target, names))
        if drawn is None or trainer.sanity_checking:
            return
        picture, numbers = drawn
        if picture is not None:
            self.keep(trainer, stage, picture)
        for logger in trainer.loggers if numbers else ():
            logger.log_metrics({f"{stage}/{self.called}_{key}": it for key, it in numbers.items()}, trainer.global_step)

    def _asks(self, pl_module: LightningModule) -> bool:
        """Whether the module itself says what its features are."""
        features = getattr(pl_module, "features", None)
        # A part of that name is a layer like others, and may put out maps.
        return self.layer is None and callable(features) and not isinstance(features, nn.Module)

    def _add(self, batch: Any, features: Tensor) -> None:
        """Keep the first features of a batch, and their labels."""
        count = len(features)
        self._spread = self._spread or int(min(-(-self.samples // count), self._batches))
        some = -(-self.samples // self._spread)
        labelled = self.target_key in batch if isinstance(batch, Mapping) else len(batch) > 1
        labels = self.fields.target(batch) if labelled else None
        if not isinstance(labels, Tensor) or labels.ndim not in (1, 2) or len(labels) != count:
            labels = None
        self._parts.append((features[:some].float(), None if labels is None else labels[:some].clone()))

    def _named(self, pl_module: LightningModule) -> nn.Module | None:
        """The layer that was named; a ValueError if there is no such one, or without a name nothing to be found."""
        if self.layer is not None:
            return find_layer(pl_module, self.layer)
        if not self._asks(pl_module) and not any(isinstance(it, nn.Linear) for it in pl_module.modules()):
            raise self._headless(pl_module)
        return None

    def _classifier(
        self, pl_module: LightningModule, heard: list[tuple[nn.Module, Tensor, torch.Size]], answer: Tensor | None
    ) -> nn.Module:
        """The last layer whose output has the shape of the answer; without an answer the last one."""
        for part, _, shape in reversed(heard):
            if answer is None or shape == answer.shape:
                return part
        raise self._headless(pl_module)

    def _headless(self, pl_module: LightningModule) -> ValueError:
        return ValueError(
            f"{type(self).__name__}: no linear layer of {type(pl_module).__name__} puts out its answer, so it is not "
            "known what the features are; name a layer with layer=."
        )

    def _wanted(self, batch_index: int) -> bool:
        """Whether a batch is read: the first, and when its size is known the others that are spread over the loader."""
        if not self._spread or self._batches == inf:
            return batch_index < max(self._spread, 1)
        return any(batch_index == place * int(self._batches) // self._spread for place in range(self._spread))

    def _release(self) -> None:
        for it in (self._listener, self._answer):
            if it is not None:
                it.undo()
        self._listener = self._answer = None
        self._part, self._parts, self._spread = None, [], 0

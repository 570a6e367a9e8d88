"""The judged seam: methods that mix a batch by what they found of each of its samples when they last looked at all.

Public hooks used: those of `targets.py`, `on_train_epoch_start`.
"""

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from ._bank import placed_batches
from ._heard import own_paths
from ._last_inputs import last_inputs
from ._readings import labels_in
from ._shares import by_the_first, in_order
from ._training_samples import TrainingSamples
from ._unnoticed import as_if_nobody_looked
from .targets import Targets

__all__ = ["Judged"]


class Judged(Targets):
    """Mixes images and labels, and knows of each sample in the batch what was found of it before this or another epoch.

    Before the epochs that `judges_in` names all training images are seen as evaluation sees them, once, by the network
    as it is then (`_last_inputs.py`), and nothing is left of it in random streams, loaders and the module. What was
    found is part of the callback's state. Before the first look batches are left alone.

    Args:
        network: Path of the part of the module that makes logits `(B, K)` of images; empty is the module itself.
        others: Go to the next base class.

    Raises:
        ValueError: at set-up, if there is no such part or it cannot be called with images; before the first batch, if
            the loader does not tell its samples apart, or there are several; at the first batch that has them, or
            before a look, images that are not floating point and labels that `takes` refuses; before a look, if images
            have no class each, features are not finite, or what `judge` raises.
    """

    stands_alone = "it asks the training set which of its samples are in the batch"

    def __init__(self, *, network: str, **others: Any) -> None:
        super().__init__(**others)
        self.network = network
        self.judged: Tensor | None = None
        # Rows of `judged` of the samples in the batch at hand, on the CPU; None before the first look.
        self.here: Tensor | None = None
        self._training_set: TrainingSamples | None = None

    @abstractmethod
    def judges_in(self, epoch: int) -> bool:
        """Whether all samples are looked at before this epoch, counted from 0."""

    @abstractmethod
    def judge(self, features: Tensor, labels: Tensor) -> Tensor:
        """What to keep of each training sample, float32 `(N, M)` on the CPU; called on the first rank.

        Args:
            features: Float32 `(N, D)` on the CPU.
            labels: Classes, int64 `(N,)`.
        """

    def needs_features(self) -> bool:
        """Whether `judge` wants features; else only labels are read, and D is 0."""
        return True

    def known_for(self, samples: int) -> None:
        """Refuse a training set of so many samples before its first batch, if it does not fit what was given."""

    def takes(self, labels: Tensor) -> None:
        """Refuse labels, int64 `(B,)`, that `judge` cannot take; asked of each batch until all samples were seen."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit" or self.off:
            return
        kind = type(self).__name__
        own_paths(kind, "the module", pl_module, [self.network])
        if not self.network and self.needs_features() and type(pl_module).forward is LightningModule.forward:
            raise ValueError(
                f"{kind}: {type(pl_module).__name__} has no forward of images to ask for features; name with network= "
                "the part that makes one row of logits an image."
            )
        if trainer.global_step == 0:
            self.judged = None
        self._training_set = TrainingSamples(kind, trainer)
        self.undo_later(self._leave)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        epoch = trainer.current_epoch
        if self.off or self._training_set is None:
            return
        self.known_for(self._training_set.samples)
        # Not called when a run is resumed inside an epoch, which goes on with what was found before its first batch.
        if self.judges_in(epoch):
            self.judged = self._looked(trainer, pl_module, self._training_set.samples)

    def change(self, batch: Any, random: np.random.Generator) -> Any:
        assert self._training_set is not None
        self._refuse_whole_numbers(images := self.fields.image(batch))
        if self.judged is None and (labels := labels_in(self.fields, batch, len(images))) is not None:
            self.takes(labels)
        positions = self._training_set.here()
        self.here = None if self.judged is None else self.judged[positions]
        return super().change(batch, random)

    def mixes_in(self, epoch: int) -> bool:
        return self.here is not None

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | ({} if self.judged is None else {"judged": self.judged})

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        if trainer.state.fn == TrainerFn.FITTING:
            self.judged = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        evaluates = self._evaluates
        super().load_state_dict(state_dict)
        if not evaluates:
            self.judged = state_dict.get("judged")

    def _looked(self, trainer: Trainer, pl_module: LightningModule, samples: int) -> Tensor:
        """Rows of all samples, on all ranks; NaN for those that the data leave out."""
        kind = type(self).__name__
        network = pl_module.get_submodule(own_paths(kind, "the module", pl_module, [self.network])[self.network])
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        with as_if_nobody_looked(trainer, pl_module):
            pl_module.eval()
            for positions, batch in placed_batches(trainer, pl_module):
                self._refuse_whole_numbers(images := self.fields.image(batch))
                labels = labels_in(self.fields, batch, len(positions))
                if labels is None:
                    raise ValueError(
                        f"{kind}: it needs a class for each training image, and the batches have no whole numbers (B,) "
                        "as labels; let the loader yield (images, labels), or name their place with target_key=."
                    )
                features = (
                    last_inputs(kind, network, images) if self.needs_features() else images.new_empty(len(images), 0)
                )
                parts.append((positions.to(labels.device), features.float(), labels))
        places, features, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        features, labels, places = (it.cpu() for it in in_order(trainer, places, features, labels, places))
        if not bool(features.isfinite().all()):
            raise ValueError(f"{kind}: some features of the training images are not finite; lower the learning rate.")
        self.takes(labels)
        rows = by_the_first(trainer, lambda: self.judge(features, labels))
        judged = torch.full((samples, rows.shape[1]), float("nan"))
        judged[places] = rows
        return judged

    def _refuse_whole_numbers(self, images: Any) -> None:
        if isinstance(images, Tensor) and not images.is_floating_point():
            dtype = str(images.dtype).removeprefix("torch.")
            raise ValueError(
                f"{type(self).__name__}: images are {dtype}, and floating-point ones are asked for features and mixed; "
                "convert them in the dataset or in on_after_batch_transfer."
            )

    def _leave(self) -> None:
        if self._training_set is not None:
            self._training_set.undo()
        self._training_set = self.here = None

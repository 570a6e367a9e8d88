"""The prepared seam: methods that look at all training images once, by their features, before the first step.

Public hooks used: those of `featured.py`, `on_train_start`, `state_dict`, `load_state_dict`.
"""

from abc import abstractmethod
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from ._bank import bank_batches
from ._checks import whole
from ._readings import from_all_ranks
from ._shares import by_the_first
from ._unnoticed import as_if_nobody_looked
from .featured import Featured

__all__ = ["Prepared"]


class Prepared(Featured):
    """Mixes by what it made of the features of the training images, read once, without augmentation (`_bank.py`).

    What it made is part of the callback's state: a resumed run reads nothing and goes on with it. Reading leaves
    nothing behind in random streams, loaders and the module.

    Args:
        max_samples: Training images that are read at most, over all ranks; None takes all.
        others: Go to the next base class, among them `features`.

    Raises:
        ValueError: `max_samples` is no whole number of at least 1; before the first step, if nobody has training images
            to read, if features are not finite, or what `prepare` raises.
    """

    def __init__(self, *, max_samples: int | None, **others: Any) -> None:
        super().__init__(**others)
        if max_samples is not None:
            whole(type(self).__name__, "max_samples", max_samples, 1)
        self.max_samples = max_samples
        self.prepared: Tensor | None = None  # during a fit on its device

    @abstractmethod
    def prepare(self, features: Tensor) -> Tensor:
        """What to keep of the features `(N, D)`, float32 on the CPU, of N training images; a tensor like it."""

    def given(self) -> Tensor | None:
        """What the user gave in the place of what `prepare` would make, so that nothing is read."""
        return None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and trainer.global_step == 0:
            self.prepared = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self.off:
            return
        if self.prepared is None:
            self.prepared = self.given()
        if self.prepared is None:
            features = self._read(trainer, pl_module)
            # Ranks that computed it themselves might differ in the last bit.
            self.prepared = by_the_first(trainer, lambda: self.prepare(features))
        self.prepared = self.prepared.to(pl_module.device)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | ({} if self.prepared is None else {"prepared": self.prepared.cpu()})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.prepared = state_dict.get("prepared")

    def _read(self, trainer: Trainer, pl_module: LightningModule) -> Tensor:
        kind, stage = type(self).__name__, trainer.state.stage
        own = None if self.max_samples is None else -(-self.max_samples // trainer.world_size)
        parts: list[Tensor] = []
        try:
            # So that hooks of the data augment nothing, and nobody changes these batches.
            trainer.validating = True
            with as_if_nobody_looked(trainer, pl_module), torch.no_grad():
                # A loader that shuffles by the global stream gives the same images each time.
                torch.manual_seed(0)
                batches = bank_batches(trainer, pl_module)
                for batch in batches or ():
                    parts.append(self.features_of(self.fields.image(batch)))
                    if own is not None and sum(map(len, parts)) >= own:
                        break
                if batches is not None:
                    batches.close()
        finally:
            trainer.state.stage = stage
        if not parts:
            raise ValueError(
                f"{kind}: process {trainer.global_rank} found no training images to read; give the Trainer a training "
                "loader or a datamodule."
            )
        features = from_all_ranks(trainer, torch.cat(parts)[:own])[: self.max_samples].cpu()
        if not bool(features.isfinite().all()):
            raise ValueError(f"{kind}: some features of the training images are not finite; give another network.")
        return features

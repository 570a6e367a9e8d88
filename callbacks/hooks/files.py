"""The files seam: what is written of the module's weights beside its checkpoints, while a fit goes on and at its end.

The weights are what a checkpoint would hold: whatever puts an average, folded or otherwise finished weights into files
does so here, too, for the strategy is asked for them.

Public hooks used: `on_fit_start`, `on_train_epoch_end`, `on_fit_end`.
"""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from ._checks import whole
from ._live_tensors import plain_name
from ._run_folder import run_folder
from .method import Method, Place

__all__ = ["Files"]


class Files(Method):
    """Writes a file of the module's weights when a fit ends, and every so many epochs.

    A rehearsal (`fast_dev_run`) writes nothing; a fit that fails leaves the last file of its epochs.

    Args:
        every_n_epochs: Epochs from one file to the next, which takes its place, >= 1; None writes at the end only.
        filename: Of the file, in the run's folder.
        others: Go to the next base class, among them `name`.

    Raises:
        ValueError: from the constructor, for a setting out of its range; at set-up, if another callback writes the same
            file; before the first step, if `admit` refuses the module.
    """

    place = Place.RUN

    def __init__(self, *, every_n_epochs: int | None, filename: str, **others: Any) -> None:
        super().__init__(**others)
        if every_n_epochs is not None:
            whole(type(self).__name__, "every_n_epochs", every_n_epochs, 1)
        self.every_n_epochs, self.filename = every_n_epochs, filename
        # What the process that writes has written last.
        self.written: Path | None = None

    @abstractmethod
    def admit(self, pl_module: LightningModule) -> None:
        """Refuse a module of which nothing could be written."""

    @abstractmethod
    def write(self, trainer: Trainer, pl_module: LightningModule, tensors: Mapping[str, Tensor], path: Path) -> None:
        """Write the file, as a whole; called on one process.

        Args:
            trainer: It is fitting.
            pl_module: The module.
            tensors: Its weights and buffers by name as in a checkpoint, without `torch.compile`'s wrappers.
            path: Of the file, in a folder that exists.
        """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        same = [it for it in self.rivals(trainer, Files) if isinstance(it, Files) and it.filename == self.filename]
        if stage == "fit" and same:
            raise ValueError(
                f"{type(self).__name__}: {type(same[0]).__name__} also writes {self.filename}; give one of them "
                "another filename=."
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        self.admit(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if self.every_n_epochs is not None and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._write(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_end(trainer, pl_module)
        self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # Lightning declares it nowhere
            return
        # All ranks ask, for a strategy may gather weights; one writes.
        tensors = {plain_name(name): it for name, it in trainer.strategy.lightning_module_state_dict().items()}
        if trainer.is_global_zero:
            folder = run_folder(trainer)
            folder.mkdir(parents=True, exist_ok=True)
            self.write(trainer, pl_module, tensors, folder / self.filename)
            self.written = folder / self.filename

"""The training-order seam: which samples of the training set an epoch trains on.

Public hooks used: `setup`, `on_fit_start`, `on_train_batch_start`, `state_dict`, `load_state_dict`.
"""

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from ._checks import takes_batches
from ._classes import refuse_unlike_classes
from ._fields import Fields
from ._heard import own_paths
from ._run_folder import run_folder
from ._sample_scores import sample_scores
from ._training_samples import TrainingSamples
from ._visits import Visit
from .method import Method, Place

__all__ = ["TrainingOrder", "Visit"]


class TrainingOrder(Method):
    """Decides before each epoch which samples it visits; a method says `visits`.

    The loader stays the user's: its order, workers and collation are kept, samples that are not visited are left out of
    its order, so their time is saved. An epoch of fewer samples has fewer batches and optimizer steps; validation, logs
    and the end of training follow the batches that there are. What was decided is saved, so a run that is resumed
    inside an epoch goes on with the same samples. What was learned of the samples is kept for a second fit of the same
    Trainer, which goes on with it: a fit on other data takes another Trainer.

    Args:
        network: Path of the part of the module that makes logits `(B, K)` of images; empty is the module itself.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, if batches are mappings; in other batches they come second.
        others: Go to the next base class, among them `name`.

    Raises:
        ValueError: at set-up, if the Trainer has two of them or `overfit_batches`, there is no such part, or
            `training_step` fetches its batches itself; before the first batch, if the loader does not tell its samples
            apart or gives some of them more than once, or there are several.
    """

    place = Place.BATCH
    rests = "batch norms see, and networks draw for, the batches that there are"
    shortens_epochs = "an epoch has the batches of the samples that it visits"

    def __init__(self, *, network: str, image_key: str, target_key: str, **others: Any) -> None:
        super().__init__(**others)
        self.network, self.image_key, self.target_key = network, image_key, target_key
        self.fields = Fields(type(self).__name__, image_key, target_key)
        self.training_set: TrainingSamples | None = None
        # Of the Trainer; None of a training that ends otherwise.
        self.max_epochs: int | None = None
        # Positions of the samples in the batch at hand.
        self.here = torch.empty(0, dtype=torch.int64)
        self._planned: tuple[int, Visit | None] | None = None
        self._running: tuple[Trainer, LightningModule, nn.Module] | None = None
        self._evaluates = self._rehearsed = False

    @abstractmethod
    def visits(self, epoch: int, samples: int) -> Visit | None:
        """What an epoch visits, alike on all ranks; None leaves it alone.

        Called once before each epoch, on all ranks.

        Args:
            epoch: From 0.
            samples: How many there are in the training set.
        """

    def scored(self, score: Callable[[nn.Module, Any, Any], Tensor], batches: int | None = None) -> Tensor:
        """A number for each training sample as the network is now, float32 `(samples,)` on the CPU.

        Images are as evaluation sees them, the module is in evaluation mode, and nothing of it is left. From `visits`
        and `rehearse` only.

        Args:
            score: Of the network, and of the images and labels of a batch, `(B,)`.
            batches: So many of each rank at most; samples of others have NaN. None takes all.
        """
        assert self._running is not None and self.training_set is not None
        trainer, pl_module, network = self._running
        return sample_scores(
            trainer, pl_module, self.fields, self.training_set.samples, lambda x, y: score(network, x, y), batches
        )

    def answers(self, network: nn.Module, images: Any, targets: Any) -> Tensor:
        """Logits of images, of which no gradient is kept; for a `score`.

        Raises:
            ValueError: there is no network to be asked, it makes no logits, or labels are no classes of theirs.
        """
        kind, part = type(self).__name__, self.network or type(network).__name__
        if type(network).forward is LightningModule.forward:
            raise ValueError(
                f"{kind}: {part} has no forward of images to ask for logits; name with network= the part of the module "
                "that makes logits of images."
            )
        with torch.no_grad():
            logits: Tensor = network(images)
        refuse_unlike_classes(kind, part, logits, targets, len(images))
        return logits

    def report_file(self, name: str) -> Path | None:
        """Where the run keeps a report of this name; None on all ranks but the first."""
        assert self._running is not None
        trainer = self._running[0]
        return run_folder(trainer) / "report" / name if trainer.is_global_zero else None

    def ready(self) -> str | None:
        """Refuse what does not fit the training, before it begins, or return a warning."""
        return None

    def rehearse(self) -> None:
        """Refuse what would fail later in the fit; called once in it, before the first epoch is decided on."""
        assert self.training_set is not None
        self.training_set.refuse_unchoosable()

    def begin(self) -> None:
        """Forget what was learned of the samples of another run."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit" or self.off:
            return
        kind = type(self).__name__
        if rivals := self.rivals(trainer, TrainingOrder):
            kinds = " and ".join(type(it).__name__ for it in (self, *rivals))
            raise ValueError(f"{kind}: {kinds} would choose the samples of the same epochs; keep one of them.")
        overfit: int | float = trainer.overfit_batches  # type: ignore[attr-defined]  # Lightning declares it nowhere
        if overfit > 0:
            raise ValueError(
                f"{kind}: overfit_batches={overfit} says which samples are trained on, as {kind} does; "
                "keep one of them."
            )
        takes_batches(kind, pl_module)
        self.part(pl_module)
        # A rehearsal (`fast_dev_run`) visits what there is.
        plan = None if trainer.fast_dev_run else self._plan  # type: ignore[attr-defined]  # declared nowhere
        self.training_set = TrainingSamples(kind, trainer, plan)
        self.undo_later(self.training_set.undo)
        if trainer.global_step == 0:
            self._planned = None
            self.begin()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if self.off:
            return
        self.max_epochs = None if trainer.max_epochs in (None, -1) else int(trainer.max_epochs)
        if (warning := self.ready()) is not None:
            rank_zero_warn(warning)
        self._running, self._rehearsed = (trainer, pl_module, self.part(pl_module)), False
        assert self.training_set is not None
        self.training_set.decides = True
        self.undo_later(self._forget)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self.training_set is not None and not self.off:
            self.here = self.training_set.here()

    def part(self, pl_module: LightningModule) -> nn.Module:
        """What `network` names."""
        path = own_paths(type(self).__name__, "the module", pl_module, [self.network])[self.network]
        return pl_module.get_submodule(path)

    def _forget(self) -> None:
        self._running = None

    def _plan(self, epoch: int, samples: int) -> Visit | None:
        if self._planned is None or self._planned[0] != epoch:
            assert self._running is not None
            if not self._rehearsed:
                self._rehearsed = True
                self.rehearse()
            # Ranks that computed it themselves might differ in the last bit, and with it in the number of batches.
            self._planned = epoch, self._running[0].strategy.broadcast(self.visits(epoch, samples))
        return self._planned[1]

    def state_dict(self) -> dict[str, Any]:
        planned = None
        if self._planned is not None:
            epoch, visit = self._planned
            planned = {"epoch": epoch, "positions": None if visit is None else visit.positions.clone()}
            planned["ordered"] = visit is not None and visit.ordered
        return super().state_dict() | {"planned": planned}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        self._evaluates = trainer.state.fn != TrainerFn.FITTING

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        # Lightning also restores callbacks when it validates or tests a file.
        if not self._evaluates:
            self.restore(state_dict)
        self._evaluates = False

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave, in a fit."""
        planned = state["planned"]
        if planned is not None:
            positions: Tensor | None = planned["positions"]
            visit = None if positions is None else Visit(positions, planned["ordered"])
            self._planned = planned["epoch"], visit

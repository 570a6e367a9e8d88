"""The probing seam: numbers that say what a module's features are worth, each kept with how it was measured.

Public hooks used: those of `evaluation.py`, `on_train_start`, `on_fit_end`, `state_dict`, `load_state_dict`.
"""

import json
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from ._bank import bank_size
from ._checks import whole
from ._fields import Fields
from ._measurements import Measurement, keep_measurements
from ._readings import Read, Readings, from_all_ranks
from ._run_folder import run_folder
from ._unnoticed import as_if_nobody_looked
from .evaluation import Evaluation, Stage, epochs_apart
from .method import callbacks_of

__all__ = ["Probing", "Read"]


FILE = "probes.csv"


class Probing(Evaluation):
    """Measures features of a validation's or test's images, where asked for beside those of the training images.

    Features are what the module's `features(images)` answers, `(B, D)`, without gradients and in evaluation mode, to
    each batch of the first loader and, before `measure`, to the training images through the evaluation's transform (the
    bank, see `_bank.py`). All ranks have all rows. Probes of one Trainer share what was read, so three of them ask for
    no more forward passes than one. Nothing is left behind: random streams, modes, buffers, gradients, hooks and logs
    of the module are put back.

    A number is logged as `probe/NAME`, of tests as `probe/test/NAME` (callback metrics, too, so a checkpoint may be
    monitored by it), and stands as a line of `probes.csv` in the run's folder: protocol, settings, epoch, step, name
    and value. A resumed run replaces the lines that it measures again. The fit ends with one printed line for each
    number, its last value, never a maximum. In a sanity check and a rehearsal (`fast_dev_run`) the images of the
    validation stand for the bank, so that what is refused is refused soon, and nothing is written.

    A method names itself by `title` and `protocol`, says its `settings` and computes `measure`. It may read more of a
    batch (`extra`), refuse before the first step (`ready`), and act on what was found (`concluded`).

    Args:
        every_n_epochs: While fitting, validations of every n-th epoch are measured, from the first on, and the last one
            that `max_epochs` or `max_steps` allows; `validate` and `test` always. At 0 nothing is; with None, of a fit
            the last one only.
        max_samples: Training images in the bank at most, over all ranks; None takes all.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, if batches are mappings; in other batches they come second.
        others: Go to the next base class, among them `name`.

    Raises:
        ValueError: a number out of its range; at set-up, if the module has no `features`, or another callback calls its
            numbers alike; in the first batch, sanity check included, if features are not `(B, D)` or labels that are
            needed are missing.
    """

    needs = "features"
    # What numbers are called in logs and files, unless the callback has a name.
    title: ClassVar[str]
    uses_bank: ClassVar[bool] = False
    uses_labels: ClassVar[bool] = True

    def __init__(
        self,
        *,
        every_n_epochs: int | None = 1,
        max_samples: int | None = None,
        image_key: str = "image",
        target_key: str = "target",
        **others: Any,
    ) -> None:
        super().__init__(every_n_epochs=1 if every_n_epochs is None else every_n_epochs, **others)
        self.only_last = every_n_epochs is None
        if max_samples is not None:
            whole(type(self).__name__, "max_samples", max_samples, 1)
        self.max_samples, self.image_key, self.target_key = max_samples, image_key, target_key
        self.fields = Fields(type(self).__name__, image_key, target_key)
        # Of this fit.
        self.last: list[Measurement] = []
        # Whether the validation at hand counts for nothing, so that a bank of any size has to do.
        self.rehearsing = False
        self._readings: Readings | None = None
        self._extras: list[Mapping[str, Tensor]] = []
        self._evaluates = False

    @property
    @abstractmethod
    def protocol(self) -> str:
        """The name of the way to measure; not that of a published one whose settings were changed."""

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """What the numbers depend on, plain data; read after `measure`, and written with how many images were read."""

    @abstractmethod
    def measure(self, pl_module: LightningModule, images: Read, bank: Read | None) -> Mapping[str, float]:
        """Numbers by name; an empty name stands for the probe itself.

        Called on all ranks with the same rows, gradients enabled; it may draw and train what is its own, and make no
        collective call. All features are finite.

        Args:
            pl_module: In evaluation mode; whose weights it must not write to.
            images: Of the validation or test.
            bank: Of training, where `uses_bank`.
        """

    def extra(self, pl_module: LightningModule, image: Tensor, batch_index: int) -> Mapping[str, Tensor]:
        """What else to read of a batch, `(B, ...)` by name; called with gradients enabled and without a trace."""
        return {}

    def ready(self, trainer: Trainer, pl_module: LightningModule, bank_size: int | None) -> None:
        """Refuse before a fit's first step what would be refused later; the bank's size, where it is known."""

    def concluded(self, trainer: Trainer, numbers: Mapping[str, float] | None, stage: Stage) -> None:
        """A validation or test of a run was measured, on all ranks alike; None if some features are not finite."""

    @property
    def called(self) -> str:
        """What the numbers are called."""
        return self.name or self.title

    def unlabelled(self) -> ValueError:
        """What is raised where a class is needed."""
        return ValueError(
            f"{type(self).__name__}: it needs a class for each image and the batches have no whole numbers (B,) as "
            "labels; let the loader yield (images, labels), or name their place with target_key=."
        )

    def due(self, trainer: Trainer) -> bool:
        if self.only_last and trainer.state.fn == "fit" and not trainer.sanity_checking:
            return _is_last(trainer)
        return super().due(trainer) or (not self.off and _is_last(trainer))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.undo_later(self._release)
        self._loaded: tuple[int, int] | None = None
        if stage == "fit" and trainer.global_step == 0:
            self.last = []
        if self.off:
            return
        kind = type(self).__name__
        if not callable(getattr(pl_module, "features", None)):
            raise ValueError(
                f"{kind}: {type(pl_module).__name__} has no features(images), so there is nothing to probe; give it a "
                "method of that name which returns (B, D)."
            )
        alike = [it for it in self.rivals(trainer, Probing) if isinstance(it, Probing) and it.called == self.called]
        if alike:
            raise ValueError(
                f"{kind}: {type(alike[0]).__name__} also calls its numbers probe/{self.called}; give one of them "
                "another name."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if not self.off:
            size = bank_size(trainer, pl_module) if self.uses_bank else None
            most = [it for it in (size, self.max_samples) if it is not None]
            self.ready(trainer, pl_module, None if size is None else min(most))

    def starts(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        self._release()
        self.rehearsing = trainer.sanity_checking or _is_rehearsal(trainer)
        others = [it for it in callbacks_of(trainer) if isinstance(it, Probing) and it._looks_where(self)]
        shared = [it._readings for it in others if it._readings is not None]
        self._readings = shared[0] if shared else Readings(trainer, pl_module, self.fields)

    def batch_ends(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_index: int, stage: Stage
    ) -> None:
        if self._readings is None:
            return
        self._readings.add(batch, batch_index)
        if type(self).extra is not Probing.extra:
            with as_if_nobody_looked(trainer, pl_module):
                pl_module.eval()
                self._extras.append(self.extra(pl_module, self.fields.image(batch), batch_index))
        if self.uses_labels and self._readings.unlabelled:
            raise self.unlabelled()

    def epoch_ends(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        readings, extras = self._readings, self._extras
        if readings is None or (seen := readings.seen()) is None:
            return
        bank = None
        if self.uses_bank:
            bank = seen if self.rehearsing else readings.bank(self.max_samples)
        if self.uses_bank and bank is None:
            rank_zero_warn(
                f"{type(self).__name__}: nobody has training images to compare with, so nothing was measured; give the "
                "Trainer the datamodule of the fit."
            )
            return
        if not all(bool(it.features.isfinite().all()) for it in (seen, bank) if it is not None):
            rank_zero_warn(f"{type(self).__name__}: some features are not finite, so nothing was measured.")
            if not self.rehearsing:
                self.concluded(trainer, None, stage)
            return
        names = extras[0] if extras else ()
        together = {key: from_all_ranks(trainer, torch.cat([it[key] for it in extras])) for key in names}
        # Numbers do not depend on the precision in which the run computes: similarities in half of it change votes.
        device = trainer.strategy.root_device.type
        with as_if_nobody_looked(trainer, pl_module), torch.autocast(device, enabled=False):
            pl_module.eval()
            found = self.measure(pl_module, Read(seen.features, seen.targets, together), bank)
        # What ranks computed may differ in the last bit.
        numbers = trainer.strategy.broadcast({key: float(value) for key, value in found.items()})
        if not trainer.sanity_checking:
            sizes = {"images": len(seen.features)} | ({} if bank is None else {"bank_images": len(bank.features)})
            self._keep(trainer, pl_module, numbers, sizes, stage)
        if not self.rehearsing:
            self.concluded(trainer, numbers, stage)

    def ends(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        self._release()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_end(trainer, pl_module)
        if self.off or _is_rehearsal(trainer) or not trainer.is_global_zero:
            return
        if not self.last:
            rank_zero_warn(f"{type(self).__name__}: no validation was measured in this fit, so there is no number.")
        for it in self.last:
            print(f"{it}; settings in {run_folder(trainer) / FILE}")

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | ({"last": [vars(it) for it in self.last]} if self.last else {})

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        self._evaluates = trainer.state.fn != "fit"
        if self._evaluates:
            self._loaded = checkpoint["epoch"], checkpoint["global_step"]
        else:
            self.last = []

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if not self._evaluates:
            self.last = [Measurement(**it) for it in state_dict.get("last", [])]

    def _keep(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        numbers: Mapping[str, float],
        sizes: dict[str, int],
        stage: Stage,
    ) -> None:
        place = "probe/test" if stage == "test" else "probe"
        named = {f"{place}/{'_'.join(filter(None, (self.called, key)))}": value for key, value in numbers.items()}
        for name, value in named.items():
            pl_module.log(name, value, sync_dist=True)
        if self.rehearsing:
            return
        # Of a file's weights the file tells the moment; a number of a file that was chosen must not pass for the last.
        moment = self._loaded or (trainer.current_epoch, trainer.global_step)
        origin = {"checkpoint": str(trainer.ckpt_path)} if self._loaded else {}
        settings = json.dumps({**self.settings, **sizes, **origin}, sort_keys=True)
        rows = [Measurement(self.protocol, settings, *moment, name, value) for name, value in named.items()]
        if trainer.state.fn == "fit":
            self.last = rows
        if trainer.is_global_zero:
            keep_measurements(run_folder(trainer) / FILE, rows)

    def _looks_where(self, other: "Probing") -> bool:
        return (self.image_key, self.target_key) == (other.image_key, other.target_key)

    def _release(self) -> None:
        self._readings, self._extras = None, []


def _is_rehearsal(trainer: Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # Lightning declares it nowhere


def _is_last(trainer: Trainer) -> bool:
    """Whether no later validation of the fit is to come."""
    loop, batches = trainer.fit_loop.epoch_loop, trainer.num_training_batches
    every = min(trainer.val_check_batch or batches, batches)
    done, total = loop.batch_idx + 1, loop.total_batch_idx + 1
    again = done + every <= batches
    epochs_ahead = 0 if again else epochs_apart(trainer)
    epochs = -1 if trainer.max_epochs is None else trainer.max_epochs
    by_epochs = 0 <= epochs <= trainer.current_epoch + epochs_ahead
    # As many steps a batch as there were so far: several, or one in several.
    batches_ahead = every if again else batches - done + (epochs_ahead - 1) * batches + every
    steps_ahead = batches_ahead * trainer.global_step / max(total, 1)
    by_steps = 0 <= trainer.max_steps < trainer.global_step + max(int(steps_ahead), 1)
    return by_epochs or by_steps or trainer.should_stop

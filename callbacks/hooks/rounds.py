"""The rounds seam: training goes back to one early step again and again, with fewer weights each time.

A round has one phase or several, which may each see other samples; at a phase's end masks are asked for, and before the
next batch weights, buffers, optimizers and schedules are put back. The number of optimizer steps only grows, so files,
logs and the end of training are those of one run.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from ._around import Around
from ._checks import takes_batches, whole
from ._counted_steps import refuse_uncounted_steps
from ._fields import Fields
from ._standing import put_back, standing
from .masks import Masks
from .method import Method
from .sparsity import Sparsity
from .targets import Targets

__all__ = ["Rounds"]


class Rounds(Sparsity):
    """Trains in phases of `phase_steps` optimizer steps that all begin where training stood after `rewind_step` steps.

    What that step's weights, buffers, optimizers and schedules were is kept, in the callback's state, until `finished`;
    then training goes back once more and runs to its end. Masks are in place from the end of a phase on, so its last
    validation scores the weights that they leave; what is trained is put back when the next batch comes. Random
    streams, the order of the data, an fp16 scaler and averages of the weights go on.

    Of a phase that does not see everything, samples are left out of training batches before anybody else reads them. Of
    a batch with one sample that is seen this one stands twice, for batch norm needs two; a batch with none is computed
    whole and its loss multiplied by zero, so that all ranks make the same calls.

    Args:
        rewind_step: Optimizer steps after which the weights are those that training goes back to; 0 is the start.
        parts: Whether phases see parts of the data.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, if batches are mappings; in other batches they come second.
        others: Go to the next base class, among them `name`.

    Raises:
        ValueError: `rewind_step` is no integer >= 0; at set-up, if the Trainer has other masks, or if phases see parts
            of the data and the module optimises manually, fetches its batches itself, or labels are mixed; before the
            first batch, if `plan` refuses; at an optimizer step that goes past Lightning.
    """

    rests = "going back puts batch norm's statistics and counts to what they were at an early step"

    def __init__(self, *, rewind_step: int, parts: bool, image_key: str, target_key: str, **others: Any) -> None:
        super().__init__(**others)
        whole(type(self).__name__, "rewind_step", rewind_step, 0)
        self.rewind_step, self.parts, self.image_key, self.target_key = rewind_step, parts, image_key, target_key
        self.fields = Fields(type(self).__name__, image_key, target_key)
        self.phase_steps = 1
        self.finished = False
        # Where training goes back to: weights and buffers under `tensors`, optimizers, schedules; empty before.
        self.start: dict[str, Any] = {}
        self._began = -1  # the step at which the running phase began, -1 before the first
        self._goes_back = False  # before the next batch
        self._unseen: list[Tensor] = []  # labels of the window's batches whose loss is multiplied by zero

    @abstractmethod
    def plan(self, pl_module: LightningModule, epoch: int | None, training: int | None) -> str | None:
        """Set `phase_steps`, and refuse or warn as `Sparsity.plan`."""

    @abstractmethod
    def phase_ends(self) -> None:
        """Count a phase that has ended, on all ranks, after its masks are in place."""

    @abstractmethod
    def seen(self, target: Tensor) -> Tensor:
        """Which samples of a batch the running phase sees: boolean `(B,)`, of its integer labels `(B,)`."""

    def forget(self) -> None:
        super().forget()
        self.start, self._began, self._goes_back, self.finished = {}, -1, False, False

    def due(self, step: int) -> bool:
        return not self.off and self._began >= 0 and not self.finished and step - self._began >= self.phase_steps

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit" or self.off:
            return
        kind = type(self).__name__
        for other in self.rivals(trainer, Masks):
            raise ValueError(
                f"{kind}: the Trainer also has {other.state_key}, and each would hold masks of its own on the same "
                "weights; keep one of them."
            )
        if self.parts:
            self._refuse_parts(trainer, pl_module)
            takes_batches(kind, pl_module)
            # Here, so that it is first of all that change batches: those who mix mix what is left.
            self.undo_later(Around(trainer.strategy, "batch_to_device", self._leave_out(trainer)).undo)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if self.off:
            return
        refuse_uncounted_steps(self, trainer)
        if self.parts:
            own = pl_module.training_step
            self.undo_later(Around(pl_module, "training_step", self._without_unseen).undo)
            # Lightning reads there which arguments a wrapped `training_step` takes.
            vars(pl_module.training_step)["__wrapped__"] = getattr(own, "__wrapped__", own)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        # `plan` has just said how long a phase is.
        self._end_phase(self.due(trainer.global_step) and not self._goes_back)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        # Now, not when the phase ends: validation has seen what was trained, and schedules of epochs have moved.
        if self._goes_back:
            put_back(trainer, pl_module, self.start, self.kept_masks)
            self._began, self._goes_back = trainer.global_step, False
            if self.finished:
                self.start = {}
        elif self._began < 0 and not self.off and trainer.global_step >= self.rewind_step:
            self.start, self._began = standing(trainer, pl_module), trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        ends = self.due(trainer.global_step) and not self._goes_back
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._end_phase(ends)

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "start": self.start,
            "began": self._began,
            "goes_back": self._goes_back,
            "finished": self.finished,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.start, self._began = state_dict["start"], state_dict["began"]
        self._goes_back, self.finished = state_dict["goes_back"], state_dict["finished"]

    def _end_phase(self, ends: bool) -> None:
        if ends:
            self._goes_back = True
            self.phase_ends()

    def _refuse_parts(self, trainer: Trainer, pl_module: LightningModule) -> None:
        kind = type(self).__name__
        if not pl_module.automatic_optimization:
            raise ValueError(
                f"{kind}: {type(pl_module).__name__} optimises manually, so the loss of a batch without a sample of "
                "the segment is out of reach; use automatic optimization, or segments=1."
            )
        for other in self.rivals(trainer, Targets):
            assert isinstance(other, Method)
            raise ValueError(
                f"{kind}: the Trainer also has {other.state_key}, which mixes the labels by which segments are told; "
                "use segments=1, or leave it out."
            )

    def _leave_out(self, trainer: Trainer) -> Callable[..., Any]:
        window = -1

        def leave_out(proceed: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            nonlocal window
            batch = proceed(*args, **kwargs)
            if not trainer.training or trainer.sanity_checking or batch is None or not self._sees_part(trainer):
                return batch
            if window != trainer.global_step:
                window = trainer.global_step
                self._unseen.clear()
            target = self._labels(batch)
            places = self.seen(target).nonzero().squeeze(1)
            if not len(places):
                self._unseen.append(target)
                return batch
            if len(places) == 1:
                places = places.repeat(2)
            return apply_to_collection(
                batch, Tensor, lambda it: it[places] if it.ndim and len(it) == len(target) else it
            )

        return leave_out

    def _sees_part(self, trainer: Trainer) -> bool:
        """Asked before the batch is, so before training goes back or its first phase begins."""
        if self.finished:
            return False
        return self._began >= 0 or trainer.global_step >= self.rewind_step

    def _labels(self, batch: Any) -> Tensor:
        target = self.fields.target(batch)
        whole_numbers = isinstance(target, Tensor) and target.ndim == 1 and not target.is_floating_point()
        if not whole_numbers:
            came = f"{tuple(target.shape)} {target.dtype}" if isinstance(target, Tensor) else type(target).__name__
            raise ValueError(
                f"{type(self).__name__}: segments are told by integer labels (B,), and the batch has {came}; say with "
                "target_key= where labels are, or use segments=1."
            )
        return target

    def _without_unseen(self, proceed: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = proceed(*args, **kwargs)
        if not self._unseen or result is None or not any(self.fields.target(args[0]) is it for it in self._unseen):
            return result
        if isinstance(result, Mapping):
            return {**result, "loss": result["loss"] * 0}
        return result * 0

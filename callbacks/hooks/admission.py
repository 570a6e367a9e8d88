"""The admission seam: before each optimizer step a method judges its losses and gradients, and may have it left out.

A step that is left out is as if its batches had not come: weights, what optimizers keep, buffers, and parameters that
no optimizer trains, such as those of a teacher that `training_step` moves, are those of before, and all processes leave
it out together. No hook of the step runs but torch's `register_step_pre_hook`. The batches are spent: random streams,
the order of the data, counters, schedules and what the module keeps in plain attributes go on.

Public hooks used: `setup`, `on_fit_start`, `on_train_start`, `on_save_checkpoint`, `on_train_end`. While fitting the
strategy's public `training_step`, `backward` and `optimizer_step` are wrapped.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from ._around import Around
from ._checks import takes_batches
from ._counted_steps import refuse_uncounted_steps
from ._kept_step import KeptStep
from .ascent import replaying
from .method import Method, Place

__all__ = ["Admission"]


class Admission(Method):
    """Judges each optimizer step between its backward pass and the change of weights.

    Args:
        every_n_steps: Optimizer steps from one answer that is read to the next, >= 1; answers of the steps between wait
            on the device, and are read before a checkpoint is made and at the end of training.
        others: Go to the next base class, among them `name`.

    Raises:
        ValueError: at set-up, for a second one of the seam, a `training_step` that takes `dataloader_iter`, or, where
            steps may be left out, for manual optimisation or LBFGS; at a step that goes past Lightning.
    """

    place: ClassVar[Place] = Place.OBSERVE

    def __init__(self, *, every_n_steps: int, **others: Any) -> None:
        super().__init__(**others)
        self.every_n_steps = every_n_steps
        self.bad_loss = False  # whether a loss of the step that is refused is not finite, on this process
        self._losses: list[Tensor] = []
        self._answer: Tensor | None = None  # of steps whose answers were not read
        self._read = 0  # the step after which one was
        self._kept: KeptStep | None = None
        self._left_out = False  # whether the last step was

    @property
    @abstractmethod
    def leaves_out(self) -> bool:
        """Whether a step may be left out; if not, `refused` has to raise."""

    @abstractmethod
    def admitted(self, losses: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
        """Whether a step is good, one truth value on the device.

        Args:
            losses: Of the backward passes, detached; of automatic optimisation already divided by their number.
            gradients: Of the optimizer's parameters, summed and synchronised; none where a loss scaler judges them.
        """

    @abstractmethod
    def refused(
        self, trainer: Trainer, pl_module: LightningModule, kept: KeptStep, optimizer: Optimizer, since: int
    ) -> None:
        """Raise, or say it and return: then the step is left out.

        Called on all processes, when buffers and parameters that no optimizer trains are put back.

        Args:
            trainer: It is fitting.
            pl_module: Its weights are those with which the step was computed.
            kept: Computes it again.
            optimizer: Whose step.
            since: Optimizer steps at the last good answer; with answers read at every step those taken so far.
        """

    def refused_late(self, trainer: Trainer, pl_module: LightningModule, since: int) -> None:
        """Raise, for a step after `since` that is taken was not good. Called on all processes."""
        raise RuntimeError(f"{type(self).__name__}: a step between {since + 1} and {trainer.global_step} was not good.")

    def fresh(self) -> None:
        """A fit begins that is not resumed: forget an earlier one."""

    def begins(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training starts, maybe from a checkpoint."""

    def taken(self) -> None:
        """A step was good and is taken."""

    def ends(self) -> None:
        """The fit is over, maybe by an exception: let go what it held."""

    def window_begins(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first batch of a step is about to be computed; weights and buffers are clean."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit" or self.off:
            return
        if trainer.global_step == 0:
            # A checkpoint's state comes later.
            self.fresh()
        kind = type(self).__name__
        if rivals := self.rivals(trainer, Admission):
            raise ValueError(
                f"{kind}: the Trainer also has {rivals[0].state_key}, which judges the same steps; keep one."
            )
        takes_batches(kind, pl_module)
        if self.leaves_out and not pl_module.automatic_optimization:
            raise ValueError(
                f"{kind}: {type(pl_module).__name__} optimises manually, so some of its steps may be taken when a bad "
                "one is found, and it cannot be left out alone; stop instead, or use automatic optimization."
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if self.off:
            return
        if self.leaves_out and any(isinstance(it, LBFGS) for it in trainer.optimizers):
            raise ValueError(
                f"{type(self).__name__}: LBFGS moves weights before all of its step is computed, so none can be left "
                "out; stop instead, or use another optimizer."
            )
        self.undo_later(self._forget)
        refuse_uncounted_steps(self, trainer)
        self.undo_later(Around(trainer.strategy, "backward", self._backward).undo)
        self.undo_later(Around(trainer.strategy, "optimizer_step", partial(self._optimizer_step, trainer)).undo)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self.off:
            return
        self._read = trainer.global_step
        self.begins(trainer, pl_module)
        # Outside of what mixes labels for the length of a step, so that a batch that is kept still can be mixed.
        self.undo_later(Around(trainer.strategy, "training_step", partial(self._training_step, trainer)).undo)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        # What is written after an exception or a signal is asked for by one process alone, maybe.
        if trainer.training and not trainer.interrupted:
            self._read_late(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._read_late(trainer, pl_module)

    def _read_late(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the answers of steps that were taken since the last that was read; all processes have as many."""
        if self.off or self._answer is None:
            return
        good, since = trainer.strategy.reduce_boolean_decision(bool(self._answer)), self._read
        self._answer, self._read = None, trainer.global_step
        if not good:
            self.refused_late(trainer, pl_module, since)

    @property
    def _replaying(self) -> bool:
        return self._kept is not None and self._kept.running

    def _training_step(self, trainer: Trainer, proceed: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        pl_module = trainer.lightning_module
        if replaying(pl_module):
            return proceed(*args, **kwargs)
        if self._kept is None or not pl_module.automatic_optimization:
            self._kept = KeptStep(trainer)
            self.window_begins(trainer, pl_module)
        self._kept.add(args, kwargs)
        return proceed(*args, **kwargs)

    def _backward(self, proceed: Callable[..., Any], loss: Tensor, *args: Any, **kwargs: Any) -> Any:
        self._losses.append(loss.detach())
        return proceed(loss, *args, **kwargs)

    def _optimizer_step(
        self,
        trainer: Trainer,
        proceed: Callable[..., Any],
        optimizer: Optimizer,
        closure: Callable[[], Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        def judged_closure() -> Any:
            result = closure()
            self._judge(trainer, optimizer)
            return result

        try:
            result = proceed(optimizer, judged_closure, *args, **kwargs)
        except _LeftOutError:
            for parameter in (it for group in optimizer.param_groups for it in group["params"]):
                parameter.grad = None
            self._left_out, result = True, None
        else:
            # What a module had put aside from a bad batch, such as keys of a queue, comes in with the next step.
            if self._left_out and self._kept is not None:
                self._kept.before.mend()
            self._left_out = False
        finally:
            if trainer.lightning_module.automatic_optimization:
                self._kept = None
        return result

    def _judge(self, trainer: Trainer, optimizer: Optimizer) -> None:
        gradients: list[Tensor] = []
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            gradients = [it.grad for group in optimizer.param_groups for it in group["params"] if it.grad is not None]
        losses, self._losses = self._losses, []
        answer = self.admitted(losses, gradients)
        self._answer = answer if self._answer is None else self._answer & answer
        step = trainer.global_step
        if (step + 1) % self.every_n_steps:
            return
        good, since = trainer.strategy.reduce_boolean_decision(bool(self._answer)), self._read
        self._answer, self._read = None, step + 1
        if good:
            self.taken()
            return
        self.bad_loss = not all(bool(it.isfinite().all()) for it in losses)
        kept = self._kept or KeptStep(trainer)
        kept.before.put_back()
        self.refused(trainer, trainer.lightning_module, kept, optimizer, since if self.every_n_steps > 1 else step)
        assert self.leaves_out
        raise _LeftOutError

    def _forget(self) -> None:
        self.ends()
        self._losses, self._answer, self._kept, self._left_out = [], None, None, False


class _LeftOutError(Exception):
    """Leaves an optimizer's step from inside of it, before it has changed anything."""

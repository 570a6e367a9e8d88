"""Stepping with a gradient that was taken elsewhere: perturb the weights, compute the step again, put them back.

Lightning hands over the gradient of a whole accumulation window, synchronised, still scaled and not yet clipped, in
`on_after_backward` of its last micro-batch; there the window is computed again. Unscaling, clipping, the step, its
counters and schedules remain Lightning's. Public hooks used: `setup`, `on_fit_start`, `on_train_start`,
`on_train_epoch_start`, `on_before_zero_grad`, `on_before_backward`, `on_after_backward`, `state_dict`,
`on_load_checkpoint`, `load_state_dict`. While fitting the
strategy's public `training_step` and `optimizer_step` are wrapped, while computing again its `backward`, the module's
`log` and `log_dict` and the loggers' `log_metrics`. Nothing private of Lightning's is touched.
"""

from abc import abstractmethod
from collections.abc import Callable, Generator
from contextlib import ExitStack
from functools import partial
from typing import Any
from weakref import ref

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.core.optimizer import do_nothing_closure
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import LBFGS, Optimizer

from ._around import Around
from ._checks import takes_batches
from ._counted_steps import refuse_uncounted_steps
from ._replay import Streams, read_streams, rewind
from ._second_pass import MicroBatch, SecondPass, unsynchronised
from .method import Method, Place, callbacks_of

__all__ = ["Ascent", "replaying"]


class Ascent(Method):
    """Seam of the methods that need gradients at perturbed weights.

    Args:
        synchronise: Whether `ascend` gets the gradient of all processes, or each process its own. With its own, every
            step must yield, for the synchronisation happens in the computation at the perturbed weights.
        others: Go to the next base class, among them `name`.

    Raises:
        ValueError: at set-up, for a second active method of this seam, a `training_step` that takes `dataloader_iter`
            or LBFGS; at the first step, for `optimizer.step()` without a closure under manual optimisation, a step that
            goes past Lightning or a `training_step` that writes into its batch.
    """

    place = Place.ASCENT

    def __init__(self, *, synchronise: bool, **others: Any) -> None:
        super().__init__(**others)
        self.synchronise = synchronise
        self._window: list[MicroBatch] = []
        self._due: Callable[[], None] | None = None
        self._first_pass = ExitStack()
        self._incomplete = False
        self._steps: dict[int, int] = {}
        self._kept: dict[str, Tensor] = {}
        self._second_pass: SecondPass | None = None
        self._fitted: ref[LightningModule] | None = None
        self._evaluates = False  # the state that comes next is not a fit's
        self._zeroes_itself = False  # whether the module has an `optimizer_zero_grad` of its own
        self._zeroed: Optimizer | None = None  # its gradients may be gone or not, as the module decides

    def __getstate__(self) -> dict[str, Any]:
        # A weak reference cannot be pickled.
        return vars(self) | {"_fitted": None}

    @abstractmethod
    def ascend(
        self, weights: list[Tensor], gradients: list[Tensor], step: int
    ) -> Generator[list[Tensor], list[Tensor], list[Tensor]]:
        """Yield perturbations, get the gradients at `weights + perturbation`, return the gradient to step with.

        Runs without autograd. A loss scaler's factor is in every gradient. A yielded list is emptied when it has been
        added, to free its memory; `gradients` may be overwritten, and under DDP is unless a copy is made.

        Args:
            weights: The optimizer's parameters that have a gradient; not to be written.
            gradients: Theirs, of the whole accumulation window.
            step: Steps of this optimizer so far.
        """

    def keep(self, weights: list[Tensor], values: list[Tensor]) -> None:
        """Save a tensor for each weight until the next call; it travels in checkpoints by the parameter's name."""
        self._kept.update(zip(self._names_of(weights), values, strict=True))

    def recall(self, weights: list[Tensor]) -> list[Tensor] | None:
        """What was kept for these weights, zeros where there is nothing; None if nothing was kept for any of them."""
        names = self._names_of(weights)
        if self._kept.keys().isdisjoint(names):
            return None
        for name, weight in zip(names, weights, strict=True):
            kept = self._kept.get(name)
            # Callback state is loaded before the module has reached its device.
            self._kept[name] = torch.zeros_like(weight) if kept is None else kept.to(weight)
        return [self._kept[name] for name in names]

    def state_dict(self) -> dict[str, Any]:
        own = {"steps": dict(self._steps), "kept": dict(self._kept), "pending": len(self._window)}
        return super().state_dict() | own

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        self._evaluates = trainer.state.fn != "fit" and self.state_key in checkpoint["callbacks"]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if self._evaluates:
            self._evaluates = False
            return
        self._steps, self._kept = dict(state_dict["steps"]), dict(state_dict["kept"])
        if state_dict["pending"] and not self.off:
            self._incomplete = True
            rank_zero_warn(
                f"{type(self).__name__}: the checkpoint was written inside an accumulation window, whose first "
                f"{state_dict['pending']} micro-batches cannot be computed again, so the first step is a plain one; "
                "resume from a checkpoint written after an optimizer step to continue exactly."
            )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit" or self.off:
            return
        kind = type(self).__name__
        rivals = self.rivals(trainer, Ascent)
        if rivals:
            raise ValueError(
                f"{kind}: the Trainer has {' and '.join(sorted(it.state_key for it in (self, *rivals)))}, and each "
                "would take the other's gradient for the plain one; keep one of them."
            )
        takes_batches(kind, pl_module)
        # A checkpoint's state comes later.
        if trainer.global_step == 0 or (self._fitted is not None and self._fitted() is not pl_module):
            self._steps, self._kept = {}, {}
        self._fitted = ref(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if self.off:
            return
        if any(isinstance(optimizer, LBFGS) for optimizer in trainer.optimizers):
            raise ValueError(
                f"{type(self).__name__}: LBFGS compares losses at several points, which belong to other weights than "
                "its gradients here; use another optimizer."
            )
        self._zeroes_itself = is_overridden("optimizer_zero_grad", pl_module)
        self.undo_later(self._forget)
        refuse_uncounted_steps(self, trainer)
        self.undo_later(Around(trainer.strategy, "optimizer_step", partial(self._optimizer_step, trainer)).undo)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        # Outside of what mixes labels for the length of a step, so that the batch that is kept still can be mixed.
        if not self.off:
            self.undo_later(Around(trainer.strategy, "training_step", partial(self._training_step, trainer)).undo)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        # Parts of the module may have been exchanged between epochs.
        self._second_pass = None

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        super().on_before_zero_grad(trainer, pl_module, optimizer)
        self._zeroed = optimizer
        if not self._zeroes_itself:
            self._cut_window()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        super().on_before_backward(trainer, pl_module, loss)
        if self._zeroed is not None:
            self._cut_window_if_zeroed(self._zeroed)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_after_backward(trainer, pl_module)
        if self._due is not None and pl_module.automatic_optimization:
            self._due()

    def _cut_window(self) -> None:
        # Gradients of earlier micro-batches are gone, so only the present one is still part of the step.
        del self._window[:-1]
        self._incomplete, self._zeroed = False, None

    def _cut_window_if_zeroed(self, optimizer: Optimizer) -> None:
        """Decide on the gradients: a module with an `optimizer_zero_grad` of its own may have left them."""
        gradients = [it.grad for group in optimizer.param_groups for it in group["params"] if it.grad is not None]
        if gradients and get_total_norm(gradients) != 0:
            self._zeroed = None
        else:
            self._cut_window()

    def _forget(self) -> None:
        self._window.clear()
        self._second_pass, self._due, self._incomplete, self._zeroed = None, None, False, None

    @property
    def _replaying(self) -> bool:
        return self._second_pass is not None and self._second_pass.running

    def _names_of(self, weights: list[Tensor]) -> list[str]:
        assert self._second_pass is not None
        names = self._second_pass.names
        for weight in weights:
            if weight not in names:
                raise ValueError(
                    f"{type(self).__name__}: the optimizer has a parameter of shape {tuple(weight.shape)} that is not "
                    "in the module, so what belongs to it has no name in checkpoints; make it an attribute of the "
                    "module, or take it out of the optimizer."
                )
        return [names[weight] for weight in weights]

    def _training_step(self, trainer: Trainer, proceed: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if trainer.lightning_module.automatic_optimization and not replaying(trainer.lightning_module):
            self._window.append(MicroBatch(args, kwargs, read_streams(trainer.strategy.root_device)))
        return proceed(*args, **kwargs)

    def _optimizer_step(
        self,
        trainer: Trainer,
        proceed: Callable[..., Any],
        optimizer: Optimizer,
        closure: Callable[[], Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        automatic = trainer.lightning_module.automatic_optimization
        if not automatic and closure is do_nothing_closure:
            raise ValueError(
                f"{type(self).__name__}: `optimizer.step()` came without a closure, so under manual optimisation the "
                "loss cannot be computed again; pass one that zeroes, computes and calls `manual_backward`: "
                "`optimizer.step(closure=...)`."
            )

        def ascending_closure() -> Any:
            compute = (
                partial(self._compute_window, trainer, optimizer)
                if automatic
                else partial(_call_again, closure, read_streams(trainer.strategy.root_device))
            )
            self._due = partial(self._ascend, trainer, optimizer, compute)
            with self._first_pass:
                if not self.synchronise:
                    self._first_pass.enter_context(unsynchronised(trainer))
                result = closure()
            # Due still: manual optimisation, or a training_step that returned None for the last micro-batch.
            if self._due is not None:
                self._due()
            return result

        try:
            return proceed(optimizer, ascending_closure, *args, **kwargs)
        finally:
            self._due = None
            self._window.clear()

    def _ascend(self, trainer: Trainer, optimizer: Optimizer, compute: Callable[[], None]) -> None:
        self._due = None
        self._first_pass.close()
        # Without a loss there was no backward.
        if self._zeroed is not None:
            self._cut_window_if_zeroed(self._zeroed)
        weights = [it for group in optimizer.param_groups for it in group["params"] if it.grad is not None]
        if not weights or self._incomplete:
            return
        if self._second_pass is None:
            self._second_pass = SecondPass(trainer)
        number = next(index for index, it in enumerate(trainer.optimizers) if it is optimizer)
        step = self._steps.get(number, 0)
        with torch.no_grad():
            gradients = _drive(
                self.ascend(weights, [it.grad for it in weights], step),
                partial(self._second_pass.gradients_at, weights, compute),
            )
        for weight, gradient in zip(weights, gradients, strict=True):
            if weight.grad is not gradient:
                weight.grad = gradient
        self._steps[number] = step + 1

    def _compute_window(self, trainer: Trainer, optimizer: Optimizer) -> None:
        assert self._second_pass is not None
        if any(it.changed for it in self._window):
            raise ValueError(
                f"{type(self).__name__}: training_step of {type(trainer.lightning_module).__name__} wrote into a "
                "tensor of its batch, which is to be computed again as it was; let it work on a copy "
                "(`x = x - 0.5` instead of `x -= 0.5`)."
            )
        self._second_pass.compute(self._window, optimizer)


def replaying(pl_module: LightningModule) -> bool:
    """Whether the running `training_step` is being computed again: counters and lists of your own should not move."""
    # Not a question of class: other seams compute steps again, too.
    return any(getattr(callback, "_replaying", False) for callback in callbacks_of(pl_module.trainer))


def _call_again(closure: Callable[[], Any], streams: Streams) -> None:
    rewind(streams)
    closure()


def _drive(
    conversation: Generator[list[Tensor], list[Tensor], list[Tensor]],
    gradients_at: Callable[[list[Tensor]], list[Tensor]],
) -> list[Tensor]:
    try:
        perturbation = next(conversation)
        while True:
            perturbation = conversation.send(gradients_at(perturbation))
    except StopIteration as end:
        gradients: list[Tensor] = end.value
        return gradients

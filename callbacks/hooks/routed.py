"""The routed seam: additions that are folded in, trained in a pass of their own after each step of the weights.

The step's micro-batches are computed a second time, at the weights as they are by then and with the same random draws,
and their gradient goes to the additions alone; of the pass nothing else is left. The additions have an optimizer of the
callback's own, so the module's optimizers, their states and DDP know nothing of them.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from ._around import Around
from ._checks import takes_batches, whole
from ._replay import Replay, read_streams, rewind
from ._second_pass import MicroBatch, unsynchronised
from .ascent import replaying
from .folded import Folded

__all__ = ["Routed"]


class Routed(Folded):
    """Trains additions by gradient routing: a pass for the weights, and a pass for the additions.

    The second pass follows the optimizer's step in the same batch, before the batch's checkpoints are written; its
    gradient is the mean over an accumulation window and over the processes, unclipped. A second pass in which fp16
    overflowed is skipped.

    Args:
        every_n_steps: Optimizer steps from one pass of the additions to the next, at least 1.
        others: Go to the next base class, among them `name`.

    Raises:
        ValueError: at set-up, under manual optimisation or for a `training_step` that takes `dataloader_iter`; after
            the first step, if a layer with an addition was not called or `training_step` writes into its batch; else
            as `Folded` says.
    """

    by_optimizers = False

    def __init__(self, *, every_n_steps: int, **others: Any) -> None:
        super().__init__(**others)
        whole(type(self).__name__, "every_n_steps", every_n_steps, 1)
        self.every_n_steps = every_n_steps
        self._optimizer: Optimizer | None = None
        self._window: list[MicroBatch] = []
        self._armed = False
        self._replay: Replay | None = None
        self._replaying = False
        self._global_step = 0

    @abstractmethod
    def optimizer(self, parameters: list[nn.Parameter]) -> Optimizer | None:
        """What steps the additions' parameters; None leaves them as they begin."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit" or self.off:
            return
        if not pl_module.automatic_optimization:
            raise ValueError(
                f"{type(self).__name__}: {type(pl_module).__name__} optimises manually, so its training_step takes "
                "steps and cannot be computed again without; use automatic optimization, or leave it out."
            )
        takes_batches(type(self).__name__, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        saved = self._kept.get("optimizer")
        super().on_fit_start(trainer, pl_module)
        for parameter in self._parameters.values():
            # The pass for the weights has no gradient for them, and DDP, when it wraps anew, does not wait for one.
            parameter.requires_grad_(False)
        self._optimizer = self.optimizer(list(self._parameters.values())) if self._parameters else None
        if self._optimizer is not None and saved:
            self._optimizer.load_state_dict(saved)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._global_step = trainer.global_step
        self.undo_later(self._forget)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        # Parts of the module may have been exchanged between epochs.
        self._replay = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._optimizer is not None and not self._armed:
            # After all that stand around a step since training began: what mixes labels mixes them in both passes.
            around = Around(trainer.strategy, "training_step", partial(self._training_step, trainer))
            self.undo_later(around.undo)
            self._armed = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._optimizer is None or trainer.global_step == self._global_step:
            return
        self._global_step = trainer.global_step
        if self._global_step % self.every_n_steps == 0:
            self._route(trainer, self._optimizer)
        self._window.clear()

    def _record(self) -> dict[str, Any]:
        state = {} if self._optimizer is None else self._optimizer.state_dict()
        return {**super()._record(), "optimizer": state}

    def _leave(self) -> None:
        super()._leave()
        self._optimizer = None

    def _forget(self) -> None:
        self._window.clear()
        self._replay, self._armed = None, False

    def _training_step(self, trainer: Trainer, proceed: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not replaying(trainer.lightning_module):
            self._window.append(MicroBatch(args, kwargs, read_streams(trainer.strategy.root_device)))
        return proceed(*args, **kwargs)

    def _route(self, trainer: Trainer, optimizer: Optimizer) -> None:
        parameters = list(self._parameters.values())
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        gradient = self._gradient(trainer, parameters, scale)
        if trainer.world_size > 1:
            gradient = trainer.strategy.reduce(gradient, reduce_op="mean")
        gradient = gradient / scale
        if scaler is not None and not gradient.isfinite().all():
            return
        sizes = [it.numel() for it in parameters]
        for parameter, piece in zip(parameters, gradient.split(sizes), strict=True):
            parameter.grad = piece.view_as(parameter).to(parameter)
        optimizer.step()
        optimizer.zero_grad()

    def _gradient(self, trainer: Trainer, parameters: list[nn.Parameter], scale: float) -> Tensor:
        """The gradient of the window's mean loss for the parameters alone, in one vector, times `scale`."""
        kind = type(self).__name__
        if any(it.changed for it in self._window):
            raise ValueError(
                f"{kind}: training_step of {type(trainer.lightning_module).__name__} wrote into a tensor of its batch, "
                "which is to be computed again as it was; let it work on a copy (`x = x - 0.5` instead of `x -= 0.5`)."
            )
        if self._replay is None:
            self._replay = Replay(trainer)
        total = torch.zeros(sum(it.numel() for it in parameters), device=parameters[0].device)
        with self._replay.without_trace(), unsynchronised(trainer), torch.enable_grad():
            self._replaying = True
            for parameter in parameters:
                parameter.requires_grad_(True)
            try:
                for micro_batch in self._window:
                    rewind(micro_batch.streams)
                    output = micro_batch.call(trainer.strategy.training_step)
                    loss = output["loss"] if isinstance(output, Mapping) else output
                    if loss is None:
                        continue
                    found = torch.autograd.grad(
                        loss * (scale / trainer.accumulate_grad_batches), parameters, allow_unused=True
                    )
                    self._refuse_uncalled(found)
                    total += torch.cat([it.reshape(-1) for it in found if it is not None])
            finally:
                self._replaying = False
                for parameter in parameters:
                    parameter.requires_grad_(False)
        return total

    def _refuse_uncalled(self, gradients: tuple[Tensor | None, ...]) -> None:
        for name, gradient in zip(self._parameters, gradients, strict=True):
            if gradient is None:
                raise ValueError(
                    f"{type(self).__name__}: the loss does not depend on the output of the layer "
                    f"{name.rpartition('.')[0]!r}, so nothing is learned there; leave it out of layers=."
                )

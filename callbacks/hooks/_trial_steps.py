"""Optimizer steps on training batches of which nothing is left: module, random streams and loader stay put.

They are taken by a copy of the optimizer (`_optimizer_copies.py`) that shares its parameters and has none of its hooks,
so the optimizer itself, and whatever counts its steps, know nothing of them. What other callbacks put around steps and
batches does not act.

Two things of others are reached for: a batch goes through the data's hooks as in `_batch_norm.py`, and what acts around
functions of the module and the strategy is set aside, which `_around.py` keeps in lists called `around`.
"""

import copy
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torch.optim import Optimizer

from ._attributes_kept import attributes_kept, data_kept
from ._batch_norm import on_device, twin
from ._group_settings import own_rates, set_rate
from ._optimizer_copies import twin_of
from ._unnoticed import as_if_nobody_looked
from .method import callbacks_of

__all__ = ["trial_steps"]


@contextmanager
def trial_steps(owner: str, trainer: Trainer, pl_module: LightningModule) -> Iterator[Callable[[float], float]]:
    """Inside, each call takes a step of the optimizer and returns the loss before it; at the end all is as before.

    The call's argument is the learning rate of the group whose own rate is highest; others keep their ratio to it.
    Windows of accumulation, clipping, precision and the mean over processes are the fit's; the loss is the mean of all
    processes.

    Args:
        owner: Class name of the callback, for messages.
        trainer: It is about to train, with one optimizer.
        pl_module: Its module.

    Raises:
        ValueError: batches or the optimizer cannot be copied, there are no batches, or `training_step` returns no loss.
    """
    (optimizer,) = trainer.optimizers
    held = [it for group in optimizer.param_groups for it in group["params"]]
    weights = list({id(it): it for it in (*pl_module.parameters(), *held)}.values())
    own = [it.detach().clone() for it in weights]
    precision: Any = trainer.precision_plugin
    scaler = getattr(precision, "scaler", None)
    with ExitStack() as stack:
        stack.enter_context(_nobody_acting(pl_module, trainer.strategy))
        stack.callback(_write, weights, own)
        stack.enter_context(attributes_kept(pl_module))
        stack.enter_context(data_kept(trainer.train_dataloader))
        stack.enter_context(as_if_nobody_looked(trainer, pl_module))
        # It looks in the run's precision, in which steps of an optimizer are not taken.
        stack.enter_context(torch.autocast(trainer.strategy.root_device.type, enabled=False))
        stack.enter_context(torch.enable_grad())
        if scaler is not None:
            precision.scaler = copy.deepcopy(scaler)
            stack.callback(setattr, precision, "scaler", scaler)
        batches = _batches(owner, trainer)
        stack.callback(batches.close)
        shared = (*weights, *pl_module.modules(), *pl_module.buffers(), trainer)
        yield _Steps(owner, trainer, pl_module, twin_of(owner, optimizer, shared), own_rates(optimizer), batches)


class _Steps:
    """What `trial_steps` gives."""

    def __init__(
        self,
        owner: str,
        trainer: Trainer,
        pl_module: LightningModule,
        optimizer: Optimizer,
        rates: list[float],
        batches: Generator[tuple[Any, int], None, None],
    ) -> None:
        self.owner, self.trainer, self.pl_module = owner, trainer, pl_module
        self.optimizer, self.batches = optimizer, batches
        highest = max(rates)
        self.ratios = [rate / highest if highest else 1.0 for rate in rates]
        self.window = _window(trainer)
        self.step: Callable[..., Any] = MethodType(type(pl_module).training_step, pl_module)
        self.numbered = is_param_in_hook_signature(self.step, "batch_idx", min_args=2)

    def __call__(self, rate: float) -> float:
        trainer, optimizer = self.trainer, self.optimizer
        scaler: Any = getattr(trainer.precision_plugin, "scaler", None)
        for group, ratio in zip(optimizer.param_groups, self.ratios, strict=True):
            set_rate(group, rate * ratio)
        optimizer.zero_grad()
        loss = sum(self._backward() for _ in range(self.window)) / self.window
        if trainer.world_size > 1:
            self._average()
            loss = float(trainer.strategy.reduce(torch.tensor(loss, device=self.pl_module.device), reduce_op="mean"))
        if scaler is not None:
            scaler.unscale_(optimizer)
        self.pl_module.configure_gradient_clipping(
            optimizer,
            gradient_clip_val=trainer.gradient_clip_val,
            gradient_clip_algorithm=trainer.gradient_clip_algorithm,
        )
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        return loss

    def _backward(self) -> float:
        """Go forward and backward through a micro-batch; its loss."""
        trainer = self.trainer
        precision: Any = trainer.precision_plugin
        batch, number = next(self.batches)
        with precision.train_step_context():
            output = self.step(*((batch, number) if self.numbered else (batch,)))
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if not isinstance(loss, Tensor):
            raise ValueError(
                f"{self.owner}: training_step of {type(self.pl_module).__name__} returned no loss for a batch, so "
                "there is nothing to follow; leave the test out, or return a loss."
            )
        share = loss / self.window
        scaler = getattr(precision, "scaler", None)
        precision.backward(share if scaler is None else scaler.scale(share), self.pl_module, self.optimizer)
        return float(loss.detach())

    def _average(self) -> None:
        """Let the gradients of all processes be their mean, past DDP, which knows nothing of these steps."""
        weights = [it for group in self.optimizer.param_groups for it in group["params"]]
        there = torch.tensor([float(it.grad is not None) for it in weights], device=self.pl_module.device)
        somewhere = self.trainer.strategy.reduce(there, reduce_op="sum").tolist()
        for weight in (it for it, count in zip(weights, somewhere, strict=True) if count):
            gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
            weight.grad = self.trainer.strategy.reduce(gradient, reduce_op="mean")


def _window(trainer: Trainer) -> int:
    """Micro-batches of the first step; Lightning's scheduler of them sets their number when the epoch begins."""
    told = [it for it in callbacks_of(trainer) if isinstance(it, GradientAccumulationScheduler)]
    return told[-1].get_accumulate_grad_batches(trainer.current_epoch) if told else trainer.accumulate_grad_batches


def _batches(owner: str, trainer: Trainer) -> Generator[tuple[Any, int], None, None]:
    """Training batches on the device with their numbers, from a copy of the loader, again and again."""
    given = trainer.train_dataloader
    try:
        loader = twin(given)
    except TypeError as error:
        raise ValueError(
            f"{owner}: the training loader, a {type(given).__name__}, cannot be copied ({error}), so reading from it "
            "would move it; give a DataLoader, or leave the test out."
        ) from error
    try:
        while True:
            number = -1
            for number, batch in enumerate(loader):
                yield on_device(trainer, batch), number
            if number < 0:
                raise ValueError(f"{owner}: the training loader gives no more batches; let it begin again.")
    finally:
        if hasattr(loader, "close"):
            loader.close()


@contextmanager
def _nobody_acting(*owners: Any) -> Iterator[None]:
    """Inside, functions of these objects are called without what other callbacks put around them."""
    acting = [it.around for owner in owners for it in vars(owner).values() if hasattr(it, "around")]
    before = [list(it) for it in acting]
    for it in acting:
        it.clear()
    try:
        yield
    finally:
        for it, own in zip(acting, before, strict=True):
            it[:] = own


@torch.no_grad()
def _write(weights: list[torch.nn.Parameter], values: list[Tensor]) -> None:
    for weight, value in zip(weights, values, strict=True):
        weight.copy_(value)

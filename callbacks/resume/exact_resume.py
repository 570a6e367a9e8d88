"""A killed and resumed run equals the run that was not killed, bit for bit.

Into each checkpoint go, for every rank: the states of the global random streams (Python, numpy, torch, CUDA), the train
loader's position, the sums behind the epoch's means, the states of the module's torchmetrics, the latest monitored
values, the buffers where ranks have their own and, inside an accumulation window, the gradients. They are put back at
the last moment before the next batch.
"""

from dataclasses import asdict
from typing import Any, final

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities import CombinedLoader, rank_zero_warn
from torch.nn.parallel import DistributedDataParallel

from ..hooks._around import last_word
from ..hooks._metric_states import read_metrics, write_metrics
from ..hooks._progress import Position, end_resume, mid_accumulation, position_of, rewrite, take_over
from ..hooks._running_means import logged_metrics, read_means, write_means
from ..hooks.method import Method, Place, callbacks_of
from ._random_streams import read_streams, write_streams

__all__ = ["ExactResume"]


@final
class ExactResume(Method):
    """Makes a resumed run equal the uninterrupted one, bit for bit.

    It acts only when a checkpoint is written or loaded; a run that does neither is untouched. The checkpoint keeps its
    format: it loads with `weights_only=True`, and without this callback as if it had not been there.

    Where checkpoints may be written: at the end of any training batch (`every_n_train_steps`, `train_time_interval`),
    at the end of validation, at the end of an epoch or of the run. One that was written inside a step, by
    `save_on_exception`, is resumed with a warning: `GracefulInterrupt` stops between steps instead.

    To resume inside an epoch the train loader must have `state_dict` and `load_state_dict`, as those of
    `lightning_vision.datamodules` do; an ordinary DataLoader starts its epoch again, which is warned about.

    Args:
        name: Part of the state key.

    Raises:
        ValueError: the checkpoint was written by another number of processes; the strategy shards parameters; the
            Trainer has two of these callbacks.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import ExactResume
        >>> trainer = Trainer(callbacks=[ExactResume()], accelerator="cpu", logger=False)
    """

    place = Place.RUN
    neutral = "it has no settings and touches no run that is not resumed"

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name)
        self._pending: dict[str, Any] | None = None
        self._position: Position | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and self.rivals(trainer, ExactResume):
            raise ValueError("ExactResume: the Trainer has two of them, and the second has nothing to do; remove one.")
        super().setup(trainer, pl_module, stage)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        position = position_of(trainer)
        if position.phase not in ("epoch", "inside"):
            self._warn_of_reading_ahead(trainer)
        checkpoint["callbacks"][self.state_key] = {
            "position": asdict(position),
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
            "ranks": _of_all_ranks(_own_state(trainer, pl_module, position), trainer),
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        if trainer.state.fn != "fit":
            return
        saved = checkpoint["callbacks"].get(self.state_key)
        if saved is None:
            rank_zero_warn(
                "ExactResume: the checkpoint was written without it, so this run continues with other random draws; "
                "those written from now on resume exactly."
            )
            return
        if len(saved["ranks"]) != trainer.world_size:
            raise ValueError(
                f"ExactResume: the checkpoint was written by {_processes(len(saved['ranks']))} and this run has "
                f"{trainer.world_size}, so it cannot continue exactly; use as many as before, or leave ExactResume out."
            )
        position = Position(**saved["position"])
        if position.phase == "inside":
            rank_zero_warn(
                f"ExactResume: the checkpoint was written in the middle of batch {position.batches} of its epoch (by "
                "`save_on_exception`?), so the resumed run differs from an uninterrupted one; resume from a checkpoint "
                "written between steps, and use GracefulInterrupt to get one on Ctrl-C."
            )
            return
        own = saved["ranks"][trainer.global_rank]
        rewrite(checkpoint["loops"], position, own["loaders"])
        self._pending = own | {"accumulate_grad_batches": saved["accumulate_grad_batches"]}
        self._position = position
        self.undo_later(self._forget)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._pending is not None:
            word = last_word(pl_module, "on_train_start", lambda: self._restore(trainer, pl_module))
            self.undo_later(word.undo)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._position is not None:
            # Lightning updates no ReduceLROnPlateau at the end of a resumed epoch, for it saves no metrics; we do.
            end_resume(trainer)
            self._position = None

    def _forget(self) -> None:
        self._pending = self._position = None

    def _restore(self, trainer: Trainer, pl_module: LightningModule) -> None:
        state, position = self._pending, self._position
        assert state is not None and position is not None
        trainer.callback_metrics.update(_move(state["callback_metrics"], pl_module.device))
        if position.phase != "epoch":
            self._warn_of_plain_loaders(trainer, position)
            if any(isinstance(it, GradientAccumulationScheduler) for it in callbacks_of(trainer)):
                # It sets the factor when an epoch begins, and this one has begun.
                trainer.accumulate_grad_batches = state["accumulate_grad_batches"]
            write_means(trainer, pl_module, state["means"])
        write_metrics(pl_module, state["metrics"])
        for name, parameter in pl_module.named_parameters():
            if name in state["gradients"]:
                parameter.grad = state["gradients"][name].to(parameter.device)
        model = trainer.strategy.model
        if state["ddp"] and isinstance(model, DistributedDataParallel):
            model.require_forward_param_sync = state["ddp"]["even_out_buffers"]
            with torch.no_grad():
                for name, buffer in pl_module.named_buffers():
                    buffer.copy_(state["ddp"]["buffers"][name])
        take_over(trainer, position)
        write_streams(state["streams"], trainer.strategy.root_device)
        self._pending = None

    def _warn_of_plain_loaders(self, trainer: Trainer, position: Position) -> None:
        plain = [type(loader).__name__ for loader in _train_loaders(trainer) if not _is_stateful(loader)]
        if plain and not position.last_batch:
            rank_zero_warn(
                f"ExactResume: {' and '.join(plain)} cannot continue inside an epoch, so some samples come twice "
                "and others not at all; use a loader with `state_dict` and `load_state_dict`, as lightning_vision's "
                "datamodules give, or resume from the end of an epoch."
            )

    def _warn_of_reading_ahead(self, trainer: Trainer) -> None:
        for loader in _train_loaders(trainer):
            if _is_stateful(loader) and not hasattr(loader, "__len__"):
                rank_zero_warn(
                    f"ExactResume: {type(loader).__name__} has no length, so Lightning reads one batch ahead and a run "
                    "resumed inside an epoch loses that batch; give it `__len__`, or save at the end of epochs."
                )


def _own_state(trainer: Trainer, pl_module: LightningModule, position: Position) -> dict[str, Any]:
    """Everything this rank needs, as plain data and CPU tensors."""
    in_epoch = position.phase != "epoch"
    at_an_end = position.phase in ("validating", "validated", "epoch")
    gradients = in_epoch and (mid_accumulation(trainer) or not pl_module.automatic_optimization)
    return {
        "streams": read_streams(trainer.strategy.root_device),
        "loaders": [loader.state_dict() for loader in _train_loaders(trainer) if in_epoch and _is_stateful(loader)],
        "means": read_means(trainer) if in_epoch else [],
        "metrics": read_metrics(pl_module, logged_metrics(trainer) if at_an_end else ()),
        "callback_metrics": _move(trainer.callback_metrics, torch.device("cpu")),
        "gradients": {
            name: parameter.grad.detach().cpu()
            for name, parameter in pl_module.named_parameters()
            if gradients and parameter.grad is not None
        },
        "ddp": _own_buffers(trainer, pl_module),
    }


def _own_buffers(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """The file has rank 0's buffers, and under manual optimisation DDP never gives those to the other ranks."""
    model = trainer.strategy.model
    if not isinstance(model, DistributedDataParallel):
        return {}
    buffers = {name: buffer.detach().cpu() for name, buffer in pl_module.named_buffers()}
    return {"even_out_buffers": model.require_forward_param_sync, "buffers": buffers}


def _of_all_ranks(own: dict[str, Any], trainer: Trainer) -> list[dict[str, Any]]:
    if trainer.world_size == 1:
        return [own]
    everyone: list[dict[str, Any]] = [{}] * trainer.world_size
    dist.all_gather_object(everyone, own)
    return everyone


def _train_loaders(trainer: Trainer) -> list[Any]:
    return [] if trainer.train_dataloader is None else CombinedLoader(trainer.train_dataloader).flattened


def _is_stateful(loader: Any) -> bool:
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")


def _move(values: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: value.detach().to(device) for name, value in values.items()}


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"

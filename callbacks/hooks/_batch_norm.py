"""Measuring batch norm's statistics anew on training batches, in the middle of a run and without a trace.

torch's `update_bn` averages the statistics of batches in equal shares; what it calls here is the module's own
`training_step`, so that every module can be measured. It runs on a copy of the training loader, whose place, order and
workers are its own, and sees batches as training does: moved, and changed by the data's hooks in training.

Three things of others are reached for. A loader of torch keeps running workers in `_iterator`, which cannot be copied
and must not be shared; a module's step is taken from its class, past what other callbacks have put around it; a batch
goes through the data's hook before its transfer by the private method that Lightning's loops call.
`tests/callbacks/hooks/test_batch_norm.py` fails when either changes.
"""

import copy
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn
from torch.utils.data import Dataset

from ._attributes_kept import data_kept
from ._checks import takes_batches
from ._live_tensors import plain_name
from ._replay import Replay

__all__ = ["measured_statistics", "measuring_parts", "on_device", "refuse_unmeasurable", "twin"]


def measuring_parts(module: nn.Module) -> list[nn.Module]:
    """The parts of a module that train now, in which batch norms measure; those that rest keep what they have."""
    return [part for part in module.modules() if part.training]


def refuse_unmeasurable(owner: str, trainer: Trainer, pl_module: LightningModule, batches: int | None) -> None:
    """Refuse what `measured_statistics` cannot run, before the first batch.

    Raises:
        ValueError: the module has batch norms, and its optimisation is manual, its step fetches batches itself, there
            are several training loaders, or an epoch has no end.
    """
    if batches == 0 or not _batch_norms(list(pl_module.modules())):
        return
    way_out = "set bn_batches=0, which averages batch norm's statistics as weights are averaged"
    if not pl_module.automatic_optimization:
        raise ValueError(
            f"{owner}: training_step of {type(pl_module).__name__} optimises by hand, so it cannot be run only to "
            f"measure batch norm; {way_out}."
        )
    takes_batches(owner, pl_module)
    if not hasattr(trainer.train_dataloader, "__iter__") or isinstance(trainer.train_dataloader, dict | list | tuple):
        raise ValueError(f"{owner}: batch norm is measured on one training loader and there are several; {way_out}.")
    if batches is None and trainer.num_training_batches == float("inf"):
        raise ValueError(
            f"{owner}: an epoch of the training loader has no end, so batch norm cannot be measured on one; give "
            "bn_batches a number of batches."
        )


def measured_statistics(
    trainer: Trainer, pl_module: LightningModule, parts: list[nn.Module], batches: int | None
) -> dict[str, Tensor]:
    """Running means and variances of the batch norms among `parts` for the weights that the module holds now.

    Args:
        trainer: It is fitting.
        pl_module: Everything but the weights is as before afterwards: buffers, metrics, logs, streams and modes.
        parts: Those that train; all others are in evaluation mode.
        batches: Training batches of each rank, at most an epoch's; None takes all.

    Returns:
        By name; the means over all ranks.
    """
    layers = _batch_norms(parts)
    if not layers:
        return {}
    modes = [(part, part.training) for part in pl_module.modules()]
    momenta = [(layer, layer.momentum) for layer in layers]
    stage = trainer.state.stage
    most = trainer.num_training_batches
    most = most if batches is None else min(batches, most)
    loader = twin(trainer.train_dataloader)
    try:
        with Replay(trainer).without_trace(), data_kept(loader), torch.inference_mode(False), torch.no_grad():
            trainer.training = True
            for part, _ in modes:
                part.training = False
            for part in parts:
                part.training = True
            with trainer.precision_plugin.train_step_context():
                update_bn(_numbered(loader, trainer, int(most)), _Step(pl_module, layers))
            found = {
                plain_name(f"{name}.{key}"): value.detach().clone()
                for name, part in pl_module.named_modules()
                if part in layers
                for key, value in part.named_buffers(recurse=False)
                if value.is_floating_point()
            }
    finally:
        trainer.state.stage = stage
        for part, training in modes:
            part.training = training
        for layer, momentum in momenta:
            layer.momentum = momentum
        if hasattr(loader, "close"):
            loader.close()
    if trainer.world_size > 1:
        for value in found.values():
            dist.all_reduce(value)
            value /= trainer.world_size
    return found


class _Step(nn.Module):
    """What `update_bn` takes for the model: the layers that measure, and a forward that runs a training step.

    Args:
        pl_module: Whose step.
        layers: Reset by `update_bn`, and in training mode while it runs.
    """

    def __init__(self, pl_module: LightningModule, layers: list[_BatchNorm]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        # Not as an attribute: it would become a part, and all its batch norms were reset.
        self.step: tuple[Any, LightningModule] = (type(pl_module).training_step, pl_module)
        self.numbered = is_param_in_hook_signature(pl_module.training_step, "batch_idx", min_args=2)

    def forward(self, numbered: tuple[Any, int]) -> None:
        step, pl_module = self.step
        step(pl_module, *(numbered if self.numbered else numbered[:1]))


def _numbered(loader: Any, trainer: Trainer, most: int) -> Iterator[tuple[tuple[Any, int]]]:
    """Batches on the device with their numbers; in a tuple of one, for `update_bn` takes a tuple's first."""
    for number, batch in enumerate(islice(loader, most)):
        yield ((on_device(trainer, batch), number),)


def on_device(trainer: Trainer, batch: Any) -> Any:
    """A loader's batch as a step is given it in the Trainer's stage: moved, and changed by the data's hooks."""
    given = trainer.precision_plugin.convert_input(batch)
    given = trainer.lightning_module._on_before_batch_transfer(given)
    return trainer.strategy.batch_to_device(given)


def _batch_norms(parts: list[nn.Module]) -> list[_BatchNorm]:
    return [part for part in parts if isinstance(part, _BatchNorm) and part.track_running_stats]


def twin(loader: Any) -> Any:
    """A copy of a loader that shares nothing but the data, so that iterating it moves nothing of the loader.

    What iterating moves in the dataset is put back by `data_kept`.
    """
    # One with slots has none.
    own = getattr(loader, "__dict__", {})
    shared: dict[int, Any] = {id(it): it for it in own.values() if isinstance(it, Dataset)}
    shared |= {id(loader.dataset): loader.dataset} if hasattr(loader, "dataset") else {}
    if (running := own.get("_iterator")) is not None:
        shared[id(running)] = None
    return copy.deepcopy(loader, shared)

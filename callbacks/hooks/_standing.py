"""Where a training stands, kept so that it can be put back there: weights, buffers, optimizers and their schedules."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from ._added import is_aside

__all__ = ["copied", "put_back", "standing"]


def copied(trainer: Trainer, module: nn.Module) -> dict[str, Tensor]:
    """Copies of a module's weights and buffers on the CPU; buffers are rank 0's, as in a checkpoint.

    What only trains beside the module is left out.
    """
    buffers, weights = (
        {name: it.detach().to("cpu", copy=True) for name, it in tensors if not is_aside(name)}
        for tensors in (module.named_buffers(), module.named_parameters())
    )
    return weights | (trainer.strategy.broadcast(buffers) if trainer.world_size > 1 else buffers)


def standing(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """Copies of all that later steps depend on, but for random streams, the loss scaler and the position in the data.

    They are plain data: tensors, and what optimizers and schedules give as their `state_dict`.
    """
    return {
        "tensors": {name: it.detach().clone() for name, it in _tensors(pl_module).items()},
        "optimizers": [deepcopy(optimizer.state_dict()) for optimizer in trainer.optimizers],
        "schedules": [deepcopy(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs],
    }


@torch.no_grad()
def put_back(trainer: Trainer, pl_module: LightningModule, then: Mapping[str, Any], kept: Mapping[str, Tensor]) -> None:
    """Let training stand where it stood, but for masked weights: they are zero, as is what optimizers keep of them.

    Args:
        trainer: Whose optimizers and schedules are put back; the number of steps stays.
        pl_module: Whose tensors are written, in place.
        then: What `standing` gave for the same module and Trainer; it is left alone.
        kept: Boolean masks by parameter name, True where a weight is kept.
    """
    tensors = _tensors(pl_module)
    for name, value in then["tensors"].items():
        tensors[name].copy_(value)
        if name in kept:
            tensors[name].masked_fill_(~kept[name], 0)
    for optimizer, state in zip(trainer.optimizers, then["optimizers"], strict=True):
        # A copy, for the optimizer goes on with the tensors that it is given.
        optimizer.load_state_dict(deepcopy(state))
        for name, mask in kept.items():
            for value in optimizer.state.get(tensors[name], {}).values():
                if isinstance(value, Tensor) and value.shape == mask.shape:
                    value.masked_fill_(~mask, 0)
    for config, state in zip(trainer.lr_scheduler_configs, then["schedules"], strict=True):
        config.scheduler.load_state_dict(deepcopy(state))


def _tensors(pl_module: LightningModule) -> dict[str, Tensor]:
    return dict([*pl_module.named_parameters(), *pl_module.named_buffers()])

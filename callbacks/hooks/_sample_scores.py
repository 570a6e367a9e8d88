"""A number for each training sample, asked of the network as it is between two epochs, without a trace."""

from collections.abc import Callable
from contextlib import closing
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from ._bank import placed_batches
from ._fields import Fields
from ._unnoticed import as_if_nobody_looked

__all__ = ["sample_scores"]


def sample_scores(
    trainer: Trainer,
    pl_module: LightningModule,
    fields: Fields,
    samples: int,
    score: Callable[[Any, Any], Tensor],
    batches: int | None = None,
) -> Tensor:
    """Scores of all training samples, float32 `(samples,)` on the CPU, over all ranks, which all call this.

    Images are as evaluation sees them, the module is in evaluation mode, and nothing is autocast. A sample that the
    data leave out has NaN.

    Args:
        trainer: Fitting, between two epochs.
        pl_module: Put back to how it was but for its weights, which `score` must not write to.
        fields: Where images and labels stand in a batch.
        samples: How many there are in the training set.
        score: Of the images and labels of a batch, a number for each image `(B,)`; gradients are enabled.
        batches: So many of each rank at most; None takes all.
    """
    told = torch.zeros(2, samples)
    with as_if_nobody_looked(trainer, pl_module), torch.autocast(pl_module.device.type, enabled=False):
        pl_module.eval()
        with closing(placed_batches(trainer, pl_module)) as placed:
            for positions, batch in islice(placed, batches):
                told[0, positions] = score(fields.image(batch), fields.target(batch)).detach().float().cpu()
                told[1, positions] = 1.0
    if trainer.world_size > 1:
        told = told.to(pl_module.device)
        dist.all_reduce(told)
    return (told[0] / told[1]).cpu()

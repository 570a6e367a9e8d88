"""Trains a small module twice, with a Trainer and by a loop written out, and says how far the weights are apart."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from support.compare import distance
from support.data import plain_loader
from support.modules import Plain
from support.trainers import quiet_trainer

# From network, images, labels and the batch's own random stream to the loss of the batch.
LossByHand = Callable[[nn.Module, Tensor, Tensor, np.random.Generator], Tensor]


def fit(module: LightningModule, callbacks: list[Callback], loader: Any, **options: Any) -> Trainer:
    trainer = quiet_trainer(callbacks=callbacks, **options)
    trainer.fit(module, loader)
    return trainer


def loop(module: Plain, loss_by_hand: LossByHand, epochs: int, accumulate: int) -> None:
    """The training of `Plain`, batch by batch; the seam's stream of batch n is that of (seed 0, rank 0, n)."""
    made = module.configure_optimizers()
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    loader = plain_loader(29)
    for n in range(epochs * len(loader)):
        position = n % len(loader)
        if position == 0:
            batches = iter(loader)
        random = np.random.default_rng((0, 0, n))
        image, target = next(batches)
        random.random()  # whether the batch is mixed, at prob=1 it always is
        (loss_by_hand(module.network, image, target, random) / accumulate).backward()
        if (position + 1) % accumulate == 0 or position + 1 == len(loader):
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()


@pytest.fixture(name="fit")
def fit_fixture() -> Callable[..., Trainer]:
    """`fit(module, callbacks, loader, **options)`, quietly on the CPU; returns the Trainer."""
    return fit


@pytest.fixture
def apart() -> Callable[[Callback, LossByHand], float]:
    """`apart(callback, loss_by_hand)`: largest difference of a weight or buffer between Trainer and loop.

    Twelve optimizer steps: four epochs of 29 images in five batches, the last of them odd, two to a step, so that the
    last window of an epoch is short. Batch norm, momentum, a rate that moves.
    """

    def compare(callback: Callback, loss_by_hand: LossByHand) -> float:
        ours = Plain(dropout=0.0)
        theirs = deepcopy(ours)
        trainer = fit(ours, [callback], plain_loader(29), max_epochs=4, accumulate_grad_batches=2)
        assert trainer.global_step == 12
        loop(theirs, loss_by_hand, epochs=4, accumulate=2)
        return distance(ours.state_dict(), theirs.state_dict())

    return compare


@pytest.fixture
def numbered() -> Callable[..., Tensor]:
    """`numbered(B, H, W, dtype)`: images `(B, 2, H, W)` filled with their sample number, so a mix can be read off."""

    def make(count: int, height: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.arange(count).view(-1, 1, 1, 1).expand(count, 2, height, width).to(dtype).contiguous()

    return make

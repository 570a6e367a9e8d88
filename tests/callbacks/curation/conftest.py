"""The training of `Plain` by a loop written out, whose epochs visit what a function says; how far weights are apart."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch import Tensor

from support.compare import distance
from support.data import labelled_images, plain_loader
from support.modules import Plain
from support.trainers import quiet_trainer

# From the epoch, the last loss of each sample and the batches of the last epoch that saw all, to this epoch's batches.
Chooses = Callable[[int, Tensor, list[list[int]]], list[list[int]]]
SAMPLES = 29


def whole() -> list[list[int]]:
    """Batches of six in the order of the data."""
    return [list(range(start, min(start + 6, SAMPLES))) for start in range(0, SAMPLES, 6)]


def in_sixes(positions: list[int]) -> list[list[int]]:
    return [positions[start : start + 6] for start in range(0, len(positions), 6)]


def loop(module: Plain, chooses: Chooses, epochs: int) -> None:
    images, targets = labelled_images(SAMPLES).tensors
    made = module.configure_optimizers()
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    losses = torch.zeros(SAMPLES)
    module.train()
    for epoch in range(epochs):
        for batch in chooses(epoch, losses.clone(), whole()):
            logits = module.network(images[batch])
            losses[batch] = F.cross_entropy(logits, targets[batch], reduction="none").detach()
            optimizer.zero_grad()
            F.cross_entropy(logits, targets[batch]).backward()
            optimizer.step()
            scheduler.step()


@pytest.fixture
def apart() -> Callable[[Callback, Chooses], float]:
    """`apart(callback, chooses)`: largest difference of a weight or buffer between Trainer and loop of six epochs."""

    def compare(callback: Callback, chooses: Chooses) -> float:
        torch.manual_seed(0)
        ours = Plain(dropout=0.0)
        theirs = deepcopy(ours)
        quiet_trainer(max_epochs=6, callbacks=[callback], limit_val_batches=0).fit(ours, plain_loader(SAMPLES))
        loop(theirs, chooses, 6)
        return distance(ours.state_dict(), theirs.state_dict())

    return compare

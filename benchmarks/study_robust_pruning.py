"""Does pruning without adversarial examples keep a robust network robust? Ten digits, five seeds, all arms.

The protocol, fixed before the first run: a network of two convolutions and two linear layers is trained on the digits
(values 0 to 1, a fixed split of 1,400 and 397) with PGD (5 steps of 0.04 within 0.1 in each pixel) for 1,000 steps of
Adam at rate 0.002, batches of 100. From its weights each arm goes on for 600 steps at rate 0.001: 90% of the weights
go at once by magnitude, before the first step, and what is left is trained on clean images, with or without the terms;
one arm sees PGD images instead, which is what the method wants to do without. Scored once at the end: test digits as
they are, and under PGD of 20 steps of 0.02 within 0.1 from a random start. Seeds 0 to 4 fix weights, order and starts.
"""

from collections.abc import Callable
from contextlib import chdir, redirect_stdout
from io import StringIO
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from sklearn.datasets import load_digits
from torch import Generator, Tensor, nn
from torch.optim import Adam, Optimizer
from torch.utils.data import DataLoader, TensorDataset

from lightning_vision.callbacks import Pruning, RobustPruning

from .study import in_processes, table

__all__ = ["blocks"]

SPARSITY, WITHIN = 0.9, 0.1
ROBUST_STEPS, PRUNED_STEPS, TRAINED = 1000, 600, 1400
# Callbacks, and whether training images are attacked; None goes on without any step.
ARMS: dict[str, tuple[Callable[[], list[Callback]], bool] | None] = {
    "pruned, clean images": (lambda: [Pruning(SPARSITY)], False),
    "with self-distillation": (lambda: [Pruning(SPARSITY), RobustPruning(lambda_x=0.0, lambda_y=0.0)], False),
    "with both terms": (lambda: [Pruning(SPARSITY), RobustPruning()], False),
    "with both terms, HSIC as for MNIST": (
        lambda: [Pruning(SPARSITY), RobustPruning(lambda_x=2e-4, lambda_y=5e-5)],
        False,
    ),
    "pruned, adversarial images": (lambda: [Pruning(SPARSITY)], True),
    "not pruned, as it was": None,
}


def blocks(quick: bool) -> dict[str, str]:
    """The tables of all arms: clean accuracy, and under attack.

    Args:
        quick: One seed, a few steps.
    """
    seeds = range(1 if quick else 5)
    tasks = [(seed, quick) for seed in seeds]
    runs = in_processes(_runs, tasks, 0 if quick else 2)
    tables = [
        f"{title}:\n\n" + table({arm: [run[arm][place] for run in runs] for arm in ARMS}, {}, {})
        for place, title in enumerate(("Test digits under PGD", "Test digits as they are"))
    ]
    note = (
        "Accuracy, percent; 90% of the weights are zero but in the last arm; two convolutions and two linear layers, "
        "PGD within 0.1 of values from 0 to 1. The differences are to the first arm; SE is the standard error of the "
        "paired difference over the seeds."
    )
    return {"study_robust_pruning": "\n\n".join([*tables, note])}


class Network(LightningModule):
    """`(B, 1, 8, 8)` to logits `(B, 10)`; trained on attacked images if asked for."""

    def __init__(self, rate: float, attacked: bool, seed: int) -> None:
        super().__init__()
        self.rate, self.attacked, self.random = rate, attacked, Generator().manual_seed(seed)
        self.network = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image)

    def training_step(self, batch: Any) -> Tensor:
        image, target = batch
        if self.attacked:
            image = attack(self.network, image, target, 5, 0.04, self.random)
        return F.cross_entropy(self(image), target)

    def configure_optimizers(self) -> Optimizer:
        return Adam(self.parameters(), lr=self.rate)


@torch.enable_grad()
def attack(network: nn.Module, image: Tensor, target: Tensor, steps: int, size: float, random: Generator) -> Tensor:
    """Projected gradient ascent within `WITHIN` of each pixel, from a random start (Madry et al. 2017)."""
    moved = (image + (2 * torch.rand(image.shape, generator=random) - 1) * WITHIN).clamp(0, 1)
    for _ in range(steps):
        moved.requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(moved), target), moved)
        moved = image + (moved.detach() + size * gradient.sign() - image).clamp(-WITHIN, WITHIN)
        moved = moved.clamp(0, 1)
    return moved


def _runs(seed: int, quick: bool) -> dict[str, tuple[float, float]]:
    """Accuracy in percent of each arm, under attack and clean."""
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float()[:, None] / 16
    targets = torch.from_numpy(bunch.target)
    order = torch.randperm(len(images), generator=Generator().manual_seed(0))
    train, test = (TensorDataset(images[part], targets[part]) for part in (order[:TRAINED], order[TRAINED:]))
    torch.manual_seed(seed)
    robust = Network(2e-3, attacked=True, seed=seed)
    _fit(robust, train, 5 if quick else ROBUST_STEPS, [], seed)
    found = {}
    for arm, how in ARMS.items():
        module = Network(1e-3, attacked=how is not None and how[1], seed=seed)
        module.load_state_dict(robust.state_dict())
        if how is not None:
            _fit(module, train, 5 if quick else PRUNED_STEPS, how[0](), seed)
        found[arm] = _score(module.network, *test.tensors, seed)
    return found


def _fit(module: LightningModule, data: TensorDataset, steps: int, callbacks: list[Callback], seed: int) -> None:
    loader = DataLoader(data, 100, shuffle=True, generator=Generator().manual_seed(seed))
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    with TemporaryDirectory() as folder, chdir(folder), redirect_stdout(StringIO()):
        trainer = Trainer(
            accelerator="cpu", max_steps=steps, max_epochs=-1, callbacks=callbacks, enable_model_summary=False, **quiet
        )
        trainer.fit(module, loader)


def _score(network: nn.Module, image: Tensor, target: Tensor, seed: int) -> tuple[float, float]:
    network.eval()
    attacked = attack(network, image, target, 20, 0.02, Generator().manual_seed(100 + seed))
    with torch.no_grad():
        hits = [(network(it).argmax(dim=1) == target).float().mean().item() for it in (attacked, image)]
    return 100 * hits[0], 100 * hits[1]

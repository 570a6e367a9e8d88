"""Does a network with a tenth of its weights still know its digits? Accuracy of dense and pruned networks.

The protocol stands in docs/methods/pruning.md; it and the constants below were committed before the first run.
"""

import time
from collections.abc import Mapping
from contextlib import chdir, redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from torch.optim.lr_scheduler import CosineAnnealingLR

from lightning_vision.callbacks import Pruning
from lightning_vision.classification import ImageClassifier
from lightning_vision.datamodules import Digits

from .study import in_processes, table

__all__ = ["blocks", "train"]

SEEDS = range(5)
STEPS, BATCH, LR, WEIGHT_DECAY = 400, 64, 0.01, 0.05
SPARSITY = 0.9
ARMS: dict[str, Mapping[str, Any] | None] = {
    "dense": None,
    "magnitude, at step 0": {},
    "magnitude, gradually in the first half": {"end_step": STEPS // 2, "every_n_steps": 20},
    "random, at step 0": {"criterion": "random"},
    "magnitude by layer, at step 0": {"scope": "layer"},
}


@dataclass(frozen=True)
class Outcome:
    """Test accuracy, percent, zeros among the prunable weights, percent, and processor time of the fit, seconds."""

    accuracy: float
    zeros: float
    seconds: float


def blocks(quick: bool) -> dict[str, str]:
    """The table by the name of its block.

    Args:
        quick: One seed, two steps.
    """
    tasks = [(arm, seed, 2 if quick else STEPS) for arm in ARMS for seed in (SEEDS[:1] if quick else SEEDS)]
    each = in_processes(train, tasks, 0 if quick else 2)
    runs = {arm: [it for it, task in zip(each, tasks, strict=True) if task[0] == arm] for arm in ARMS}
    before = {"zeros": {arm: f"{mean(run.zeros for run in it):.1f}%" for arm, it in runs.items()}}
    after = {"CPU": {arm: f"{mean(run.seconds for run in it):.1f} s" for arm, it in runs.items()}}
    scores = {arm: [run.accuracy for run in it] for arm, it in runs.items()}
    protocol = (
        f"Accuracy, percent of the test digits, after {tasks[0][2]} steps of {BATCH} images; `resnet8_cifar`, AdamW "
        f"(rate {LR}, decay {WEIGHT_DECAY}), cosine. SE is the standard error of the paired difference over the seeds; "
        "CPU is the processor time of one training."
    )
    return {"study_pruning": f"{table(scores, before, after)}\n\n{protocol}"}


def train(arm: str, seed: int, steps: int) -> Outcome:
    """Train by one arm for so many steps, and score the last weights."""
    seed_everything(seed, verbose=False)
    module = ImageClassifier(
        "resnet8_cifar",
        num_classes=10,
        in_channels=1,
        optimizer=partial(torch.optim.AdamW, lr=LR, weight_decay=WEIGHT_DECAY),
        lr_scheduler=partial(CosineAnnealingLR, T_max=steps),
        lr_interval="step",
    )
    settings = ARMS[arm]
    if settings is not None and "end_step" in settings:
        settings = settings | {"end_step": max(steps // 2, 1)}
    pruning = [] if settings is None else [Pruning(sparsity=SPARSITY, seed=seed, **settings)]
    # A report ends each fit, in the working folder and on the screen.
    with TemporaryDirectory() as folder, chdir(folder), redirect_stdout(StringIO()):
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=-1,
            max_steps=steps,
            callbacks=list(pruning),
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        start = time.process_time()
        trainer.fit(module, datamodule=Digits(batch_size=BATCH, seed=seed))
        seconds = time.process_time() - start
        (scores,) = trainer.test(module, datamodule=Digits(batch_size=BATCH, seed=seed), verbose=False)
    weights = [layer.weight for layer in module.modules() if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear))]
    zeros = sum(int((it == 0).sum()) for it in weights) / sum(it.numel() for it in weights)
    return Outcome(100 * scores["test/acc"], 100 * zeros, seconds)

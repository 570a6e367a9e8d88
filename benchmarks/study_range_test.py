"""Does the range test propose a good rate? Digits after short trainings with its maximum, and with others.

The protocol is the docstring of `blocks`; it was committed before the first run.
"""

import tempfile
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from lightning_vision.callbacks import LRRangeTest, OneCycle
from lightning_vision.classification import ImageClassifier
from lightning_vision.datamodules import Digits

from .shipped_callbacks import callback_and_settings
from .study import in_processes, table

__all__ = ["blocks", "train"]

SEEDS = range(5)
EPOCHS, BATCH = 5, 64
# The peak of `OneCycle`; None is what the range test proposes for this seed.
ARMS: dict[str, float | None] = {"peak proposed": None, "peak 0.01": 0.01, "peak 0.1": 0.1, "peak 1": 1.0}


def blocks(quick: bool) -> dict[str, str]:
    """The table by the name of its block.

    `resnet8_cifar` on all training digits, SGD with momentum, five epochs of `OneCycle`; the peak is what `LRRangeTest`
    proposes in its shipped setting before the training, or one of three powers of ten. Scored on all test digits after
    the last step. Nothing is chosen by any score.

    Args:
        quick: One seed, one epoch.
    """
    seeds, epochs = ([0], 1) if quick else (SEEDS, EPOCHS)
    tasks = [(arm, seed, epochs) for arm in ARMS for seed in seeds]
    runs: dict[str, list[tuple[float, float]]] = {arm: [] for arm in ARMS}
    for (arm, _, _), outcome in zip(tasks, in_processes(train, tasks, 0 if quick else 2), strict=True):
        runs[arm].append(outcome)
    scores = {arm: [accuracy for accuracy, _ in each] for arm, each in runs.items()}
    peaks = {arm: " ".join(f"{peak:.2g}" for _, peak in each) for arm, each in runs.items()}
    peaks |= {arm: f"{peak:g}" for arm, peak in ARMS.items() if peak is not None}
    protocol = (
        f"Accuracy, percent of 359 test digits, after {epochs} epochs of `resnet8_cifar` with SGD (momentum 0.9, "
        f"batches of {BATCH}) and `OneCycle` up to the peak. The first arm stands for plain; SE is the standard error "
        "of the paired difference over the seeds."
    )
    return {"study_range_test": f"{table(scores, {'peaks by seed': peaks}, {})}\n\n{protocol}"}


def train(arm: str, seed: int, epochs: int) -> tuple[float, float]:
    """Train by the protocol; test accuracy, percent, and the peak."""
    peak = ARMS[arm]
    with tempfile.TemporaryDirectory() as folder:
        if peak is None:
            kind, settings = callback_and_settings("lr_range_test")
            test = kind(**settings | {"then": "stop"})
            assert isinstance(test, LRRangeTest)
            _fit(seed, 1, folder, test)
            assert test.found is not None and test.found.lr is not None
            peak = test.found.lr
        trainer, module, data = _fit(seed, epochs, folder, OneCycle(peak))
        (scores,) = trainer.test(module, datamodule=data, verbose=False)
    return 100 * scores["test/acc"], peak


def _fit(seed: int, epochs: int, folder: str, callback: Callback) -> tuple[Trainer, ImageClassifier, Any]:
    seed_everything(seed, verbose=False)
    optimizer = partial(torch.optim.SGD, lr=0.01, momentum=0.9)
    module = ImageClassifier("resnet8_cifar", num_classes=10, in_channels=1, optimizer=optimizer, lr_scheduler=None)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[callback],
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    data = Digits(batch_size=BATCH, seed=seed)
    trainer.fit(module, datamodule=data)
    return trainer, module, data

"""How much time does training on a part of the samples save, and what does it cost? Digits, all training images.

The protocol stands in docs/study_curation.md; it and the constants below were committed before the first run.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import mean, median
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch.optim.lr_scheduler import CosineAnnealingLR

from lightning_vision.classification import ImageClassifier
from lightning_vision.datamodules import Digits

from .shipped_callbacks import callback_and_settings
from .study import in_processes, table

__all__ = ["blocks", "train"]

SEEDS = range(5)
EPOCHS, BATCH = 25, 64
LR, WEIGHT_DECAY, SMOOTHING = 0.01, 0.05, 0.1


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Args:
        name: As the table has it.
        callback: Name of its file in `cli_configs/callbacks`; empty for none.
        settings: That differ from the file's.
        length: Share of the epochs.
    """

    name: str
    callback: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    length: float = 1.0


@dataclass(frozen=True)
class Outcome:
    """What came out of one run.

    Args:
        accuracy: On the test split, percent.
        images: Training images that went forward and backward.
        seconds: Processor time of the training, all that the callback does included.
    """

    accuracy: float
    images: int
    seconds: float


CONTROLS = [
    Arm("plain"),
    Arm("plain, half the epochs", length=0.5),
    Arm("a random half", "dynamic_data_pruning", {"prune_ratio": 0.5, "num_group": 1}),
]
ARMS = [
    *CONTROLS,
    Arm("DynamicDataPruning", "dynamic_data_pruning"),
    Arm("DataDiet", "data_diet"),
    Arm("DataDiet, half after 1 epoch", "data_diet", {"keep_fraction": 0.5, "score_epoch": 1}),
    Arm("DataDiet, half after 5 epochs", "data_diet", {"keep_fraction": 0.5, "score_epoch": 5}),
    Arm("HardBatches", "hard_batches"),
]
CALLBACKS = ("dynamic_data_pruning", "data_diet", "hard_batches")


class _Count(Callback):
    """Counts the images of training batches."""

    images = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.images += len(batch[0])


def blocks(quick: bool) -> dict[str, str]:
    """The tables by the name of their block: all arms, and for each callback the arms that concern it.

    Args:
        quick: One seed, two epochs.
    """
    seeds, epochs = ([0], 2) if quick else (SEEDS, EPOCHS)
    # The arms of a seed one after the other, so that what else the machine does falls on all.
    tasks = [(arm, seed, epochs) for seed in seeds for arm in ARMS]
    runs: dict[str, list[Outcome]] = {arm.name: [] for arm in ARMS}
    for (arm, _, _), outcome in zip(tasks, in_processes(train, tasks, 0 if quick else 2), strict=True):
        runs[arm.name].append(outcome)
    concerned = {name: [arm for arm in ARMS if arm.callback == name or arm in CONTROLS] for name in CALLBACKS}
    return {"study_curation": _table(runs, ARMS)} | {
        f"curation_{it}": _table(runs, arms) for it, arms in concerned.items()
    }


def _table(runs: Mapping[str, list[Outcome]], arms: Sequence[Arm]) -> str:
    plain, each_arm = runs["plain"], {arm.name: runs[arm.name] for arm in arms}
    scores = {name: [run.accuracy for run in each] for name, each in each_arm.items()}
    images = {
        name: f"{100 * mean(run.images / base.images for run, base in zip(each, plain, strict=True)):.0f}%"
        for name, each in each_arm.items()
    }
    saved = {
        name: f"{100 * (1 - median(run.seconds / base.seconds for run, base in zip(each, plain, strict=True))):.0f}%"
        for name, each in each_arm.items()
        if name != "plain"
    } | {"plain": ""}
    protocol = (
        f"Accuracy, percent of 359 test digits; `resnet8_cifar` on all 1,258 training images, shifted by a pixel, "
        f"AdamW (rate {LR}, decay {WEIGHT_DECAY}), label smoothing {SMOOTHING}, a cosine over {EPOCHS} epochs, batches "
        f"of {BATCH}. Images are those trained on, of plain's; time saved is 1 minus the ratio of processor times, the "
        "median over the seeds. SE is the standard error of the paired difference over the seeds."
    )
    return f"{table(scores, {'images': images}, {'time saved': saved})}\n\n{protocol}"


def train(arm: Arm, seed: int, epochs: int) -> Outcome:
    """Train by the protocol and score."""
    seed_everything(seed, verbose=False)
    epochs = max(1, round(epochs * arm.length))
    module = ImageClassifier(
        "resnet8_cifar",
        num_classes=10,
        in_channels=1,
        label_smoothing=SMOOTHING,
        optimizer=partial(torch.optim.AdamW, lr=LR, weight_decay=WEIGHT_DECAY),
        lr_scheduler=partial(CosineAnnealingLR, T_max=epochs),
    )
    callbacks: list[Callback] = [count := _Count()]
    if arm.callback:
        kind, settings = callback_and_settings(arm.callback)
        settings |= arm.settings
        if "score_epoch" in settings:
            # Of a rehearsal of two epochs.
            settings["score_epoch"] = min(settings["score_epoch"], epochs - 1)
        callbacks.append(kind(**settings))
    datamodule = Digits(batch_size=BATCH, shift=1, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            callbacks=callbacks,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        start = time.process_time()
        trainer.fit(module, datamodule=datamodule)
        seconds = time.process_time() - start
        (scores,) = trainer.test(module, datamodule=datamodule, verbose=False)
    return Outcome(100 * scores["test/acc"], count.images, seconds)

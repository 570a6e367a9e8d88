"""What helps where classes are rare? Macro F1 on digits after training on a long tail of classes.

The protocol stands in docs/study_imbalance.md; it and the constants below were committed before the first run.
"""

import time
from dataclasses import dataclass, field
from functools import partial
from statistics import mean
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from lightning_vision.callbacks import exponential_counts
from lightning_vision.classification import ImageClassifier
from lightning_vision.classification.logit_adjustment import LogitAdjustment
from lightning_vision.datamodules import Digits
from lightning_vision.datamodules.common._sets import ArrayImages

from .study import in_processes, table

__all__ = ["LongTailDigits", "blocks", "train"]

SEEDS = range(5)
MOST, LEAST, RARE = 100, 2, 3
BATCH, STEPS = 28, 600
LR, WEIGHT_DECAY = 0.01, 0.05


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Args:
        name: As the table has it.
        model: Settings of the classifier.
        data: Settings of the digits.
        afterwards: tau of the adjustment of the trained network's logits.
    """

    name: str
    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    afterwards: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What came out of one run.

    Args:
        f1: Macro F1 on the test split, percent.
        rare: Mean recall of the `RARE` rarest classes there, percent.
        seconds: Processor time of the training.
    """

    f1: float
    rare: float
    seconds: float


ARMS = [
    Arm("plain"),
    Arm("class weights, balanced", model={"class_weights": "balanced"}),
    Arm("balanced sampler", data={"sampler": "balanced"}),
    Arm("logit adjustment, tau 1", model={"logit_adjustment": 1.0}),
    Arm("plain, adjusted after training, tau 1", afterwards=1.0),
    Arm("focal loss", model={"loss": "focal"}),
]


class LongTailDigits(Digits):
    """`Digits` with a training split whose classes fall off exponentially, from `MOST` images to `LEAST`.

    The seed draws the images and rotates which class is how rare.
    """

    def load(self) -> None:
        super().load()
        assert isinstance(self.train_set, ArrayImages)
        images, targets = self.train_set.images, self.train_set.targets
        shuffled = torch.randperm(len(targets), generator=torch.Generator().manual_seed(self.seed))
        last = self.num_classes - 1
        sizes = exponential_counts(MOST, (LEAST / MOST) ** (1 / last), self.num_classes)
        kept = [shuffled[targets[shuffled] == self.label(rank)][:size] for rank, size in enumerate(sizes)]
        self.train_set = ArrayImages(images[torch.cat(kept)], targets[torch.cat(kept)])

    def label(self, rank: int) -> int:
        """The class that is the `rank`-th most frequent one, from 0."""
        return (rank + 2 * self.seed) % self.num_classes


def blocks(quick: bool) -> dict[str, str]:
    """The table by the name of its block.

    Args:
        quick: One seed, four steps.
    """
    seeds, steps = ([0], 4) if quick else (SEEDS, STEPS)
    tasks = [(arm, seed, steps) for arm in ARMS for seed in seeds]
    runs: dict[str, list[Outcome]] = {arm.name: [] for arm in ARMS}
    for (arm, _, _), outcome in zip(tasks, in_processes(train, tasks, 0 if quick else 2), strict=True):
        runs[arm.name].append(outcome)
    scores = {name: [run.f1 for run in each] for name, each in runs.items()}
    rare = {name: f"{mean(run.rare for run in each):.1f}" for name, each in runs.items()}
    seconds = {name: f"{mean(run.seconds for run in each):.1f} s" for name, each in runs.items()}
    protocol = (
        f"Macro F1, percent, on 359 balanced test digits; 280 training images, {MOST} of the most frequent class down "
        f"to {LEAST} of the rarest, `resnet8_cifar`, AdamW (rate {LR}, decay {WEIGHT_DECAY}), cosine, {steps} steps on "
        f"batches of {BATCH}. SE is the standard error of the paired difference over the seeds; the recall is the mean "
        f"of the {RARE} rarest classes over the seeds; CPU is the processor time of one training."
    )
    return {
        "study_imbalance": f"{table(scores, {}, {f'recall of the {RARE} rarest': rare, 'CPU': seconds})}\n\n{protocol}"
    }


def train(arm: Arm, seed: int, steps: int) -> Outcome:
    """Train by the protocol for `steps` optimizer steps and score."""
    seed_everything(seed, verbose=False)
    module = ImageClassifier(
        "resnet8_cifar",
        num_classes=10,
        in_channels=1,
        optimizer=partial(torch.optim.AdamW, lr=LR, weight_decay=WEIGHT_DECAY),
        lr_scheduler=partial(CosineAnnealingLR, T_max=steps),
        lr_interval="step",
        **arm.model,
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=-1,
        max_steps=steps,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    datamodule = LongTailDigits(batch_size=BATCH, seed=seed, **arm.data)
    start = time.process_time()
    trainer.fit(module, datamodule=datamodule)
    seconds = time.process_time() - start
    if arm.afterwards:
        counts = list(datamodule.class_counts["train"].values())
        module.network = nn.Sequential(module.network, LogitAdjustment(-arm.afterwards, counts))
    (scores,) = trainer.test(module, datamodule=datamodule, verbose=False)
    rarest = [datamodule.label(rank) for rank in range(10 - RARE, 10)]
    return Outcome(100 * scores["test/f1"], 100 * mean(module.per_class[label]["recall"] for label in rarest), seconds)

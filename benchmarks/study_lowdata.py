"""Do the callbacks help where data is scarce? Test accuracy on digits after training on ten images a class.

The protocol stands in docs/study_lowdata.md; it and the constants below were committed before the first run.
"""

import contextlib
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch.optim.lr_scheduler import CosineAnnealingLR

from lightning_vision.callbacks.hooks.schedule import Schedule
from lightning_vision.catalogue import entries
from lightning_vision.classification import ImageClassifier
from lightning_vision.datamodules import Digits
from lightning_vision.datamodules.common._sets import ArrayImages

from .shipped_callbacks import callback_and_settings
from .study import in_processes, table

__all__ = ["FewDigits", "blocks", "train"]

SEEDS = range(5)
SHOTS, BATCH, STEPS = 10, 25, 1020
LR, WEIGHT_DECAY = 0.01, 0.05


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Args:
        name: As the tables have it.
        callbacks: Names of the files in `cli_configs/callbacks`.
        length: Optimizer steps over those of the other arms.
    """

    name: str
    callbacks: tuple[str, ...] = ()
    length: int = 1


@dataclass(frozen=True)
class Outcome:
    """What came out of one run: the test accuracy, percent, and the processor time of its training, seconds."""

    accuracy: float
    seconds: float


CARDS = Path(__file__).parents[1] / "docs" / "methods"


def _asks(file: str) -> bool:
    """Whether the card of the callback in `file` asks for its figures of this study."""
    card = CARDS / f"{file}.md"
    return card.is_file() and f"<!-- figures:lowdata_{file} -->" in card.read_text(encoding="utf-8")


FILES = {entry.name: entry.path.split(".")[-2] for entry in entries() if entry.kind == "callback" and entry.paper}
# Names of their files by class, of the callbacks whose card asks for this study; others have a study of their own.
METHODS = {name: file for name, file in FILES.items() if _asks(file)}
ARMS = [
    Arm("plain"),
    Arm("plain, twice the steps", length=2),
    *(Arm(name, (file,)) for name, file in METHODS.items()),
    Arm("SAM + MixUp", ("sam", "mixup")),
]


class FewDigits(Digits):
    """`Digits` with a few training images a class.

    Args:
        shots: How many of each class.
        seed: Draws them, too.
        others: Of `Digits`.
    """

    def __init__(self, shots: int = SHOTS, seed: int = 0, **others: Any) -> None:
        super().__init__(seed=seed, **others)
        self.shots = shots

    def load(self) -> None:
        super().load()
        assert isinstance(self.train_set, ArrayImages)
        images, targets = self.train_set.images, self.train_set.targets
        generator = torch.Generator().manual_seed(self.seed)
        shuffled = torch.randperm(len(targets), generator=generator)
        kept = torch.cat([shuffled[targets[shuffled] == label][: self.shots] for label in range(self.num_classes)])
        self.train_set = ArrayImages(images[kept], targets[kept])


def blocks(quick: bool) -> dict[str, str]:
    """The tables by the name of their block: all arms, and for each callback the arms that concern it.

    Args:
        quick: One seed, four steps.
    """
    seeds, steps = ([0], 4) if quick else (SEEDS, STEPS)
    tasks = [(arm, seed, steps * arm.length) for arm in ARMS for seed in seeds]
    outcomes = in_processes(train, tasks, 0 if quick else 2)
    runs: dict[Arm, list[Outcome]] = {arm: [] for arm in ARMS}
    for (arm, _, _), outcome in zip(tasks, outcomes, strict=True):
        runs[arm].append(outcome)
    concerned = {name: [arm for arm in ARMS if not arm.callbacks or name in arm.callbacks] for name in METHODS.values()}
    return {"study_lowdata": _table(runs, ARMS, steps)} | {
        f"lowdata_{name}": _table(runs, arms, steps) for name, arms in concerned.items()
    }


def train(arm: Arm, seed: int, steps: int) -> Outcome:
    """Train by the protocol for `steps` optimizer steps and score."""
    # What a callback writes or prints at the end is not asked for.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        return _trained(arm, seed, steps, folder)


def _trained(arm: Arm, seed: int, steps: int, folder: str) -> Outcome:
    seed_everything(seed, verbose=False)
    # A callback that sets rates takes the cosine's place.
    scheduled = not any(issubclass(callback_and_settings(name)[0], Schedule) for name in arm.callbacks)
    module = ImageClassifier(
        "resnet8_cifar",
        num_classes=10,
        in_channels=1,
        optimizer=partial(torch.optim.AdamW, lr=LR, weight_decay=WEIGHT_DECAY),
        lr_scheduler=partial(CosineAnnealingLR, T_max=steps) if scheduled else None,
        lr_interval="step",
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=-1,
        max_steps=steps,
        callbacks=[_callback(name, seed) for name in arm.callbacks],
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    datamodule = FewDigits(batch_size=BATCH, seed=seed)
    start = time.process_time()
    trainer.fit(module, datamodule=datamodule)
    seconds = time.process_time() - start
    (scores,) = trainer.test(module, datamodule=datamodule, verbose=False)
    return Outcome(100 * scores["test/acc"], seconds)


def _callback(name: str, seed: int) -> Callback:
    """The callback in its shipped setting, its draws by `seed`."""
    kind, settings = callback_and_settings(name)
    return kind(**settings | ({"seed": seed} if "seed" in signature(kind).parameters else {}))


def _table(runs: dict[Arm, list[Outcome]], arms: list[Arm], steps: int) -> str:
    scores = {arm.name: [run.accuracy for run in runs[arm]] for arm in arms}
    lengths = {arm.name: f"{steps * arm.length:,}" for arm in arms}
    seconds = {arm.name: f"{mean(run.seconds for run in runs[arm]):.1f} s" for arm in arms}
    protocol = (
        f"Accuracy, percent of 359 test digits; {SHOTS} training images a class, `resnet8_cifar`, AdamW (rate {LR}, "
        f"decay {WEIGHT_DECAY}), cosine, batches of {BATCH}; each callback in the setting of its shipped file. SE is "
        "the standard error of the paired difference over the seeds; CPU is the processor time of one training."
    )
    return f"{table(scores, {'steps': lengths}, {'CPU': seconds})}\n\n{protocol}"

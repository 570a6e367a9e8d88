"""Does a small network learn more from teachers than from its labels alone? Twenty labels a class of digits.

The protocol stands in docs/study_distillation.md; it and the constants below were committed before the first run.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import chdir, redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from lightning_vision.backbones.create import create
from lightning_vision.callbacks import BDKD, MEALV2, BornAgain, Distillation, Guidance
from lightning_vision.classification import ImageClassifier
from lightning_vision.datamodules import Digits

from .study import in_processes, table
from .study_lowdata import FewDigits

__all__ = ["blocks", "teach", "train"]

SEEDS = range(5)
SHOTS, BATCH, STEPS = 20, 50, 800
TEACHER_BATCH, TEACHER_STEPS, TEACHERS = 64, 400, 3
LR, WEIGHT_DECAY = 0.01, 0.05
STUDENT, ASSISTANT, TEACHER = ("resnet8_cifar", 4), ("resnet8_cifar", 16), ("resnet20_cifar", 16)  # names and widths
TEMPERATURE, ALPHA, HINT_WEIGHT, GENERATIONS = 4.0, 0.9, 10.0, 3
STAGES = ("stages.0", "stages.1", "stages.2")

States = list[dict[str, Tensor]]


@dataclass(frozen=True)
class Arm:
    """One way to train the student.

    Args:
        callback: Makes it of the teachers, who know all digits, the best known first, and of the seed; None is none.
        length: Optimizer steps over those of the other arms.
        assisted: Whether a network between teacher and student learns from the one and teaches the other.
    """

    callback: Callable[[list[nn.Module], int], Callback] | None = None
    length: int = 1
    assisted: bool = False


def _distilled(teachers: list[nn.Module], seed: int, **settings: Any) -> Callback:
    return Distillation(teachers[0], temperature=TEMPERATURE, network="network", seed=seed, **settings)


def _layers(teachers: list[nn.Module], seed: int, **settings: Any) -> Callback:
    return _distilled(teachers, seed, kd_weight=0.0, **settings)


def _born_again(teachers: list[nn.Module], seed: int, **settings: Any) -> Callback:
    return BornAgain(GENERATIONS, network="network", seed=seed, **settings)


LAST = {STAGES[-1]: STAGES[-1]}
ALL = {stage: stage for stage in STAGES}
_kd = partial(_distilled, kd_weight=ALPHA, hard_weight=1 - ALPHA)
ARMS: Mapping[str, Arm] = {
    "plain": Arm(),
    f"plain, {GENERATIONS} times the steps": Arm(length=GENERATIONS),
    "KD": Arm(_kd),
    "KD by way of an assistant": Arm(_kd, assisted=True),
    "decoupled KD": Arm(partial(_distilled, loss="decoupled")),
    "MEAL V2, three teachers": Arm(lambda teachers, seed: MEALV2(teachers, network="network", seed=seed)),
    "feature hints": Arm(partial(_layers, layers=LAST, layer_loss="hints", layer_weight=HINT_WEIGHT)),
    "attention transfer": Arm(partial(_layers, layers=ALL, layer_loss="attention", layer_weight=1000.0)),
    "relational KD": Arm(partial(_layers, layers=LAST, layer_loss="relational", layer_weight=25.0)),
    "Guidance by the teacher": Arm(lambda teachers, seed: Guidance(teachers[0], layers=ALL, network="network")),
    "BD-KD, a teacher that learns along": Arm(
        lambda teachers, seed: BDKD(_network(*TEACHER), network="network", seed=seed)
    ),
    f"BornAgain, {GENERATIONS} generations": Arm(partial(_born_again, temperature=TEMPERATURE), GENERATIONS),
    "BornAgain, CWTM": Arm(partial(_born_again, mode="cwtm"), GENERATIONS),
    "BornAgain, DKPP": Arm(partial(_born_again, mode="dkpp", temperature=TEMPERATURE), GENERATIONS),
}


@dataclass(frozen=True)
class Outcome:
    """What came out of one run: the test accuracy, percent, and the processor time of its training, seconds."""

    accuracy: float
    seconds: float


def blocks(quick: bool) -> dict[str, str]:
    """The table by the name of its block.

    Args:
        quick: One seed, six steps.
    """
    seeds, steps, processes = (SEEDS[:1], 6, 0) if quick else (SEEDS, STEPS, 2)
    taught = in_processes(teach, [(seed, 2 if quick else TEACHER_STEPS) for seed in seeds], processes)
    states = {seed: states for seed, (states, _) in zip(seeds, taught, strict=True)}
    tasks = [(arm, seed, steps, states[seed]) for arm in ARMS for seed in seeds]
    outcomes = in_processes(train, tasks, processes)
    runs = {arm: [it for it, task in zip(outcomes, tasks, strict=True) if task[0] == arm] for arm in ARMS}
    scores = {arm: [run.accuracy for run in each] for arm, each in runs.items()}
    lengths = {name: f"{steps * arm.length:,}" for name, arm in ARMS.items()}
    seconds = {arm: f"{mean(run.seconds for run in each):.1f} s" for arm, each in runs.items()}
    known = ", ".join(f"{mean(each):.1f}" for each in zip(*(accuracies for _, accuracies in taught), strict=True))
    protocol = (
        f"Accuracy, percent of 359 test digits, after the last step; {SHOTS} training images a class, `{STUDENT[0]}` "
        f"of width {STUDENT[1]}, AdamW (rate {LR}, decay {WEIGHT_DECAY}), cosine, batches of {BATCH}. The teachers, "
        f"`{TEACHER[0]}`, know all training digits and are right in {known}% (means over the seeds). SE is the "
        "standard error of the paired difference over the seeds; CPU is the processor time of one training, teachers "
        "not counted."
    )
    return {"study_distillation": f"{table(scores, {'steps': lengths}, {'CPU': seconds})}\n\n{protocol}"}


def teach(seed: int, steps: int) -> tuple[States, list[float]]:
    """Weights of the teachers of a seed, trained on all digits, and their test accuracies in percent."""
    found: States = []
    scores = []
    for number in range(TEACHERS):
        seed_everything(100 * number + seed, verbose=False)
        module = _module(*TEACHER, steps)
        digits = Digits(batch_size=TEACHER_BATCH, seed=seed)
        scores.append(_fitted(module, digits, steps, []).accuracy)
        found.append(module.network.state_dict())
    return found, scores


def train(name: str, seed: int, steps: int, states: States) -> Outcome:
    """Train the student by one arm and score the last weights."""
    arm = ARMS[name]
    teachers = []
    for state in states:
        teachers.append(_network(*TEACHER))
        teachers[-1].load_state_dict(state)
    digits = FewDigits(batch_size=BATCH, seed=seed, shots=SHOTS)
    if arm.assisted:
        seed_everything(seed + 1000, verbose=False)
        assistant = _module(*ASSISTANT, steps)
        _fitted(assistant, digits, steps, _callbacks(arm, teachers, seed))
        teachers = [assistant.network]
    # Of all arms alike, so that students begin with the same weights.
    seed_everything(seed, verbose=False)
    # Generations go back to the cosine's beginning.
    module = _module(*STUDENT, steps * (1 if arm.callback else arm.length))
    return _fitted(module, digits, steps * arm.length, _callbacks(arm, teachers, seed))


def _callbacks(arm: Arm, teachers: list[nn.Module], seed: int) -> list[Callback]:
    return [arm.callback(teachers, seed)] if arm.callback else []


def _network(name: str, width: int) -> nn.Module:
    return create(name, num_classes=10, in_channels=1, width=width)


def _module(name: str, width: int, steps: int) -> ImageClassifier:
    return ImageClassifier(
        _network(name, width),
        num_classes=10,
        in_channels=1,
        optimizer=partial(torch.optim.AdamW, lr=LR, weight_decay=WEIGHT_DECAY),
        lr_scheduler=partial(CosineAnnealingLR, T_max=steps),
        lr_interval="step",
    )


def _fitted(module: ImageClassifier, digits: Digits, steps: int, callbacks: list[Callback]) -> Outcome:
    # What a callback writes or prints at the end is not asked for.
    with TemporaryDirectory() as folder, chdir(folder), redirect_stdout(StringIO()):
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=-1,
            max_steps=steps,
            callbacks=callbacks,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        start = time.process_time()
        trainer.fit(module, datamodule=digits)
        seconds = time.process_time() - start
        (scores,) = trainer.test(module, datamodule=digits, verbose=False)
    return Outcome(100 * scores["test/acc"], seconds)

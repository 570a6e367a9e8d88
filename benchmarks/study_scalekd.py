"""Does a small ViT that knows all digits teach a small convolutional network more by ScaleKD than by answers alone?

The constants below were committed before the first run.
"""

from collections.abc import Mapping
from functools import partial

from lightning_vision.backbones.create import create
from lightning_vision.callbacks import ScaleKD
from lightning_vision.datamodules import Digits

from .study import in_processes, table
from .study_freezing import classifier, silent_trainer, small_vit
from .study_lowdata import FewDigits

__all__ = ["blocks"]

SEEDS = range(5)
SHOTS, BATCH, STEPS, WIDTH, LR = 20, 50, 400, 4, 0.01
TEACHER_BATCH, TEACHER_STEPS, TEACHER_LR = 32, 500, 0.003
ANSWERS = {"alpha": 0.0, "beta": 0.0, "perception_weight": 0.0}
# Settings of ScaleKD; None is training without a teacher.
ARMS: Mapping[str, dict[str, float] | None] = {
    "plain": None,
    "answers alone": ANSWERS,
    "and features as they are": {"beta": 0.0, "perception_weight": 0.0},
    "and features in two views": {"perception_weight": 0.0},
    "ScaleKD": {},
}


def blocks(quick: bool) -> dict[str, str]:
    """A table of every arm and seed.

    Args:
        quick: One seed, four steps.
    """
    seeds, teaching, steps = ([0], 4, 4) if quick else (SEEDS, TEACHER_STEPS, STEPS)
    outcomes = in_processes(_scores, [(seed, teaching, steps) for seed in seeds], 0 if quick else 2)
    scores = {arm: [100 * each[arm] for each in outcomes] for arm in ARMS}
    known = ", ".join(f"{100 * each['teacher']:.1f}" for each in outcomes)
    note = (
        f"Accuracy on test digits, percent. A `resnet8_cifar` of width {WIDTH} learns {SHOTS} training images a class "
        f"for {steps} steps (AdamW, a cosine from {LR}, batches of {BATCH}); its teacher, a ViT of width 48 and depth "
        f"4, knows all training digits and is right in {known}%. SE is the standard error of the paired difference "
        "over the seeds."
    )
    return {"study_scalekd": f"{table(scores, {}, {})}\n\n{note}"}


def _scores(seed: int, teaching: int, steps: int) -> dict[str, float]:
    digits = partial(Digits, batch_size=TEACHER_BATCH, seed=seed)
    teacher = classifier(seed + 100, teaching, TEACHER_LR, 10, small_vit)
    trainer = silent_trainer(teaching)
    trainer.fit(teacher, datamodule=digits())
    found = {"teacher": trainer.test(teacher, datamodule=digits(), verbose=False)[0]["test/acc"]}
    student = partial(create, "resnet8_cifar", num_classes=10, in_channels=1, width=WIDTH)
    for arm, settings in ARMS.items():
        module = classifier(seed, steps, LR, 10, student)
        callbacks = [] if settings is None else [ScaleKD(teacher.network, network="network", seed=seed, **settings)]
        trainer, few = silent_trainer(steps, *callbacks), FewDigits(batch_size=BATCH, seed=seed, shots=SHOTS)
        trainer.fit(module, datamodule=few)
        found[arm] = trainer.test(module, datamodule=few, verbose=False)[0]["test/acc"]
    return found

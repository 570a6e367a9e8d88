"""What two thin layers cost in accuracy, and whether the network that was there before teaches them.

A small ViT learns digits, is factorised, and trains on with and without the terms of `LowRank`. The constants below
were committed before the first run.
"""

import copy
from collections.abc import Callable, Mapping
from functools import partial

from lightning.pytorch import Callback

from lightning_vision.callbacks import LowRank
from lightning_vision.datamodules import Digits

from .study import in_processes, table
from .study_freezing import classifier, silent_trainer, small_vit

__all__ = ["blocks"]

SEEDS = range(5)
TRAINING, STEPS, BATCH, LR = 510, 150, 32, 0.003


def _low_rank(ratio: float, distil: float, perturbation: float) -> list[Callback]:
    return [LowRank(ratio, distil_weight=distil, perturbation_weight=perturbation)]


ARMS: Mapping[str, Callable[[], list[Callback]]] = {
    "dense, trained on": lambda: [],
    **{
        f"ratio {ratio:g}, {what}": partial(_low_rank, ratio, distil, perturbation)
        for ratio in (2.0, 4.0)
        for what, distil, perturbation in (("no terms", 0.0, 0.0), ("features", 1.0, 0.0), ("both terms", 1.0, 1.0))
    },
}


def blocks(quick: bool) -> dict[str, str]:
    """A table of every arm and seed.

    Args:
        quick: One seed, four steps.
    """
    seeds, training, steps = ([0], 4, 4) if quick else (SEEDS, TRAINING, STEPS)
    outcomes = in_processes(_scores, [(seed, training, steps) for seed in seeds], 0 if quick else 2)
    scores = {arm: [100 * each[arm] for each in outcomes] for arm in ARMS}
    note = (
        f"Accuracy on test digits, percent. A ViT of width 48 and depth 4 is trained for {training} steps of {BATCH} "
        f"digits, factorised, and trained for {steps} more (AdamW, a cosine from {LR} to 0 in each part). SE is the "
        "standard error of the paired difference over the seeds."
    )
    return {"study_low_rank": f"{table(scores, {}, {})}\n\n{note}"}


def _scores(seed: int, training: int, steps: int) -> dict[str, float]:
    source = classifier(seed, training, LR, 10, small_vit)
    silent_trainer(training).fit(source, datamodule=Digits(batch_size=BATCH, seed=seed))
    weights = copy.deepcopy(source.state_dict())
    found = {}
    for arm, callbacks in ARMS.items():
        module = classifier(seed, steps, LR, 10, small_vit)
        module.load_state_dict(weights)
        trainer = silent_trainer(steps, *callbacks())
        trainer.fit(module, datamodule=Digits(batch_size=BATCH, seed=seed + 100))
        found[arm] = trainer.test(module, datamodule=Digits(batch_size=BATCH, seed=seed), verbose=False)[0]["test/acc"]
    return found

"""What freezing costs in accuracy: group by group in fine-tuning, all but batch norm, and the layers that move least.

The protocol stands in docs/methods/unfreeze.md, batch_norm_only.md and slimfit.md; it and the constants below were
committed before the first run.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from statistics import mean
from typing import Any

import timm
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch.optim.lr_scheduler import CosineAnnealingLR

from lightning_vision.callbacks import BatchNormOnly, HeadFirst, SlimFit, Unfreeze
from lightning_vision.classification import ImageClassifier
from lightning_vision.datamodules import Digits

from .study import in_processes, table
from .study_finetuning import SomeDigits

__all__ = ["blocks", "classifier", "run", "silent_trainer", "small_vit"]

SEEDS = range(5)
PRETRAINING, STEPS, BATCH = 510, 300, 32
Arms = Mapping[str, Callable[[int], list[Callback]]]

UNFREEZE: Arms = {
    "all at once": lambda steps: [],
    "HeadFirst": lambda steps: [HeadFirst(epochs=steps // 3)],
    # Five groups: the last thaws when four sixths of the steps are over.
    "Unfreeze": lambda steps: [Unfreeze(epochs_per_group=steps // 6)],
}
NORMS: Arms = {
    "everything": lambda steps: [],
    "batch norm alone": lambda steps: [BatchNormOnly(gamma="uniform")],
    "batch norm and head": lambda steps: [BatchNormOnly(head=True, gamma="uniform")],
    "random weights": lambda steps: [BatchNormOnly(control=True, gamma="uniform")],
    "random weights and head": lambda steps: [BatchNormOnly(control=True, head=True, gamma="uniform")],
}
SLIM: Arms = {
    "plain": lambda steps: [],
    "50% frozen": lambda steps: [SlimFit(0.5, 5, steps // 10)],
    "50% frozen, 8 bits": lambda steps: [SlimFit(0.5, 5, steps // 10, activation_bits=8)],
    "90% frozen": lambda steps: [SlimFit(0.9, 5, steps // 10)],
    "nothing frozen, 4 bits": lambda steps: [SlimFit(0.0, activation_bits=4)],
}
STUDIES = {"study_freezing_unfreeze": UNFREEZE, "study_freezing_norms": NORMS, "study_freezing_slim": SLIM}


def blocks(quick: bool) -> dict[str, str]:
    """A table for each card, by the name of its block.

    Args:
        quick: One seed, six steps.
    """
    seeds, steps = (range(1), 6) if quick else (SEEDS, STEPS)
    tasks = [(study, seed, 6 if quick else PRETRAINING, steps) for study in STUDIES for seed in seeds]
    outcomes = in_processes(run, tasks, 0 if quick else 2)
    found = {}
    for study, arms in STUDIES.items():
        own = [it for task, it in zip(tasks, outcomes, strict=True) if task[0] == study]
        scores = {arm: [100 * each[arm][0] for each in own] for arm in arms}
        seconds = {arm: f"{mean(each[arm][1] for each in own):.1f} s" for arm in arms}
        note = (
            f"Accuracy on test digits, percent, after {steps} steps. SE is the standard error of the paired difference "
            "over the seeds; CPU is the processor time of one training."
        )
        found[study] = f"{table(scores, {}, {'CPU': seconds})}\n\n{note}"
    return found


def run(study: str, seed: int, pretraining: int, steps: int) -> dict[str, tuple[float, float]]:
    """Accuracy and processor seconds of each arm of a study."""
    if study == "study_freezing_unfreeze":
        source = classifier(seed, pretraining, 0.01, 5)
        silent_trainer(pretraining).fit(source, datamodule=SomeDigits(few=False, moved=False, seed=seed))
        features = {name: it for name, it in source.network.state_dict().items() if not name.startswith("head.")}
        make = partial(_fine_tuned, seed, steps, features)
        data = partial(SomeDigits, few=True, moved=False, seed=seed)
    else:
        network = {"network": small_vit} if study == "study_freezing_slim" else {}
        make = partial(classifier, seed, steps, 0.003 if network else 0.01, 10, **network)
        data = partial(Digits, batch_size=BATCH, seed=seed)
    found = {}
    for arm, callbacks in STUDIES[study].items():
        module, trainer = make(), silent_trainer(steps, *callbacks(steps))
        start = time.process_time()
        trainer.fit(module, datamodule=data())
        seconds = time.process_time() - start
        found[arm] = trainer.test(module, datamodule=data(), verbose=False)[0]["test/acc"], seconds
    return found


def _fine_tuned(seed: int, steps: int, features: dict[str, Any]) -> LightningModule:
    module = classifier(seed, steps, 0.003, 5)
    module.network.load_state_dict(features, strict=False)
    return module


def small_vit() -> torch.nn.Module:
    shape: dict[str, Any] = {"img_size": 8, "patch_size": 2, "in_chans": 1, "depth": 4, "embed_dim": 48, "num_heads": 2}
    network: torch.nn.Module = timm.create_model("vit_tiny_patch16_224", num_classes=10, **shape)
    return network


def classifier(
    seed: int, steps: int, lr: float, classes: int, network: Callable[[], torch.nn.Module] | None = None
) -> ImageClassifier:
    seed_everything(seed, verbose=False)
    return ImageClassifier(
        "resnet8_cifar" if network is None else network(),
        num_classes=classes,
        in_channels=1,
        optimizer=partial(torch.optim.AdamW, lr=lr, weight_decay=0.05),
        lr_scheduler=partial(CosineAnnealingLR, T_max=steps),
        lr_interval="step",
    )


def silent_trainer(steps: int, *callbacks: Callback) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=-1,
        max_steps=steps,
        callbacks=list(callbacks),
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )

"""How many activations do small networks use that learned digits? `ActivationSparsity` counts on the test digits."""

import contextlib
import tempfile
from functools import partial
from statistics import mean

import torch
from lightning.pytorch import Trainer, seed_everything

from lightning_vision.callbacks import ActivationSparsity
from lightning_vision.classification import ImageClassifier
from lightning_vision.datamodules import Digits

from .study import in_processes

__all__ = ["blocks"]

SEEDS, STEPS = range(5), 200
DECAYS = (0.0, 0.05, 1.0)


def blocks(quick: bool) -> dict[str, str]:
    """Shares of activations that are not zero, percent, before training and after it with several weight decays.

    Args:
        quick: One seed, four steps.
    """
    seeds, steps = ([0], 4) if quick else (SEEDS, STEPS)
    arms = {"at random": (0, 0.0)} | {f"trained, weight decay {it:g}": (steps, it) for it in DECAYS}
    tasks = [(*arm, seed) for arm in arms.values() for seed in seeds]
    found = iter(in_processes(_shares, tasks, 0 if quick else 2))
    runs = {arm: [next(found) for _ in seeds] for arm in arms}
    numbers = [f"seed {it}" for it in seeds]
    lines = [f"| arm | {' | '.join(numbers)} | mean | test accuracy |", f"|---|{'--:|' * (len(numbers) + 2)}"]
    for arm, each in runs.items():
        cells = [f"{share:.1f}" for share, _ in each]
        cells += [f"{mean(share for share, _ in each):.1f}", f"{mean(right for _, right in each):.1f}"]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    protocol = (
        "Activations that are not zero, percent, over all ReLUs of `resnet8_cifar` and 359 test digits; AdamW, rate "
        f"0.01, {steps} steps of 32 images."
    )
    table = "\n".join(lines)
    return {"study_activations": f"{table}\n\n{protocol}"}


def _shares(steps: int, decay: float, seed: int) -> tuple[float, float]:
    """The share of activations that are not zero, and the accuracy, percent."""
    seed_everything(seed, verbose=False)
    module = ImageClassifier(
        "resnet8_cifar",
        num_classes=10,
        in_channels=1,
        optimizer=partial(torch.optim.AdamW, lr=0.01, weight_decay=decay),
    )
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        return _asked(module, steps, Digits(batch_size=32, seed=seed), folder)


def _asked(module: ImageClassifier, steps: int, datamodule: Digits, folder: str) -> tuple[float, float]:
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=[ActivationSparsity()],
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    if steps:
        trainer.fit(module, datamodule=datamodule)
    (scores,) = trainer.test(module, datamodule=datamodule, verbose=False)
    return 100 * scores["test/nonzero"], 100 * scores["test/acc"]

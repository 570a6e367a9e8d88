"""What a computed gamma is worth on digits beside fixed factors, and what the second stage adds to it."""

from functools import partial
from statistics import mean, stdev
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_vision.callbacks import WarmUpCosine
from lightning_vision.callbacks.generation.frechet import Moments, frechet_distance
from lightning_vision.datamodules import Digits
from lightning_vision.generation import VAE

from .study import in_processes

__all__ = ["blocks", "outcome"]

ARMS: dict[str, dict[str, Any]] = {
    "gamma = 1, fixed (beta 2)": {"gamma_decay": 1.0},
    "beta 1": {"balance": "beta", "beta": 1.0},
    "beta 0.1": {"balance": "beta", "beta": 0.1},
    "beta 0.01": {"balance": "beta", "beta": 0.01},
    "gamma computed": {},
}
SEEDS = range(3)


def blocks(quick: bool) -> dict[str, str]:
    """A row for each arm: means and deviations over the seeds.

    Args:
        quick: Two arms, one seed, two steps.
    """
    arms, seeds = (list(ARMS)[-2:], [0]) if quick else (list(ARMS), list(SEEDS))
    tasks = [(arm, seed, 2 if quick else 600) for arm in arms for seed in seeds]
    found = in_processes(outcome, tasks, 0 if quick else 1)
    lines = [
        "| balance | MSE | KL, nats | active of 16 | distance of samples | with the second stage |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for arm in arms:
        own = [numbers for (name, _, _), numbers in zip(tasks, found, strict=True) if name == arm]
        cells = [_spread([numbers[place] for numbers in own]) for place in range(5)]
        lines.append(f"| {' | '.join([arm, *cells])} |")
    return {"study_vae": "\n".join(lines)}


def outcome(arm: str, seed: int, steps: int) -> list[float]:
    """MSE and KL of test digits, active units, and the distances of 1,258 samples to the training digits.

    Args:
        arm: One of `ARMS`.
        seed: Of weights, order and draws.
        steps: Of training, 64 digits each.
    """
    torch.manual_seed(seed)
    optimizer = partial(torch.optim.AdamW, lr=4e-3)
    sizes: dict[str, Any] = {"in_channels": 1, "image_size": 8, "latent_dim": 16, "channels": 16, "multiples": (1, 2)}
    vae = VAE(two_stage=True, second_dim=256, seed=seed, optimizer=optimizer, **sizes, **ARMS[arm])
    data = Digits(batch_size=64, seed=seed)
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False
    )
    trainer = Trainer(
        max_steps=steps, limit_val_batches=0, accelerator="cpu", callbacks=[WarmUpCosine(warmup=1)], **quiet
    )
    trainer.fit(vae, datamodule=data)
    (metrics,) = trainer.test(vae, datamodule=data, verbose=False)
    real = data.normalise(data.train_set.images)
    two = _apart(real, vae.sample(len(real)))
    vae.network.second = None
    one = _apart(real, vae.sample(len(real)))
    test = data.normalise(data.test_set.images)
    with torch.no_grad():
        error = (vae.reconstruct(test) - test).square().mean().item()
    return [error, metrics["test/kl"], metrics["test/active_units"], one, two]


def _apart(real: Tensor, made: Tensor) -> float:
    """Frechet distance of pixels."""
    return float(frechet_distance(Moments.of(real.flatten(1)), Moments.of(made.flatten(1))))


def _spread(numbers: list[float]) -> str:
    shown = f"{mean(numbers):.3g}"
    return f"{shown} ± {stdev(numbers):.2g}" if len(numbers) > 1 else shown

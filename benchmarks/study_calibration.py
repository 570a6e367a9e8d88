"""Are confidences true after calibration? Error and likelihood on test digits of a network trained for too long.

The protocol stands in docs/methods/neural_clamping.md; it and the constants below were committed before the first run.
"""

import time
from statistics import mean

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_vision.classification.calibration import Calibration
from lightning_vision.classification.clamping import neural_clamping
from lightning_vision.classification.reliability_bins import reliability
from lightning_vision.classification.temperature import fit_temperature
from lightning_vision.datamodules import Digits

from .study import in_processes, table

__all__ = ["ARMS", "blocks", "digits_of", "measured", "over_trained"]

SEEDS = range(5)
SHOTS, STEPS, LR = 200, 150, 0.01
ARMS = ("as trained", "temperature", "neural clamping, defaults", "neural clamping, likelihood, weak penalty")


def digits_of(split: str, seed: int) -> list[tuple[Tensor, Tensor]]:
    """All normalised digits of a split made by `seed`, in batches of 60."""
    data = Digits(batch_size=60, seed=seed, split_seed=seed)
    loader = getattr(data, f"{split}_dataloader")()
    return [data.on_after_batch_transfer(batch, 0) for batch in loader]


def over_trained(seed: int, steps: int = STEPS) -> nn.Module:
    """A wide network of one hidden layer that has learned 200 digits by heart."""
    generator = torch.Generator().manual_seed(seed)
    image, target = (torch.cat(part)[:SHOTS] for part in zip(*digits_of("train", seed), strict=True))
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    optimizer = torch.optim.Adam(network.parameters(), lr=LR)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(network(image), target).backward()  # type: ignore[no-untyped-call]  # torch's, without types
        optimizer.step()
    return network.eval()


def outputs(network: nn.Module, batches: list[tuple[Tensor, Tensor]], found: Calibration) -> tuple[Tensor, Tensor]:
    """Calibrated logits of all batches, and their labels."""
    with torch.no_grad():
        logits = torch.cat([found(network(found.perturb(image))) for image, _ in batches])
    return logits, torch.cat([target for _, target in batches])


def measured(seed: int, steps: int) -> dict[str, tuple[float, float, float, float]]:
    """For each arm, on test digits: calibration error, percent; likelihood; accuracy, percent; seconds of fitting."""
    network, val, test = over_trained(seed, steps), digits_of("val", seed), digits_of("test", seed)
    found = {}
    for arm in ARMS:
        start = time.process_time()
        if arm == "as trained":
            calibration = Calibration()
        elif arm == "temperature":
            calibration = Calibration(fit_temperature(*outputs(network, val, Calibration())))
        elif arm == "neural clamping, defaults":
            calibration = neural_clamping(network, val)
        else:
            calibration = neural_clamping(network, val, lr=0.005, focal_gamma=0.0, penalty=0.01)
        seconds = time.process_time() - start
        logits, target = outputs(network, test, calibration)
        right = float((logits.argmax(1) == target).float().mean())
        ece = reliability(logits.softmax(1), target).ece
        found[arm] = 100 * ece, float(F.cross_entropy(logits, target)), 100 * right, seconds
    return found


def blocks(quick: bool) -> dict[str, str]:
    """The table of all arms.

    Args:
        quick: One seed, in this process.
    """
    seeds = [0] if quick else list(SEEDS)
    runs = in_processes(measured, [(seed, STEPS) for seed in seeds], 0 if quick else 1)
    each = {arm: [run[arm] for run in runs] for arm in ARMS}
    before = {
        "NLL": {arm: f"{mean(nll for _, nll, _, _ in rows):.3f}" for arm, rows in each.items()},
        "accuracy": {arm: f"{mean(right for _, _, right, _ in rows):.1f}" for arm, rows in each.items()},
    }
    after = {"CPU": {arm: f"{mean(seconds for *_, seconds in rows):.2f} s" for arm, rows in each.items()}}
    return {"study_calibration": table({arm: [row[0] for row in rows] for arm, rows in each.items()}, before, after)}

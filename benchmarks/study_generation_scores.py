"""What scores of made images say of digits that are like the real ones, changed, missing, or too few."""

from collections.abc import Callable
from statistics import mean

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from lightning_vision.callbacks import score_features

from .pictures._trained_digits import digits, trained

__all__ = ["ARMS", "blocks", "split"]

SEEDS, IMAGES = range(5), 700
SCORES = ("fid", "kid", "precision", "recall", "density", "coverage")
COUNTS = (100, 200, 400, 800)

Change = Callable[[Tensor, Tensor, Generator], Tensor]
ARMS: dict[str, Change] = {
    "other digits": lambda images, labels, random: images,
    "without sevens": lambda images, labels, random: _again(images[labels != 7]),
    "70 of them, ten times": lambda images, labels, random: images[:70].repeat(10, 1, 1, 1),
    "noise of 0.1": lambda images, labels, random: images + 0.1 * torch.randn(images.shape, generator=random),
    "noise of 0.3": lambda images, labels, random: images + 0.3 * torch.randn(images.shape, generator=random),
    "blurred": lambda images, labels, random: F.avg_pool2d(images, 3, 1, 1),
    "turned upside down": lambda images, labels, random: images.flip(2),
    "noise alone": lambda images, labels, random: torch.rand(images.shape, generator=random),
}


def blocks(quick: bool) -> dict[str, str]:
    """Six scores of each set beside 700 digits, and of equal sets of fewer; means over five splits.

    Args:
        quick: One split.
    """
    images, labels = digits()
    network = trained(labels, 10)[:-1]
    splits = [split(seed) for seed in (SEEDS[:1] if quick else SEEDS)]

    def features(of: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = network(of)
        return found

    def told(found: list[dict[str, float]]) -> str:
        means = {name: mean(it[name] for it in found) for name in SCORES}
        return " | ".join(f"{it:.1f}" if name in ("fid", "kid") else f"{it:.3f}" for name, it in means.items())

    lines = [f"| made | {' | '.join(SCORES)} |", f"|---|{'--:|' * len(SCORES)}"]
    for name, change in ARMS.items():
        found = []
        for seed, (real, other) in enumerate(splits):
            made = change(images[other], labels[other], torch.Generator().manual_seed(seed))
            found.append(score_features(features(images[real]), features(made), seed=seed))
        lines.append(f"| {name} | {told(found)} |")
    for count in COUNTS:
        pairs = [(real[:count], other[:count]) for real, other in map(_halves, range(len(splits)))]
        found = [score_features(features(images[one]), features(images[two])) for one, two in pairs]
        lines.append(f"| other digits, {count} and {count} | {told(found)} |")
    protocol = (
        f"scikit-learn's digits, {IMAGES} real and {IMAGES} made ones, by 64 features of a small classifier of them; "
        f"k 5; {'one split' if quick else f'means over {len(splits)} splits'}."
    )
    return {"study_generation_scores": "\n".join([*lines, "", protocol])}


def split(seed: int) -> tuple[Tensor, Tensor]:
    """Which digits are real and which are changed, 700 each."""
    return tuple(it[:IMAGES] for it in _halves(seed))  # type: ignore[return-value]  # two


def _halves(seed: int) -> tuple[Tensor, Tensor]:
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(seed))
    return order[:898], order[898:]


def _again(images: Tensor) -> Tensor:
    """As many as there are in a split, some of them twice."""
    return torch.cat([images, images])[:IMAGES]

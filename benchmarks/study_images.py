"""What do images made by optimisation reach on a network that reads digits? Five networks, the functions' defaults.

For each seed 0 to 4 two convolutions and a head are trained on 1,500 of scikit-learn's digits, by the constants below.
Raised: activation maximisation of the ten classes. Inverted: the first IMAGES test digits from each layer. Fooled: an
image a class by each method, and how many of the ten the network is more than 0.99 sure of.
"""

from statistics import mean, stdev

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lightning_vision.explain import invert_layer, make_fooling_images, maximise_activation

from .study import in_processes

__all__ = ["blocks", "digits_and_network"]

SEEDS = range(5)
TRAINING, BATCHES, BATCH, LR = 1500, 400, 64, 3e-3
IMAGES = 16
SURE = 0.99
LAYERS = {"1": "first convolution, rectified", "3": "second convolution, rectified", "4": "pooling", "6": "logits"}
WAYS = ("gradient", "evolution", "cppn")
# Of each block and row the cells.
Figures = dict[str, dict[str, list[float]]]


def digits_and_network(seed: int, batches: int = BATCHES) -> tuple[Tensor, nn.Module, float]:
    """Test digits `(N, 1, 8, 8)` from 0 to 1, a trained network in eval mode, and its accuracy on them."""
    pixels, labels = (torch.from_numpy(it) for it in load_digits(return_X_y=True))
    images = pixels.float().view(-1, 1, 8, 8) / 16
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(512, 10),
        )
    adam = torch.optim.Adam(network.parameters(), LR)
    for _ in range(batches):
        batch = torch.randint(TRAINING, (BATCH,), generator=generator)
        adam.zero_grad()
        F.cross_entropy(network(images[batch]), labels[batch]).backward()
        adam.step()
    network.eval()
    with torch.no_grad():
        right = network(images[TRAINING:]).argmax(1) == labels[TRAINING:]
    return images[TRAINING:], network, float(right.float().mean())


def blocks(quick: bool) -> dict[str, str]:
    """Train, make images and measure for each seed.

    Args:
        quick: One seed, few batches and steps.
    """
    small = (20, 2, 2) if quick else (BATCHES, IMAGES, None)
    found = in_processes(_figures_of, [(seed, *small) for seed in SEEDS[: 1 if quick else None]], 0 if quick else 2)
    told = ", ".join(f"{100 * accuracy:.1f}" for accuracy, _ in found)
    note = f"Mean and standard error over the seeds; the networks' accuracies on 297 test digits are {told}%."
    heads = {
        "study_raised": ("images", "logit before", "logit after", "classes taken for themselves"),
        "study_inverted": ("layer", "distance of its outputs", "error of the pixels"),
        "study_fooled": ("method", f"classes above {SURE}, of 10", "mean confidence"),
    }
    made = {}
    for block, head in heads.items():
        lines = [f"| {' | '.join(head)} |", f"|---|{'--:|' * (len(head) - 1)}"]
        for row in found[0][1][block]:
            cells = zip(*(figures[block][row] for _, figures in found), strict=True)
            lines.append(f"| {row} | {' | '.join(map(_spread, cells))} |")
        made[block] = "\n".join([*lines, "", note])
    return made


def _figures_of(seed: int, batches: int, count: int, steps: int | None) -> tuple[float, Figures]:
    images, network, accuracy = digits_and_network(seed, batches)
    fewer = {} if steps is None else {"steps": steps}
    raised, inverted, fooled = {}, {}, {}
    for name, priors in (("defaults", {}), ("without priors", {"tv_weight": 0.0, "jitter": 0})):
        found = maximise_activation(network, range(10), size=(1, 8, 8), seed=seed, **priors, **fewer)
        with torch.no_grad():
            own = network(found.images).argmax(1) == torch.arange(10)
        raised[name] = [float(found.start.mean()), float(found.end.mean()), float(own.sum())]
    for layer, name in LAYERS.items():
        again = invert_layer(network, images[:count], layer, seed=seed, **fewer)
        inverted[name] = [float(again.distance.mean()), float(again.error.mean())]
    for way in WAYS:
        made = make_fooling_images(network, (1, 8, 8), method=way, seed=seed, **fewer)
        fooled[f"`{way}`"] = [float((made.confidence > SURE).sum()), float(made.confidence.mean())]
    return accuracy, {"study_raised": raised, "study_inverted": inverted, "study_fooled": fooled}


def _spread(values: tuple[float, ...]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3g}"
    return f"{mean(values):.3f} ± {stdev(values) / len(values) ** 0.5:.3f}"

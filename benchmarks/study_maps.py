"""Which maps tell the truth? Methods beside one another on digits that lie somewhere on a photograph, five networks.

The protocol, committed before the first run: for each seed 0 to 4 a `resnet8_cifar` is trained on
`PlacedDigits(canvas="photo")` by the constants below and explained on the first IMAGES test images that it classifies
correctly, each method for that class and with its defaults. Maps of values per channel are summed over channels; what
is signed counts where it is positive, gradients and guided gradients by their absolute value. Two maps that know
nothing of the network stand beside them: the image's edges, and noise.

Pointing: share of maps that peak in the digit's box. Overlap: of the maps' box and the digit's, threshold 0.2.
Deletion and insertion: mean area, STEPS steps, from and to the mean pixel. Left when random: mean absolute rank
correlation with the trained network's maps once all layers are random, on FEW images.
"""

from collections.abc import Callable, Iterable
from functools import partial
from statistics import mean, stdev

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_vision.backbones import create
from lightning_vision.callbacks import (
    LinearInterpreter,
    attribute,
    eigen_cam,
    grad_cam,
    grad_cam_plus_plus,
    guided_backprop,
    guided_grad_cam,
    layer_cam,
    score_cam,
)
from lightning_vision.datamodules import PlacedDigits
from lightning_vision.explain import (
    box_masks,
    deletion,
    insertion,
    localisation_iou,
    pointing_game,
    randomised_layers,
)

from .study import in_processes

__all__ = ["METHODS", "blocks", "explained_digits", "trained_network"]

SEEDS = range(5)
EPOCHS, BATCH, LR, WEIGHT_DECAY = 30, 64, 0.01, 0.01
IMAGES, FEW, STEPS = 128, 16, 32
DEEPEST = "stem.0"  # the last layer to be randomised
WINDOWS = {"sliding_window_shapes": [3, 8, 8], "strides": [3, 4, 4]}
COLUMNS = ("pointing", "overlap", "deletion", "insertion", "left when random")

# Maps (B, H, W) of a model, images and classes.
Explain = Callable[[nn.Module, Tensor, Tensor], Tensor]


def _magnitude(values: Tensor) -> Tensor:
    return values.abs().sum(1)


def _positive(values: Tensor) -> Tensor:
    return values.sum(1).relu()


def _edges(images: Tensor) -> Tensor:
    return ((images - images.roll(1, 3)).abs() + (images - images.roll(1, 2)).abs()).sum(1)


METHODS: dict[str, Explain] = {
    "`grad_cam`": lambda model, images, classes: grad_cam(model, images, None, classes),
    "`grad_cam_plus_plus`": lambda model, images, classes: grad_cam_plus_plus(model, images, None, classes),
    "`layer_cam`": lambda model, images, classes: layer_cam(model, images, None, classes),
    "`score_cam`": lambda model, images, classes: score_cam(model, images, None, classes),
    "`eigen_cam`": lambda model, images, classes: eigen_cam(model, images, None),
    "`guided_backprop`": lambda model, images, classes: _magnitude(guided_backprop(model, images, classes)),
    "`guided_grad_cam`": lambda model, images, classes: _magnitude(guided_grad_cam(model, images, None, classes)),
    "`LinearInterpreter`": lambda model, images, classes: _positive(
        LinearInterpreter(model).contributions(images, classes)
    ),
    "captum `Saliency`": lambda model, images, classes: _magnitude(attribute(model, images, "Saliency", classes)),
    "captum `IntegratedGradients`": lambda model, images, classes: _positive(
        attribute(model, images, "IntegratedGradients", classes)
    ),
    "captum `Occlusion`": lambda model, images, classes: _positive(
        attribute(model, images, "Occlusion", classes, arguments=WINDOWS)
    ),
    "edges of the image": lambda model, images, classes: _edges(images),
    "noise": lambda model, images, classes: torch.rand(
        len(images), *images.shape[-2:], generator=torch.Generator().manual_seed(0)
    ),
}

# Know nothing of the network.
BLIND = ("edges of the image", "noise")
# The cards that show some of the rows.
CARDS = {
    **{
        name: [f"`{name}`"] for name in ("grad_cam_plus_plus", "layer_cam", "score_cam", "eigen_cam", "guided_backprop")
    },
    "grad_cam": ["`grad_cam`", "`guided_grad_cam`"],
    "linear_interpreter": ["`LinearInterpreter`"],
    "attribution": [method for method in METHODS if method.startswith("captum")],
}


def trained_network(seed: int, epochs: int = EPOCHS) -> tuple[nn.Module, PlacedDigits]:
    """A network that tells the digits apart, in eval mode, and its data."""
    data = PlacedDigits(canvas="photo", batch_size=BATCH, seed=seed)
    data.setup()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = create("resnet8_cifar", num_classes=10, in_channels=3)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    loader = data.train_dataloader()
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=epochs * len(loader))
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        for image, target, _ in loader:
            loss = F.cross_entropy(network(_normalised(image, data)), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval(), data


def explained_digits(network: nn.Module, data: PlacedDigits) -> tuple[Tensor, Tensor, Tensor, float]:
    """Test images classified correctly, their classes, boxes (left, top, right, bottom), and the accuracy on all."""
    assert data.test_set is not None
    every = torch.arange(len(data.test_set))
    fetched = data.test_set.fetch(every)
    images = _normalised(fetched.image, data)
    with torch.no_grad():
        right = network(images).argmax(1) == fetched.target
    boxes = data.boxes("test", every)[:, [1, 0, 3, 2]]
    return images[right], fetched.target[right], boxes[right], float(right.float().mean())


def blocks(quick: bool) -> dict[str, str]:
    """Train, explain and score each seed.

    Args:
        quick: One seed, one epoch, four images that change in eight steps.
    """
    small = (1, 4, 2, 8) if quick else (EPOCHS, IMAGES, FEW, STEPS)
    tasks = [(seed, *small) for seed in SEEDS[: 1 if quick else None]]
    found = in_processes(_scores_of, tasks, 0 if quick else 2)
    lines = {}
    for method in METHODS:
        cells = [_spread([scores[method][column] for _, scores in found]) for column in COLUMNS]
        lines[method] = f"| {method} | {' | '.join(cells)} |"
    told = ", ".join(f"{100 * accuracy:.1f}" for accuracy, _ in found)
    note = f"Mean and standard error over the seeds; the networks' accuracies on the test images are {told}%."

    def table(methods: Iterable[str]) -> str:
        head = [f"| maps | {' | '.join(COLUMNS)} |", "|---|--:|--:|--:|--:|--:|"]
        return "\n".join([*head, *(lines[method] for method in methods), "", note])

    return {"study_maps": table(METHODS)} | {
        f"maps_{card}": table([*methods, *BLIND]) for card, methods in CARDS.items()
    }


def _scores_of(seed: int, epochs: int, count: int, few: int, steps: int) -> tuple[float, dict[str, dict[str, float]]]:
    network, data = trained_network(seed, epochs)
    images, classes, boxes, accuracy = explained_digits(network, data)
    images, classes, boxes = images[:count], classes[:count], boxes[:count]
    size = (images.shape[-2], images.shape[-1])
    scores = {}
    for name, explain in METHODS.items():
        maps = explain(network, images, classes)
        areas = [it(network, images, maps, classes, steps, "zero") for it in (deletion, insertion)]
        (anew,) = randomised_layers(
            network, partial(_of_classes, explain, classes[:few]), images[:few], seed=seed, layers=[DEEPEST]
        )
        left = anew.spearman.nan_to_num().abs().mean()
        values = (pointing_game(maps, box_masks(boxes, size)), localisation_iou(maps, boxes), *areas, left)
        scores[name] = dict(zip(COLUMNS, (float(it.mean()) for it in values), strict=True))
    return accuracy, scores


def _of_classes(explain: Explain, classes: Tensor, model: nn.Module, images: Tensor) -> Tensor:
    return explain(model, images, classes)


def _normalised(images: Tensor, data: PlacedDigits) -> Tensor:
    average, deviation = (torch.tensor(it)[:, None, None] for it in data.statistics)
    return (images.float() / 255 - average) / deviation


def _spread(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.2f}"
    return f"{mean(values):.2f} ± {stdev(values) / len(values) ** 0.5:.2f}"

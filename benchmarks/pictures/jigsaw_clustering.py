"""Four crops of photographs, their overlapping patches, and the montages that a network sees in their place."""

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_sample_images
from torch import Tensor

from lightning_vision.self_supervised.jigsaw_clustering import JigsawClustering
from lightning_vision.self_supervised.montages import montages, shuffle

__all__ = ["draw"]

SIDE = 48
COLOURS = ("C0", "C1", "C2", "C3")


def draw() -> Figure:
    """Rows: images, their patches as changed, montages; the frames of patches say from which image they are."""
    images, random = _crops(), torch.Generator().manual_seed(5)
    learner = JigsawClustering(backbone="test_resnet", views="moco_v2", overlap=0.1, patch_size=SIDE // 2)
    draws = torch.rand(len(images), learner.draws, generator=random)
    order = shuffle(draws[:, :4])
    patches = learner.patches(images, draws[:, 4:])
    unmixed = montages(patches, torch.arange(len(patches)), 2)
    figure = Figure(figsize=(4.6, 3.8), layout="constrained")
    axes = figure.subplots(3, len(images))
    shown = {"images": images, "patches": unmixed, "montages": montages(patches, order, 2)}
    for row, (name, pictures) in zip(axes, shown.items(), strict=True):
        row[0].set_ylabel(name)
        for number, (axis, picture) in enumerate(zip(row, pictures, strict=True)):
            axis.imshow((picture.permute(1, 2, 0) * 15).round().clamp(0, 15) / 15)
            axis.set(xticks=[], yticks=[])
            if name == "images":
                continue
            for place in range(4):
                patch = 4 * number + place
                image = (int(order[patch]) if name == "montages" else patch) // 4
                left, top = place % 2 * SIDE / 2, place // 2 * SIDE / 2
                lines = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 1, 1, 0]]) * (SIDE / 2 - 3) + 1
                axis.plot(lines[0] + left, lines[1] + top, color=COLOURS[image], linewidth=2)
    return figure


def _crops() -> Tensor:
    """Squares of scikit-learn's photographs, float `(4, 3, SIDE, SIDE)`, 0..1."""
    both = [torch.from_numpy(photograph.copy()).permute(2, 0, 1) for photograph in load_sample_images().images]
    places = [(both[0], 60, 20), (both[0], 180, 330), (both[1], 20, 10), (both[1], 100, 200)]
    crops = torch.stack([photograph[:, top : top + 240, left : left + 240] for photograph, top, left in places])
    return torch.nn.functional.interpolate(crops / 255, (SIDE, SIDE), mode="bilinear", antialias=True)

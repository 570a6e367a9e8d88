"""The picture of Cascade R-CNN: what three stages make of the same proposals, and how far these overlap objects."""

from collections import OrderedDict

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.ops import MultiScaleRoIAlign, box_iou

from lightning_vision.detection.cascade_criterion import CascadeCriterion
from lightning_vision.detection.cascade_detections import CascadeDetections
from lightning_vision.detection.cascade_heads import CascadeHead, CascadeHeads

__all__ = ["draw"]

SIDE, STRIDE, STEPS = 64, 4, 80
STAGES = (
    (0.5, (10.0, 10.0, 5.0, 5.0), 1.0),
    (0.6, (20.0, 20.0, 10.0, 10.0), 0.5),
    (0.7, (30.0, 30.0, 15.0, 15.0), 0.25),
)


def draw() -> Figure:
    """Proposals about three objects before and after each stage, and the share of them above every overlap."""
    heads = _trained()
    maps, proposals, targets = _scenes(64, torch.Generator().manual_seed(1))
    _, moved = heads.stages(maps, proposals, [(SIDE, SIDE)] * 64)
    stages = [proposals, *moved]
    figure = Figure(figsize=(11, 2.4))
    *images, curves = figure.subplots(1, 5, width_ratios=(1, 1, 1, 1, 1.3))
    names = ("proposals", "after stage 1", "after stage 2", "after stage 3")
    colours = ("0.55", "C0", "C2", "C3")
    for axes, name, colour, boxes in zip(images, names, colours, stages, strict=True):
        _boxes(axes, maps["0"][0].sum(0), boxes[0][:36], targets[0]["boxes"], colour)
        axes.set_title(name, fontsize=10, color=colour)
        overlaps = torch.cat([box_iou(*it).amax(1) for it in zip(boxes, _truths(targets), strict=True)])
        levels = torch.linspace(0.4, 1, 121)
        curves.plot(levels, (overlaps >= levels[:, None]).float().mean(1), colour)
    for threshold, _, _ in STAGES:
        curves.axvline(threshold, color="0.85", linewidth=0.8, zorder=0)
    curves.set(xlabel="overlap with the object, at least", ylabel="share of the boxes", xlim=(0.4, 1), ylim=(0, 1))
    curves.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


def _boxes(axes: Axes, shown: Tensor, boxes: Tensor, truth: Tensor, colour: str) -> None:
    axes.imshow(shown, cmap="gray_r", extent=(0, SIDE, SIDE, 0), alpha=0.35)
    for edges, width, ink in ((boxes, 0.6, colour), (truth, 1.4, "k")):
        for left, top, right, bottom in edges.tolist():
            axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=ink, lw=width))
    axes.set(xticks=[], yticks=[], xlim=(0, SIDE), ylim=(SIDE, 0))


def _trained() -> CascadeHeads:
    """Three heads over one map, trained for a second on objects like those of the picture."""
    sampler = BalancedPositiveNegativeSampler(128, 0.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        heads = CascadeHeads(
            MultiScaleRoIAlign(["0"], 5, 2),
            [CascadeHead(4 * 25, 64, 3) for _ in STAGES],
            [CascadeCriterion(*stage, sampler) for stage in STAGES],
            CascadeDetections(0.05, 0.5, 100),
        )
        optimizer = torch.optim.AdamW(heads.parameters(), 3e-3)
        random = torch.Generator().manual_seed(0)
        for _ in range(STEPS):
            maps, proposals, targets = _scenes(4, random)
            optimizer.zero_grad()
            torch.stack(list(heads.losses(maps, proposals, [(SIDE, SIDE)] * 4, targets).values())).sum().backward()
            optimizer.step()
    return heads.eval()


def _scenes(images: int, random: torch.Generator) -> tuple[dict[str, Tensor], list[Tensor], list[dict[str, Tensor]]]:
    """Maps that show three filled boxes an image, 12 proposals about each of these, and the boxes."""
    edges = torch.arange(0, SIDE, STRIDE) + STRIDE / 2
    corners = torch.tensor([[0.0, 0.0], [SIDE / 2, 0.0], [0.0, SIDE / 2]])
    maps = torch.zeros(images, 4, len(edges), len(edges))
    proposals, targets = [], []
    for drawn in maps:
        size = 12 + 16 * torch.rand(3, 2, generator=random)
        left_top = corners + (SIDE / 2 - size) * torch.rand(3, 2, generator=random)
        boxes, labels = torch.cat([left_top, left_top + size], 1), torch.tensor([1, 2, 3])
        for (left, top, right, bottom), label in zip(boxes, labels, strict=True):
            across = ((edges - left) / STRIDE + 0.5).clamp(0, 1) * ((right - edges) / STRIDE + 0.5).clamp(0, 1)
            down = ((edges - top) / STRIDE + 0.5).clamp(0, 1) * ((bottom - edges) / STRIDE + 0.5).clamp(0, 1)
            drawn[[0, int(label)]] += down[:, None] * across
        near = boxes.repeat(12, 1)
        off = torch.randn(near.shape, generator=random) / 6
        proposals.append((near + off * size.repeat(12, 2)).clamp(0, SIDE))
        targets.append({"boxes": boxes, "labels": labels})
    return OrderedDict({"0": maps}), proposals, targets


def _truths(targets: list[dict[str, Tensor]]) -> list[Tensor]:
    return [target["boxes"] for target in targets]

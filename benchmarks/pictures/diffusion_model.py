"""The picture of a diffusion model: the same noise with labels left out, followed and exaggerated; and inpainting."""

import torch
from matplotlib.figure import Figure

from lightning_vision.generation.processes.edit import Edit
from lightning_vision.generation.processes.flow_matching import FlowMatching

from ._made_digits import grid_of, trained
from ._trained_digits import digits

__all__ = ["draw"]


def draw() -> Figure:
    """Ten digits at five weights, ten whose left half is kept, and ten from weaker and weaker noise."""
    model = trained(FlowMatching("optimal"), label_dropout=0.2)
    sweep = [(f"guidance {weight:g}", model.sample(10, steps=20, guidance=weight)) for weight in (-1, 0, 1, 3)]
    images = 2 * digits()[0][:10] - 1
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    mask[..., :4] = True
    half = torch.where(mask, images, 0.0)
    filled = model.sample(10, steps=20, edit=Edit(images, mask))
    other = model.sample(10, label=[3] * 10, steps=20, edit=Edit(images, strength=0.7))
    edits = [("real", images), ("left half", half), ("filled in", filled), ("made a 3", other)]
    return grid_of([*sweep, *edits], [str(number) for number in range(10)])

"""Progressive learning in four stages: larger crops of a photograph, changed more strongly."""

import torch
from matplotlib.figure import Figure

from ._photographs import described, temple

__all__ = ["draw"]

STAGES = ((128, 5), (185, 8), (243, 12), (300, 15))  # pixels, and magnitude on the authors' scale
SHRUNK = 3  # pixels of the stage to one of the picture


def draw() -> Figure:
    """One draw at the size and strength of each stage."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    panels = figure.subplots(1, 4, width_ratios=[side for side, _ in STAGES])
    for axes, (side, magnitude) in zip(panels, STAGES, strict=True):
        # The authors' 10 is 30 here; more than that is cut off.
        augmentation = described("efficientnet_v2", side // SHRUNK, magnitude=min(30, 3 * magnitude))
        image = augmentation(temple(384 // SHRUNK)[None], torch.Generator().manual_seed(5))[0]
        axes.imshow((image // 16 * 17).permute(1, 2, 0), interpolation="nearest")
        axes.set_title(f"{side} pixels, magnitude {magnitude}", fontsize=8)
        axes.set_axis_off()
    return figure

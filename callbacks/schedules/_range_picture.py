"""The picture of a range test: losses against the learning rate, and what they propose."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

__all__ = ["plot_range", "range_picture"]

Rows = Sequence[Mapping[str, float]]


def plot_range(axes: Any, rows: Rows, mode: str, proposed: tuple[float, float] | None) -> None:
    """Draw losses and their means against the rate, with the proposed bounds.

    Args:
        axes: Of matplotlib.
        rows: With `lr`, `loss` and `smoothed`.
        mode: `exponential` has a logarithmic axis.
        proposed: `base_lr` and `max_lr`, if there are any.
    """
    rates = [row["lr"] for row in rows]
    axes.plot(rates, [row["loss"] for row in rows], color="0.75", linewidth=1, label="loss of a step")
    axes.plot(rates, [row["smoothed"] for row in rows], color="C0", label="mean of a window")
    for rate, name, colour in zip(proposed or (), ("base_lr", "max_lr"), ("C2", "C3"), strict=False):
        axes.axvline(rate, color=colour, linestyle="--", label=f"{name} = {rate:g}")
    if mode == "exponential":
        axes.set_xscale("log")
        axes.minorticks_off()
    axes.set(xlabel="learning rate", ylabel="training loss")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def range_picture(rows: Rows, mode: str, proposed: tuple[float, float] | None) -> NDArray[np.uint8]:
    """The same as pixels `(H, W, 3)`."""
    figure = Figure(figsize=(6.4, 3.6), dpi=100)
    # A layout that is found takes as long as the drawing.
    plot_range(figure.add_axes((0.12, 0.14, 0.85, 0.82)), rows, mode, proposed)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()

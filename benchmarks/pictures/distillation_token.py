"""The picture of the distillation token: who teaches which head, and how decisions about rare classes are weighted."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_vision.callbacks import effective_number_weights, exponential_counts

__all__ = ["draw"]

CLASSES, LARGEST = 10, 5000


def draw() -> Figure:
    """The two ways through the network, and weights of a long tail of ten classes."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
    _ways(left)
    counts = exponential_counts(LARGEST, 100 ** (-1 / (CLASSES - 1)), CLASSES)
    for beta, colour in ((0.0, "0.6"), (0.99, "C0"), (0.999, "C2"), (0.9999, "C3")):
        right.plot(counts, effective_number_weights(counts, beta), f"{colour}", marker="o", label=f"beta {beta:g}")
    right.set(xlabel="training images of a class", ylabel="weight of the teacher's decision", xscale="log")
    right.invert_xaxis()
    right.legend(frameon=False)
    right.spines[["top", "right"]].set_visible(False)
    return figure


def _ways(axes: Axes) -> None:
    boxes = {
        "class token": (0.1, 0.75, "C0"),
        "patches of\nthe image": (0.1, 0.45, "0.5"),
        "distillation\ntoken": (0.1, 0.15, "C3"),
        "blocks": (0.36, 0.45, "0.5"),
        "head": (0.59, 0.75, "C0"),
        "head_dist": (0.59, 0.15, "C3"),
        "labels": (0.88, 0.75, "C0"),
        "what the teacher\ndecides": (0.88, 0.15, "C3"),
        "evaluation:\nthe mean of both": (0.88, 0.45, "0.5"),
    }
    for text, (x, y, colour) in boxes.items():
        frame = {"boxstyle": "round,pad=0.45", "facecolor": "white", "edgecolor": colour}
        axes.text(x, y, text, ha="center", va="center", fontsize=9, bbox=frame)
    ways = [
        ((0.18, 0.75), (0.31, 0.52), "C0"),
        ((0.18, 0.45), (0.30, 0.45), "0.5"),
        ((0.18, 0.15), (0.31, 0.38), "C3"),
        ((0.41, 0.52), (0.55, 0.72), "C0"),
        ((0.41, 0.38), (0.53, 0.18), "C3"),
        ((0.63, 0.75), (0.83, 0.75), "C0"),
        ((0.66, 0.15), (0.77, 0.15), "C3"),
        ((0.63, 0.70), (0.77, 0.50), "0.5"),
        ((0.66, 0.20), (0.77, 0.40), "0.5"),
    ]
    for begin, end, colour in ways:
        axes.annotate("", end, begin, arrowprops={"arrowstyle": "->", "color": colour})
    axes.set(xlim=(0, 1), ylim=(0, 0.92))
    axes.set_axis_off()

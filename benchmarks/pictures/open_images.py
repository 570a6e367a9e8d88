"""What Open Images says of a picture, and what its metric makes of five detections."""

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from skimage import data

__all__ = ["draw"]

# Left, top, width and height, measured by eye.
COINS = [
    (23, 34, 44, 40),
    (82, 38, 39, 36),
    (132, 28, 48, 47),
    (192, 28, 48, 46),
    (255, 33, 42, 40),
    (305, 15, 59, 58),
]
GROUP = (12, 92, 368, 206)
# Class, box, score, what the metric makes of it.
FOUND = [
    ("coin", (25, 32, 42, 44), 0.9, "right"),
    ("coin", (84, 26, 98, 50), 0.85, "wrong: two"),
    ("coin", (27, 174, 40, 42), 0.8, "right: the group"),
    ("coin", (188, 170, 46, 46), 0.7, "ignored: same group"),
    ("seal", (252, 30, 48, 46), 0.6, "ignored: not verified"),
]
COLOURS = {"right": "#1a7a1a", "ignored": "#666666", "wrong": "#c62020"}


def draw() -> Figure:
    """On the left the annotation, on the right the detections."""
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, title in (
        (left, "verified: coin present\nunknown: seal and all others"),
        (right, "7 to find; right, wrong, right, then ignored:\naverage precision (1 + 2/3) / 7"),
    ):
        axes.imshow(data.coins()[::2, ::2], cmap="gray", extent=(0, 384, 303, 0))
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    for name, style, (x, y, width, height) in [*(("coin", "-", it) for it in COINS), ("coin, group of", ":", GROUP)]:
        left.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor="#ffd24d", linewidth=2, linestyle=style))
        left.text(x + 3, y - 3, name, color="k", fontsize=7, va="bottom", bbox=_box("#ffd24d"))
    for name, (x, y, width, height), score, verdict in FOUND:
        colour = COLOURS[verdict.partition(":")[0]]
        right.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=colour, linewidth=2))
        told = f"{name} {score}\n" + verdict.replace(": ", ":\n")
        right.text(x + 3, y + height + 3, told, color="w", fontsize=6.5, va="top", bbox=_box(colour), clip_on=True)
    return figure


def _box(colour: str) -> dict[str, object]:
    return {"facecolor": colour, "pad": 1, "linewidth": 0}

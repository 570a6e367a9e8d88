"""The picture of HeadFirst: what fine-tuning does to features that its images do not show, in the smallest case.

A linear network v (b_1 x_1 + b_2 x_2) as in section 3 of the paper: pretraining has found b nearly right, the images at
hand vary along x_1 only, and others, out of their distribution, along x_2, of which training says nothing.
"""

import numpy as np
from matplotlib.figure import Figure

__all__ = ["draw"]

TRUE = (0.8, 0.6)  # what the network should multiply x_1 and x_2 by
PRETRAINED = (0.72, 0.6)
HEAD = 0.1
RATE, STEPS, ALONE = 0.1, 160, 60


def draw() -> Figure:
    """Both ways to train in the plane of head and feature, and the error on either kind of image."""
    paths = {"fine-tuning": (_descent(0), "C0"), "the head first": (_descent(ALONE), "C3")}
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    plane, errors = figure.subplots(1, 2)
    feature = np.linspace(0.6, 1.15, 100)
    plane.plot(feature, TRUE[0] / feature, "0.6", linewidth=4, alpha=0.6, label="no error on the images at hand")
    plane.axhline(TRUE[1] / PRETRAINED[1], color="0.3", linestyle=":", label="no error on others")
    plane.plot(PRETRAINED[0], HEAD, "ko")
    plane.annotate("  start", (PRETRAINED[0], HEAD), (0.735, 0.02), fontsize=8)
    for name, (path, colour) in paths.items():
        plane.plot(path[:, 0], path[:, 1], colour, linewidth=2, label=name)
        plane.plot(*path[-1], "o", color=colour)
        errors.plot((path[:, 1] * path[:, 0] - TRUE[0]) ** 2, colour, linestyle="--", linewidth=1)
        errors.plot((path[:, 1] * PRETRAINED[1] - TRUE[1]) ** 2, colour, linewidth=2, label=name)
    plane.set(xlabel="feature $b_1$, which the images show", ylabel="head $v$", xlim=(0.6, 1.15), ylim=(0, 1.4))
    plane.legend(frameon=False, loc="lower right", fontsize=8, bbox_to_anchor=(1, 0.02))
    errors.axvline(ALONE, color="0.7", linewidth=1)
    errors.text(ALONE + 2, 0.2, "all trains")
    errors.set(xlabel="steps", ylabel="squared error", yscale="log", ylim=(1e-4, 1), xlim=(0, STEPS))
    errors.set_title("solid: on others; dashed: on the images at hand", fontsize=9)
    errors.legend(frameon=False, loc="upper right")
    for axes in (plane, errors):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _descent(alone: int) -> np.ndarray:
    """Feature and head `(STEPS + 1, 2)` by gradient descent, the feature frozen for the first `alone` steps."""
    feature, head = PRETRAINED[0], HEAD
    path = [(feature, head)]
    for step in range(STEPS):
        error = head * feature - TRUE[0]
        moved = feature - RATE * 2 * error * head * (step >= alone)
        head -= RATE * 2 * error * feature
        feature = moved
        path.append((feature, head))
    return np.array(path)

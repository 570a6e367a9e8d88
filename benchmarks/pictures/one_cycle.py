"""The picture of OneCycle: rate and momentum of the cosine and of the paper's three lines."""

from matplotlib.figure import Figure

from lightning_vision.callbacks import OneCycle

__all__ = ["draw"]

STEPS = 1000
SHAPES = (
    ("cos, as fastai and torch", OneCycle(3.0)),
    ("linear, three phases, as the paper", OneCycle(3.0, pct_start=0.45, anneal="linear", three_phase=True)),
)


def draw() -> Figure:
    """A thousand steps with the paper's highest rate for CIFAR-10, 3."""
    figure = Figure(figsize=(9, 3.6))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    for (label, schedule), colour in zip(SHAPES, ("C0", "C1"), strict=True):
        schedule.plan(None, STEPS)
        above.plot([schedule.factor(step) for step in range(STEPS)], colour, label=label)
        below.plot([schedule.momentum(step) for step in range(STEPS)], colour)
    above.set(ylabel="learning rate", ylim=(0, None), yticks=[0, 1, 2, 3])
    below.set(ylabel="momentum", xlabel="optimizer steps", xlim=(0, STEPS), yticks=[0.85, 0.95])
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    above.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return figure

"""The picture of CyclicalLR: the three modes, and what momentum does meanwhile."""

from matplotlib.figure import Figure

from lightning_vision.callbacks import CyclicalLR

__all__ = ["draw"]

STEPS = 800
MODES = (
    ("triangular", CyclicalLR(100, base_lr=0.001, max_lr=0.006)),
    ("triangular2", CyclicalLR(100, base_lr=0.001, max_lr=0.006, mode="triangular2")),
    ("exp_range, gamma 0.997", CyclicalLR(100, base_lr=0.001, max_lr=0.006, mode="exp_range", gamma=0.997)),
)


def draw() -> Figure:
    """Four cycles between the paper's rates for CIFAR-10, 0.001 and 0.006."""
    figure = Figure(figsize=(9, 3.6))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    for (label, schedule), colour in zip(MODES, ("C0", "C1", "C2"), strict=True):
        above.plot([schedule.factor(step) for step in range(STEPS + 1)], colour, label=label)
        below.plot([schedule.momentum(step) for step in range(STEPS + 1)], colour)
    above.set(ylabel="learning rate", ylim=(0, None), yticks=[0, 0.001, 0.006])
    below.set(ylabel="momentum", xlabel="optimizer steps", xlim=(0, STEPS), yticks=[0.8, 0.9])
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        for end in range(200, STEPS, 200):
            axes.axvline(end, color="0.9", linewidth=1, zorder=0)
    above.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return figure

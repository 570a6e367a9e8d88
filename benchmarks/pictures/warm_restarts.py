"""The picture of WarmRestarts: two groups' learning rates through five cycles, with their restarts and snapshots."""

from matplotlib.figure import Figure

from lightning_vision.callbacks import WarmRestarts

__all__ = ["draw"]

EPOCH = 25  # optimizer steps
EPOCHS = 31
GROUPS = (("head, lr 0.01", 0.01, "C0"), ("trunk, lr 0.004", 0.004, "C1"))


def draw() -> Figure:
    """Cycles of 1, 2, 4, 8 and 16 epochs; both groups fall to a hundredth of their own rate and keep their ratio."""
    schedule = WarmRestarts(EPOCH, t_mult=2, eta_min=0.01, snapshots=3)
    steps = range(EPOCH * EPOCHS)
    ends = [step for step in range(1, EPOCH * EPOCHS + 1) if schedule.due(step)]
    figure = Figure(figsize=(9, 3.2))
    axes = figure.subplots()
    for label, rate, colour in GROUPS:
        axes.plot(
            [step / EPOCH for step in steps], [rate * schedule.factor(step) for step in steps], colour, label=label
        )
    for end in ends[:-1]:
        axes.axvline(end / EPOCH, color="0.8", linewidth=1, zorder=0, label="restart" if end == ends[0] else None)
    for chosen, shown, label in ((ends[:-3], "none", "end of a cycle"), (ends[-3:], "black", "snapshot kept")):
        marks = [GROUPS[0][1] * 0.01] * len(chosen)
        at = [end / EPOCH for end in chosen]
        axes.scatter(at, marks, marker="o", facecolors=shown, edgecolors="black", zorder=3, clip_on=False, label=label)
    axes.set(xlabel="epochs", ylabel="learning rate", xlim=(0, EPOCHS), ylim=(0, None), xticks=[0, 1, 3, 7, 15, 31])
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return figure

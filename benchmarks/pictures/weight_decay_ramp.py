"""The picture of WeightDecayRamp: one curve, as long as the training is."""

from matplotlib.figure import Figure

from lightning_vision.callbacks import WeightDecayRamp

__all__ = ["draw"]


def draw() -> Figure:
    """The paper's ramp in trainings of 100, 200 and 300 steps; one that falls to nothing from the optimizer's own."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True)
    for colour, training in enumerate((100, 200, 300)):
        ramp = WeightDecayRamp()
        ramp.plan(training)
        left.plot([ramp.decay(step, own=0.05) for step in range(training)], f"C{colour}", label=f"{training} steps")
    falling = WeightDecayRamp(start="own", end=0.0)
    falling.plan(300)
    for colour, own in enumerate((0.05, 0.02), start=3):
        right.plot([falling.decay(step, own) for step in range(300)], f"C{colour}", label=f"group with {own}")
    for axes, title in ((left, "start 0.04, end 0.4"), (right, "start own, end 0")):
        axes.set(xlabel="optimizer steps", title=title, ylim=(0, None))
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylabel("weight decay")
    return figure

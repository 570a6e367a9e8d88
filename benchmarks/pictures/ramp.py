"""The picture of Ramp: its three curves, and three stretches of one training."""

from matplotlib.figure import Figure

from lightning_vision.callbacks import Ramp
from lightning_vision.callbacks.hooks.values import Moment

__all__ = ["draw"]

STEPS, EPOCH = 100, 20


def draw() -> Figure:
    """A temperature from 8 to 1 over the middle of the training; a dropout from its own 0.1 over three stretches."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True)
    for shape in ("linear", "cosine", "exponential"):
        ramp = Ramp("criterion.temperature", start=8.0, end=1.0, begin=0.2, length=0.6, shape=shape)
        left.plot(_walked(ramp, 8.0), label=shape)
    for label, ramp in (
        ("all of the training", Ramp("network.*.p", end=0.5)),
        ("epochs 1 to 3", Ramp("network.*.p", end=0.5, begin=1, length=2, interval="epoch")),
        ("from step 60 on", Ramp("network.*.p", end=0.0, begin=60, interval="step")),
    ):
        right.plot(_walked(ramp, 0.1), label=label)
    for axes, title in ((left, "criterion.temperature, from 8 to 1"), (right, "network.*.p, from its own 0.1")):
        axes.set(xlabel="optimizer steps", title=title, ylim=(0, None))
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylabel("what a step reads")
    return figure


def _walked(ramp: Ramp, own: float) -> list[float]:
    moments = [Moment(step, STEPS, step / EPOCH, STEPS / EPOCH, step / STEPS) for step in range(STEPS)]
    return [ramp.value(ramp.attribute, own, moment) for moment in moments]

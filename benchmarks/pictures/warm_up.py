"""The picture of WarmUpCosine and WarmUpSteps: one follows the training's length, the other its own moments."""

from matplotlib.figure import Figure

from lightning_vision.callbacks import WarmUpCosine, WarmUpSteps

__all__ = ["draw"]

EPOCH = 20  # optimizer steps


def draw() -> Figure:
    """The cosine in trainings of 10, 20 and 30 epochs; steps at milestones and every 2.4 epochs."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for colour, epochs in enumerate((10, 20, 30)):
        cosine = WarmUpCosine(warmup=2, interval="epoch")
        cosine.plan(EPOCH, EPOCH * epochs)
        steps = range(EPOCH * epochs)
        left.plot(
            [step / EPOCH for step in steps],
            [cosine.factor(step) for step in steps],
            f"C{colour}",
            label=f"max_epochs {epochs}",
        )
    kinds = {
        "milestones [12, 18, 24], gamma 0.1": WarmUpSteps([12, 18, 24], warmup=2, interval="epoch"),
        "every 2.4, gamma 0.8": WarmUpSteps(every=2.4, gamma=0.8, warmup=2, interval="epoch"),
    }
    for colour, (label, schedule) in enumerate(kinds.items()):
        schedule.plan(EPOCH, EPOCH * 30)
        steps = range(EPOCH * 30)
        right.plot(
            [step / EPOCH for step in steps], [schedule.factor(step) for step in steps], f"C{colour + 3}", label=label
        )
    for axes, title in ((left, "WarmUpCosine(warmup=2)"), (right, "WarmUpSteps(warmup=2)")):
        axes.set(xlabel="epochs", title=title, xlim=(0, 30), ylim=(0, 1.25))
        axes.legend(frameon=False, loc="upper right")
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylabel("of the base rate")
    return figure

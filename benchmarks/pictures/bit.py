"""The picture of BiT-HyperRule: the learning rate for small, medium and large data."""

from matplotlib.figure import Figure

from lightning_vision.callbacks import WarmUpSteps
from lightning_vision.classification.bit import hyperrule

__all__ = ["draw"]

DATA = (("fewer than 20,000 images", 1_000), ("20,000 to 500,000, MixUp 0.1", 50_000), ("more, MixUp 0.1", 1_000_000))


def draw() -> Figure:
    """Three curves over the logarithm of the optimizer step; each ends where its training does."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    for colour, (label, images) in enumerate(DATA):
        rule = hyperrule(images, (224, 224))
        schedule = WarmUpSteps(milestones=list(rule.decays), warmup=rule.warmup)
        steps = [*range(1, 1_000), *range(1_000, rule.steps, 10)] if rule.steps > 1_000 else range(1, rule.steps)
        axes.plot(steps, [rule.lr * schedule.factor(step) for step in steps], f"C{colour}", label=label)
        axes.plot(rule.steps - 1, rule.lr * schedule.factor(rule.steps - 1), f"C{colour}o")
    axes.set(
        xlabel="optimizer step", ylabel="learning rate", xscale="log", yscale="log", xlim=(10, 3e4), ylim=(1e-6, 5e-3)
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure

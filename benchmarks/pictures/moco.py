"""The picture of MoCo: what a momentum makes of the past, and how old the keys of a queue are."""

import torch
from matplotlib.figure import Figure

__all__ = ["draw"]


def draw() -> Figure:
    """Left, the weight of each earlier network in the slow branch; right, the places of a queue by the age of keys."""
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    weights, ages = figure.subplots(1, 2)
    steps = torch.arange(0, 301)
    for number, momentum in enumerate((0.9, 0.99, 0.999)):
        weights.plot(steps, (1 - momentum) * momentum**steps, color=f"C{number}", label=f"momentum {momentum}")
    weights.set(xlabel="optimizer steps ago", ylabel="weight in the slow branch", yscale="log", ylim=(1e-5, 0.2))
    weights.legend(fontsize=8)
    batch, size = 256, 2048
    places = torch.arange(size)
    for number, step in enumerate((3, 8, 13)):
        count = step * batch
        last = count - 1 - (count - 1 - places) % size
        age = torch.where(last >= 0, (count - 1 - last) // batch, -1).float()
        age[age < 0] = torch.nan
        ages.plot(places, age, ".", markersize=2, color=f"C{number}", label=f"after {step} batches")
    ages.set(xlabel="place in a queue of 2,048", ylabel="age of its key, batches of 256")
    ages.legend(fontsize=8)
    return figure

"""The picture of flow matching: the same noise, followed by a network that has learned for longer and longer."""

from matplotlib.figure import Figure

from lightning_vision.generation.processes.flow_matching import FlowMatching

from ._made_digits import grid_of, training

__all__ = ["draw"]


def draw() -> Figure:
    """Ten digits in 20 steps of Euler after 0 to 1,000 steps of training."""
    stops = [0, 50, 150, 400, 1000]
    models = training(FlowMatching("optimal"), stops)
    rows = [(f"{stop} steps", model.sample(10, steps=20)) for stop, model in zip(stops, models, strict=True)]
    return grid_of(rows, [str(number) for number in range(10)])

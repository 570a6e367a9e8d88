"""The picture of EDM: one network, asked a few times and often, along Euler's steps and Heun's."""

from matplotlib.figure import Figure

from lightning_vision.generation.processes.edm import EDM

from ._made_digits import grid_of, trained

__all__ = ["draw"]


def draw() -> Figure:
    """Ten digits from the same noise by so many calls of the network."""
    model = trained(EDM(data_std=0.75, location=-0.8, sigma_max=20.0))
    asked = [("euler", 3), ("heun", 2), ("euler", 7), ("heun", 4), ("euler", 35), ("heun", 18)]
    rows = []
    for sampler, steps in asked:
        images = model.sample(10, sampler=sampler, steps=steps)
        rows.append((f"{sampler}, {model.network_calls} calls", images))
    return grid_of(rows, [str(number) for number in range(10)])

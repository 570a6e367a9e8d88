"""The picture of diffusion: digits on their way from noise, and what the network takes them for."""

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_vision.generation.draws import Draws
from lightning_vision.generation.processes.diffusion import Diffusion
from lightning_vision.generation.samplers.gaussian import ddim

from ._made_digits import grid_of, trained

__all__ = ["draw"]


def draw() -> Figure:
    """Two digits in ten steps of DDIM: x above, the estimated image below."""
    process = Diffusion("cosine", 1000, "v", clip=1.0)
    network = trained(process).network.eval()
    steps = process.sampling_steps(10)
    alphas, sigmas = (it.float() for it in process.alpha_and_sigma(steps))
    estimate = process.denoiser(network, steps, torch.tensor([3, 8]))
    ways: list[Tensor] = []
    guesses: list[Tensor] = []

    def watched(x: Tensor, number: int) -> tuple[Tensor, Tensor]:
        data, noise = estimate(x, number)
        ways.append(x)
        guesses.append(data)
        return data, noise

    end = ddim(watched, Draws(0, [0, 1]).normal(1, 8, 8), alphas, sigmas)
    rows = [
        row
        for place, label in enumerate((3, 8))
        for row in (
            (f"x, a {label}", torch.stack([it[place] for it in (*ways, end)])),
            ("estimate", torch.stack([it[place] for it in (*guesses, end)])),
        )
    ]
    return grid_of(rows, [f"t = {step}" for step in steps[:-1].tolist()] + ["end"])

"""What samplers and couplings cost by themselves: beside diffusers' schedulers, with a network that costs nothing."""

from collections.abc import Callable
from functools import partial
from typing import Any

import ot
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EDMEulerScheduler
from torch import Tensor

from lightning_vision.generation import EDM, NCSN, Diffusion, annealed_langevin, coupled

from .side_by_side import Row, take_turns, unprepared

__all__ = ["rows"]

STEPS = 50


def rows(quick: bool) -> list[Row]:
    """Of 64 images of 3 x 32 x 32 pixels, 50 steps; 256 of them coupled.

    Args:
        quick: One repetition with two images.
    """
    count, images = (1, 2) if quick else (15, 64)
    torch.manual_seed(0)
    x = torch.randn(images, 3, 32, 32)
    process = Diffusion()
    theirs = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler, "dpm_solver_2m": DPMSolverMultistepScheduler}
    found = []
    for name, kind in theirs.items():
        scheduler = kind(timestep_spacing="trailing", **({} if name == "dpm_solver_2m" else {"clip_sample": False}))
        ours = partial(process.sample, said, x, STEPS, sampler=name)
        found.append(_row(f"`{name}`", f"diffusers' `{kind.__name__}`", ours, partial(_steps, scheduler, x), count))
    euler = partial(EDM().sample, said, x, STEPS, sampler="euler")
    found.append(_row("`EDM`, `euler`", "diffusers' `EDMEulerScheduler`", euler, partial(_edm, x), count))
    sigmas = NCSN().sigmas
    walk = partial(annealed_langevin, lambda x, level: -x, x, sigmas, 1e-6, STEPS // 10)
    found.append(_row("`annealed_langevin`", "a bare loop", walk, partial(_walk, x, sigmas), count))
    data, noise = torch.randn(2, 4 * images, 192)
    weights: Any = torch.full((len(data),), 1 / len(data)).double().numpy()

    def transport() -> Any:
        cost = torch.cdist(data, noise).double().square()
        return noise[torch.from_numpy(ot.emd(weights, weights, cost.numpy())).argmax(1)]

    what = f"`coupled`, {len(data)} images of 192 numbers"
    return [*found, _row(what, "pot's `emd`", partial(coupled, data, noise), transport, count)]


def said(x: Tensor, time: Any = None, label: Any = None) -> Tensor:
    """The answer of a network that costs nothing."""
    return x


def _steps(scheduler: Any, x: Tensor) -> Tensor:
    scheduler.set_timesteps(STEPS)
    for step in scheduler.timesteps:
        x = scheduler.step(said(x), step, x).prev_sample
    return x


def _edm(x: Tensor) -> Tensor:
    scheduler: Any = EDMEulerScheduler()
    scheduler.set_timesteps(STEPS)
    x = 80 * x
    for step in scheduler.timesteps:
        x = scheduler.step(said(scheduler.scale_model_input(x, step)), step, x).prev_sample
    return x


def _walk(x: Tensor, sigmas: Tensor) -> Tensor:
    for sigma in sigmas:
        length = 1e-6 * (sigma / sigmas[-1]) ** 2
        for _ in range(STEPS // 10):
            x = x + length / 2 * -x + length.sqrt() * torch.randn_like(x)
    return x


def _row(what: str, against: str, ours: Callable[[], Any], peer: Callable[[], Any], count: int) -> Row:
    times = take_turns({"ours": unprepared(ours), "peer": unprepared(peer)}, count)
    return Row.slowdown(f"{what}", against, times["ours"]["cpu"], times["peer"]["cpu"], "cpu")

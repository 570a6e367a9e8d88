"""What it takes to fit a temperature, against general minimisers of the same likelihood."""

from collections.abc import Callable
from functools import partial
from math import exp

import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.optim import LBFGS

from lightning_vision.classification.temperature import fit_temperature

from .side_by_side import Row, Side, take_turns

__all__ = ["rows"]


def by_scipy(logits: Tensor, target: Tensor) -> float:
    """Brent's method over log T, to scipy's own tolerance."""
    wide = logits.double()
    found = minimize_scalar(lambda log_t: float(F.cross_entropy(wide / exp(log_t), target)), bounds=(-5, 5))
    return exp(found.x)


def by_lbfgs(logits: Tensor, target: Tensor) -> float:
    """torch's L-BFGS over T as published code has it: rate 0.01, at most 50 iterations."""
    temperature = torch.full((1,), 1.5, requires_grad=True)
    optimizer = LBFGS([temperature], lr=0.01, max_iter=50)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(logits / temperature, target)
        value.backward()  # type: ignore[no-untyped-call]  # torch's, without types
        return value

    optimizer.step(loss)  # type: ignore[arg-type]  # a tensor will do
    return float(temperature.detach())


def rows(quick: bool) -> list[Row]:
    """Fit the temperature of random logits that name their class more often than not.

    Args:
        quick: One repetition on 100 images.
    """
    count, repetitions, warmup = (100, 1, 0) if quick else (10_000, 15, 1)
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(100, (count,), generator=generator)
    logits = 3 * (torch.randn(count, 100, generator=generator) + 2 * F.one_hot(target, 100))

    def side(fit: Callable[[Tensor, Tensor], float]) -> Side:
        return lambda: partial(fit, logits, target)

    times = take_turns(
        {"ours": side(fit_temperature), "scipy": side(by_scipy), "torch": side(by_lbfgs)}, repetitions, warmup
    )
    ours, scipy, lbfgs = (times[name]["cpu"] for name in ("ours", "scipy", "torch"))
    return [
        Row.slowdown("`fit_temperature`", "scipy's `minimize_scalar`", ours, scipy, "cpu"),
        Row.slowdown("`fit_temperature`", "torch's `LBFGS`, 50 iterations", ours, lbfgs, "cpu"),
        Row.slowdown("(`minimize_scalar`)", "torch's `LBFGS`, 50 iterations", scipy, lbfgs, "cpu"),
    ]

"""Gaussian paths x_t = alpha_t data + sigma_t noise, and what a network may predict on them.

Predictions by name: `noise`; `data`; `v`, alpha_t noise - sigma_t data (Salimans and Ho 2022, arXiv:2202.00512).
"""

from typing import Literal

from torch import Tensor

__all__ = ["along", "data_and_noise", "target_of"]

Prediction = Literal["noise", "data", "v"]


def along(numbers: Tensor, like: Tensor) -> Tensor:
    """Numbers `(B,)` as `(B, 1, ...)`, of as many dimensions as `like` has."""
    return numbers.view(-1, *[1] * (like.ndim - 1))


def target_of(kind: Prediction, data: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What a network that predicts `kind` is to say; alpha and sigma broadcast to data and noise `(B, ...)`."""
    if kind == "v":
        return alpha * noise - sigma * data
    return noise if kind == "noise" else data


def data_and_noise(
    kind: Prediction, prediction: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor]:
    """Data and noise that a prediction at x = alpha data + sigma noise stands for, each `(B, ...)`.

    Both follow from any of the three, so that samplers need not know what the network predicts. Of `noise` alpha must
    not be 0, of `data` sigma must not.
    """
    if kind == "noise":
        return (x - sigma * prediction) / alpha, prediction
    if kind == "data":
        return prediction, (x - alpha * prediction) / sigma
    power = alpha.square() + sigma.square()
    return (alpha * x - sigma * prediction) / power, (sigma * x + alpha * prediction) / power

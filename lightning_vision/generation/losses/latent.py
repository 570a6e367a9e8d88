"""The two terms of a variational autoencoder, and the factor between them that is computed and not searched for.

Letters: B images of P numbers, D numbers of a latent code with mean mu and variance exp(l).
"""

from collections.abc import Callable
from typing import NamedTuple, Self

import torch
from torch import Generator, Tensor, nn

from lightning_vision.self_supervised.gather import mean_of_all

from ..networks.autoencoder import AutoEncoder, CodeAutoEncoder

__all__ = ["BalancedGamma", "Reconstruction", "kl_to_standard"]


def kl_to_standard(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL divergence of N(mu, exp(l)) from N(0, 1), summed over the code's numbers, `(B,)`.

    (exp(l) + mu^2 - 1 - l) / 2 of each number.

    Args:
        mean: mu, `(B, ...)`.
        log_variance: l, of the same shape.
    """
    return (log_variance.exp() + mean.square() - 1 - log_variance).flatten(1).sum(1) / 2


class Reconstruction(NamedTuple):
    """What a variational autoencoder makes of a batch, float32.

    Args:
        mean: mu of each code, `(B, ...)`.
        code: One draw of each.
        answer: What these are decoded to.
        error: Mean squared error of each answer, `(B,)`.
        divergence: KL of each code, `(B,)`.
    """

    mean: Tensor
    code: Tensor
    answer: Tensor
    error: Tensor
    divergence: Tensor

    @classmethod
    def of(cls, network: AutoEncoder | CodeAutoEncoder, x: Tensor, random: Generator) -> Self:
        """Encode, draw and decode.

        Args:
            network: Encodes and decodes.
            x: `(B, ...)`.
            random: Draws the codes, on the device of x.
        """
        mean, log_variance = (it.float() for it in network.encode(x))
        noise = torch.randn(mean.shape, generator=random, device=mean.device)
        code = mean + (log_variance / 2).exp() * noise
        answer = network.decode(code.to(x.dtype)).float()
        error = (answer - x.float()).square().flatten(1).mean(1)
        return cls(mean, code, answer, error, kl_to_standard(mean, log_variance))


class BalancedGamma(nn.Module):
    """gamma^2, the mean squared error that reconstructions have come to; it never rises (algorithm 1).

    A decoder that tells pixels with deviation gamma costs MSE / (2 gamma^2) + log(gamma) of each of them, whose least
    value by gamma is at gamma^2 = MSE. So gamma is kept at the error of now instead of being learned, and the balance
    of error and divergence stays right all along a training.

    Args:
        start: gamma at the beginning, above 0.
        decay: Share of it that stays at an update, 0..1.

    Raises:
        ValueError: a setting is out of its range.

    Example:
        >>> gamma = BalancedGamma(start=1.0, decay=0.9)
        >>> gamma.update(torch.tensor(0.5))
        >>> round(float(gamma.squared), 2)
        0.95

    Reference: Asperti and Trentin 2020, arXiv:2002.07514
    """

    squared: Tensor

    def __init__(self, start: float = 1.0, decay: float = 0.99) -> None:
        super().__init__()
        if start <= 0:
            raise ValueError(f"BalancedGamma: start is {start}; give a number above 0")
        if not 0 <= decay <= 1:
            raise ValueError(f"BalancedGamma: decay is {decay}; give the share of gamma^2 that stays, 0 to 1")
        self.decay = decay
        self.register_buffer("squared", torch.tensor(start**2))
        self._aside: dict[int, Tensor] = {}

    def collect(self, batch_idx: int, errors: Tensor) -> None:
        """Keep the errors `(B,)` of a micro-batch's images until `follow`; of the same number again nothing is kept."""
        self._aside.setdefault(batch_idx, errors.detach())

    def follow(self) -> None:
        """Update once, to the mean of what was collected since, on all processes."""
        if self._aside:
            self.update(mean_of_all(torch.cat(list(self._aside.values()))))
        self.forget()

    def forget(self) -> None:
        """Leave out what was collected and has not been followed."""
        self._aside.clear()

    @torch.no_grad()
    def update(self, error: Tensor) -> None:
        """Move to the mean squared error of a batch, a scalar, if that is lower."""
        self.squared.copy_(torch.minimum(self.squared, self.squared.lerp(error.to(self.squared), 1 - self.decay)))

    def loss(self, error: Tensor, divergence: Tensor, numbers: int) -> Tensor:
        """MSE / (2 gamma^2) + KL / P, a scalar.

        Args:
            error: Mean squared error of a number of the image, a scalar.
            divergence: KL of each image's code, `(B,)`.
            numbers: P.
        """
        return error / (2 * self.squared) + divergence.mean() / numbers

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "BalancedGamma":
        """As torch, but gamma^2 stays float32: in half precision a hundredth of a small change is no change."""
        exact = self.squared
        super()._apply(fn, recurse)
        if self.squared.dtype in (torch.float16, torch.bfloat16):
            self.squared = exact.to(self.squared.device)
        return self

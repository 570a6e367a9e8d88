"""A VAE's training step beside a bare loop of the same network; its draw and its losses beside others'."""

from collections.abc import Callable

import torch
from kornia.losses import MS_SSIMLoss
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from lightning_vision.generation import VAE
from lightning_vision.generation.losses.latent import kl_to_standard
from lightning_vision.generation.losses.ms_ssim import ms_ssim_loss

from .side_by_side import Row, take_turns, unprepared

__all__ = ["rows"]

Pair = tuple[Callable[[], None], Callable[[], None]]


def rows(quick: bool) -> list[Row]:
    """128 images of 32 pixels and their codes of 64; four photographs' worth of pixels for MS-SSIM.

    Args:
        quick: One repetition of the smallest.
    """
    count, images, side = (1, 4, 192) if quick else (15, 128, 256)
    torch.manual_seed(0)
    size = f"{images} images of 32 pixels"
    pair = torch.rand(2, 2 if quick else 4, 3, side, side)
    kornia = MS_SSIMLoss()
    return [
        _row(f"training step, {size}", "a bare loop", _steps(images), min(count, 7), "<= 1.05"),
        _row("draw and divergence of 1024 codes of 64", "`torch.distributions`", _codes(), count, "<= 1.00"),
        _row(
            f"`ms_ssim_loss` and gradient, {side} pixels",
            "kornia's `MS_SSIMLoss`",
            (_slope(ms_ssim_loss, pair), _slope(kornia, pair)),
            min(count, 7),
            "<= 1.00",
        ),
    ]


def _steps(images: int) -> Pair:
    vae = VAE(channels=16, image_size=32)
    image, network, squared = torch.randn(images, 3, 32, 32), vae.network.first, torch.tensor(1.0)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-6)

    def descend(loss: Tensor) -> None:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def ours() -> None:
        descend(vae.losses(image, None, torch.Generator().manual_seed(0))["loss"])
        vae.follow()

    def bare() -> None:
        mean, log_variance = network.encode(image)
        answer = network.decode(mean + (log_variance / 2).exp() * torch.randn_like(mean))
        error = (answer - image).square().mean()
        divergence = (log_variance.exp() + mean.square() - 1 - log_variance).sum() / 2
        descend(error / (2 * squared) + divergence / image.numel())
        squared.copy_(torch.minimum(squared, squared.lerp(error.detach(), 0.01)))

    return ours, bare


def _codes() -> Pair:
    mean, log_variance = (torch.randn(1024, 64).requires_grad_() for _ in range(2))

    def ours() -> None:
        code = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        torch.autograd.grad(code.sum() + kl_to_standard(mean, log_variance).sum(), (mean, log_variance))

    def theirs() -> None:
        told = Normal(mean, (log_variance / 2).exp())
        divergence = kl_divergence(told, Normal(torch.zeros_like(mean), torch.ones_like(mean)))
        torch.autograd.grad(told.rsample().sum() + divergence.sum(), (mean, log_variance))

    return ours, theirs


def _slope(loss: Callable[[Tensor, Tensor], Tensor], pair: Tensor) -> Callable[[], None]:
    first = pair[0].clone().requires_grad_()

    def run() -> None:
        torch.autograd.grad(loss(first, pair[1]), first)

    return run


def _row(what: str, against: str, pair: Pair, count: int, bar: str) -> Row:
    ours, peer = pair
    times = take_turns({"ours": unprepared(ours), "peer": unprepared(peer)}, count)
    return Row.slowdown(what, against, times["ours"]["cpu"], times["peer"]["cpu"], "cpu", bar)

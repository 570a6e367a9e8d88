"""What images made by optimisation share: pixels and their range, total variation, jitter, blur and the climb itself.

What is moved are pixels, float32 `(B, C, H, W)` from 0 to 1; a model is shown `(pixels - mean) / std`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import ceil, inf
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from lightning_vision.inspection.layers import find_layer
from lightning_vision.inspection.maps import as_maps, layout_of
from lightning_vision.inspection.scores import class_scores

__all__ = [
    "PixelSpace",
    "ascend",
    "checked_knobs",
    "grey_noise",
    "layer_output",
    "placed",
    "total_variation",
    "unit_scores",
]

TINY = 1e-12
COUNTS = ("steps", "blur_every", "facets", "per_mean", "top", "pca", "runs", "offspring", "batch_size")
SHARES = ("decay", "mutation_rate")


def total_variation(images: Tensor, beta: float = 2.0) -> Tensor:
    """Of each image the sum of `(right - own)^2 + (below - own)^2` to the power `beta / 2`, `(B,)`.

    Mahendran and Vedaldi 2014, the finite-difference form of their V^beta; beyond the edge nothing changes.
    """
    right = nn.functional.pad(images.diff(dim=3), (0, 1))
    below = nn.functional.pad(images.diff(dim=2), (0, 0, 0, 1))
    squares = right.square() + below.square()
    # The root has no derivative at zero.
    return (squares if beta == 2 else (squares + TINY).pow(beta / 2)).flatten(1).sum(1)


class PixelSpace:
    """From pixels to what a model is shown and back.

    Args:
        mean: Of the normalisation, one value or one a channel.
        std: Of the normalisation, likewise.
        channels: Of the images.
        device: Where the images are.

    Raises:
        ValueError: `mean` or `std` has another number of values, or a deviation is not above 0.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], channels: int, device: torch.device) -> None:
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, channels):
                raise ValueError(
                    f"{name} has {len(values)} values; images of {channels} channels take 1 or {channels}."
                )
        if min(std) <= 0:
            raise ValueError(f"std is {list(std)} and must be above 0.")
        self.mean, self.std = (
            torch.tensor(list(values), dtype=torch.float32, device=device).expand(channels).view(-1, 1, 1)
            for values in (mean, std)
        )

    def shown(self, pixels: Tensor) -> Tensor:
        """Pixels normalised, `(B, C, H, W)`."""
        return (pixels - self.mean) / self.std

    def pixels(self, images: Tensor) -> Tensor:
        """Normalised images as pixels, a copy that autograd may use.

        Raises:
            ValueError: they are no `(B, C, H, W)` of floats, or lie outside the range by more than rounding.
        """
        if images.ndim != 4 or not len(images) or not images.is_floating_point():
            raise ValueError(
                f"images are {images.dtype} {tuple(images.shape)} and must be floats (B, C, H, W), B >= 1."
            )
        pixels = images.detach().to(self.mean.device, torch.float32, copy=True) * self.std + self.mean
        if not bool(((pixels >= -1e-3) & (pixels <= 1 + 1e-3)).all()):
            raise ValueError(
                f"pixels reach from {float(pixels.min()):.3g} to {float(pixels.max()):.3g} and must lie between 0 and "
                "1; pass the mean and std that the images were normalised with."
            )
        return pixels.clamp(0, 1)


def checked_knobs(**knobs: float) -> None:
    """Counts at least 1, shares from 0 to 1, everything else at least 0.

    Raises:
        ValueError: one is outside.
    """
    for name, value in knobs.items():
        least = 1 if name in COUNTS else 0
        most = 1 if name in SHARES else inf
        if not least <= value <= most:
            raise ValueError(f"{name} is {value} and must be {least} {'to 1' if most == 1 else 'or more'}.")


def placed(model: nn.Module) -> dict[str, Any]:
    """Device and floating type of the model's first parameter, for `Tensor.to`; without parameters CPU and float32."""
    first = next((it for it in model.parameters() if it.is_floating_point()), torch.zeros(()))
    return {"device": first.device, "dtype": first.dtype}


@contextmanager
def layer_output(part: nn.Module, called: str, inputs: bool = False) -> Iterator[Callable[[], Tensor]]:
    """Inside, what a part of a network puts out is kept; what is yielded answers with the last of it.

    Args:
        part: A module.
        called: What it is to be called in an error.
        inputs: Whether what it is given is kept and not what it puts out.

    Raises:
        ValueError: when asked, nothing or no tensor was kept.
    """
    kept: list[Any] = []

    def last() -> Tensor:
        if not kept or not isinstance(kept[-1], Tensor):
            got = f"gave a {type(kept[-1]).__name__}" if kept else "did not run"
            raise ValueError(f"{called} {got} where a tensor was needed; name another layer.")
        return kept[-1]

    handle = part.register_forward_hook(lambda _module, given, output: kept.append(given[0] if inputs else output))
    try:
        yield last
    finally:
        handle.remove()


def grey_noise(shape: Sequence[int], generator: torch.Generator, device: torch.device) -> Tensor:
    """Pixels of middle grey with normal noise of deviation 0.1."""
    return (0.5 + 0.1 * torch.randn(tuple(shape), generator=generator)).clamp(0, 1).to(device)


def unit_scores(model: nn.Module, images: Tensor, channel: Tensor, layer: str | None) -> Tensor:
    """Of each image the logit `channel`, or the mean of that channel of a layer, `(B,)` float32.

    Args:
        model: Called as `model(images)`, at rest.
        images: `(B, C, H, W)`.
        channel: int64 `(B,)`.
        layer: Dotted name; None is the model's answer.

    Raises:
        ValueError: there is no such layer or channel, or the answer is no `(B, K)`.
    """
    given = images.to(**placed(model))
    if layer is None:
        return class_scores(model(given), channel)[0].float()
    with layer_output(find_layer(model, layer), f"layer {layer!r}") as output_of:
        model(given)
    output = output_of()
    if output.ndim == 4 and output.shape[2:] == (1, 1):
        output = output.flatten(1)
    if output.ndim != 2:
        layout = layout_of(model, find_layer(model, layer))
        output = as_maps(output, (images.shape[2], images.shape[3]), layout, layer).mean((2, 3))
    if int(channel.min()) < 0 or int(channel.max()) >= output.shape[1]:
        raise ValueError(f"layer {layer!r} has channels 0 to {output.shape[1] - 1}, not {channel.unique().tolist()}.")
    return output.float().gather(1, channel.to(output.device)[:, None]).squeeze(1)


def ascend(
    score: Callable[[Tensor], Tensor],
    pixels: Tensor,
    steps: int,
    lr: float,
    generator: torch.Generator,
    tv_weight: float = 0.0,
    decay: float = 0.0,
    rest: Tensor | float = 0.0,
    jitter: int = 0,
    blur: float = 0.0,
    blur_every: int = 4,
    mask: Callable[[int], Tensor] | None = None,
    stop_at: float = inf,
) -> tuple[Tensor, Tensor]:
    """Change images so that their scores rise; every image climbs alone, and between 0 and 1.

    The gradient is divided by its root mean square, so `lr` is how far a step moves a pixel, whatever the scale of the
    score, and `tv_weight` weighs total variation against a gradient of size 1.

    Args:
        score: Of pixels `(B, C, H, W)`, `(B,)`, differentiable.
        pixels: Where to begin.
        steps: Steps.
        lr: Root mean square by which a step moves a pixel, fraction of black to white.
        generator: Draws the jitter.
        tv_weight: Weight of the gradient of `total_variation` (beta 2); `lr * tv_weight` below 0.12 is stable.
        decay: Share by which a step shrinks the image towards `rest`.
        rest: Pixels `(C, 1, 1)`.
        jitter: Largest shift of an image before it is scored, pixels, around the edges.
        blur: Deviation of a Gaussian, pixels; 0 is none.
        blur_every: Steps from one blur to the next.
        mask: Of the step, what an update is multiplied by, `(H, W)`.
        stop_at: Ends early when all scores are at least this.

    Returns:
        Pixels, and the scores before each step, of images as shifted, and at the end, `(steps done + 1, B)`.
    """
    trace = []
    for step in range(steps):
        leaf = pixels.detach().requires_grad_()
        across, down = torch.randint(-jitter, jitter + 1, (2,), generator=generator).tolist()
        scores = score(leaf.roll((down, across), (2, 3)))
        if bool((scores >= stop_at).all()):
            break
        trace.append(scores.detach())
        gradient = _gradient(scores, leaf)
        uphill = gradient / gradient.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(TINY)
        if tv_weight:
            uphill = uphill - tv_weight * _gradient(total_variation(leaf), leaf)
        change = lr * uphill - decay * (pixels - rest)
        pixels = pixels + (change if mask is None else change * mask(step))
        if blur and step % blur_every == blur_every - 1:
            # Padding by reflection allows no kernel beyond the image.
            width = min(2 * ceil(3 * blur) + 1, 2 * min(pixels.shape[2:]) - 1)
            pixels = gaussian_blur(pixels, [width, width], [blur, blur])
        pixels = pixels.clamp(0, 1)
    trace.append(score(pixels).detach())
    return pixels.detach(), torch.stack(trace)


def _gradient(scores: Tensor, leaf: Tensor) -> Tensor:
    found = torch.autograd.grad(scores.sum(), leaf, allow_unused=True)[0] if scores.requires_grad else None
    if found is None:
        raise ValueError("what shall be raised does not depend on the image; choose another layer or channel.")
    if not bool(found.isfinite().all()):
        raise ValueError("the gradient by the image is not finite; does the model give NaN for these images?")
    return found

"""What images made by optimisation share: the pixel range, total variation, jitter, blur and the climb itself.

Images are float32 `(B, C, H, W)` as the model takes them, `(pixels - mean) / std` with pixels from 0 to 1.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import ceil, inf
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from lightning_vision.layers import as_maps, class_scores, find_layer

__all__ = [
    "ascend",
    "checked_images",
    "checked_knobs",
    "grey_noise",
    "overheard",
    "pixel_range",
    "placed",
    "total_variation",
    "unit_scores",
]

TINY = 1e-12


def total_variation(images: Tensor, beta: float = 2.0) -> Tensor:
    """Of each image the sum of `(right - own)^2 + (below - own)^2` to the power `beta / 2`, `(B,)`.

    Mahendran and Vedaldi 2014, the finite-difference form of their V^beta; beyond the edge nothing changes.
    """
    right = nn.functional.pad(images.diff(dim=3), (0, 1))
    below = nn.functional.pad(images.diff(dim=2), (0, 0, 0, 1))
    squares = right.square() + below.square()
    # The root has no derivative at zero.
    return (squares if beta == 2 else (squares + TINY).pow(beta / 2)).flatten(1).sum(1)


def pixel_range(mean: Sequence[float], std: Sequence[float], channels: int) -> tuple[Tensor, Tensor]:
    """What black and white are after normalisation, `(C, 1, 1)` each.

    Raises:
        ValueError: `mean` or `std` has neither one value nor one a channel, or a deviation is not above 0.
    """
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise ValueError(
                f"{name} has {len(values)} values and the images {channels} channels; give 1 or {channels}."
            )
    if min(std) <= 0:
        raise ValueError(f"std is {list(std)} and must be above 0.")
    centre, scale = (torch.tensor(list(values)).expand(channels).view(-1, 1, 1) for values in (mean, std))
    return -centre / scale, (1 - centre) / scale


def checked_images(images: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """`images` as float32 within the pixel range, a copy that autograd may use.

    Raises:
        ValueError: they are no `(B, C, H, W)` of floats, or lie outside the range by more than rounding.
    """
    if images.ndim != 4 or not len(images) or not images.is_floating_point():
        raise ValueError(
            f"images are {images.dtype} {tuple(images.shape)} and must be floats (B, C, H, W), B at least 1."
        )
    copy = images.detach().to(torch.float32, copy=True)
    slack = 1e-3 * (high - low)
    if not bool(((copy >= low - slack) & (copy <= high + slack)).all()):
        raise ValueError(
            f"images reach from {float(copy.min()):.3g} to {float(copy.max()):.3g}, and black to white is "
            f"{float(low.min()):.3g} to {float(high.max()):.3g}; pass the mean and std that they were normalised with."
        )
    return copy.clamp(low, high)


def checked_knobs(**knobs: float) -> None:
    """Counts of steps at least 1, everything else at least 0.

    Raises:
        ValueError: one is below.
    """
    for name, value in knobs.items():
        least = (
            1
            if name in ("steps", "blur_every", "facets", "per_mean", "top", "pca", "runs", "offspring", "batch_size")
            else 0
        )
        if value < least:
            raise ValueError(f"{name} is {value} and must be at least {least}.")


def placed(model: nn.Module) -> dict[str, Any]:
    """Device and floating type of the model's first parameter, for `Tensor.to`; without parameters CPU and float32."""
    first = next((it for it in model.parameters() if it.is_floating_point()), torch.zeros(()))
    return {"device": first.device, "dtype": first.dtype}


@contextmanager
def overheard(part: nn.Module, called: str, inputs: bool = False) -> Iterator[Callable[[], Tensor]]:
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


def grey_noise(shape: Sequence[int], low: Tensor, high: Tensor, generator: torch.Generator) -> Tensor:
    """Middle grey with normal noise of a tenth of the pixel range."""
    noise = torch.randn(tuple(shape), generator=generator)
    return ((low + high) / 2 + 0.1 * (high - low) * noise).clamp(low, high)


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
    with overheard(find_layer(model, layer), f"layer {layer!r}") as output_of:
        model(given)
    output = output_of()
    if output.ndim == 4 and output.shape[2:] == (1, 1):
        output = output.flatten(1)
    if output.ndim != 2:
        output = as_maps(output, (images.shape[2], images.shape[3]), None, layer).mean((2, 3))
    if int(channel.min()) < 0 or int(channel.max()) >= output.shape[1]:
        raise ValueError(f"layer {layer!r} has channels 0 to {output.shape[1] - 1}, not {channel.unique().tolist()}.")
    return output.float().gather(1, channel.to(output.device)[:, None]).squeeze(1)


def ascend(
    score: Callable[[Tensor], Tensor],
    images: Tensor,
    bounds: tuple[Tensor, Tensor],
    steps: int,
    lr: float,
    generator: torch.Generator,
    tv_weight: float = 0.0,
    decay: float = 0.0,
    jitter: int = 0,
    blur: float = 0.0,
    blur_every: int = 4,
    mask: Callable[[int], Tensor] | None = None,
    stop_at: float = inf,
) -> tuple[Tensor, Tensor]:
    """Change images so that their scores rise; every image climbs alone.

    A step adds `lr` times the gradient divided by its root mean square, so `lr` is how far a pixel moves in the mean,
    whatever the scale of the score. Total variation, decay and blur act on the pixels beside it, as denoising does,
    and not through the score.

    Args:
        score: Of images `(B, C, H, W)`, `(B,)`, differentiable.
        images: Where to begin, within `bounds`.
        bounds: Black and white, `(C, 1, 1)` each; every step ends between them.
        steps: Steps.
        lr: Root mean square by which a step moves a pixel, in normalised units.
        generator: Draws the jitter.
        tv_weight: Share of the gradient of `total_variation` (beta 2) that a step takes away; stable below 0.12.
        decay: Share by which a step shrinks the image towards 0.
        jitter: Largest shift of an image before it is scored, pixels, around the edges.
        blur: Deviation of a Gaussian, pixels; 0 is none.
        blur_every: Steps from one blur to the next.
        mask: Of the step, what an update is multiplied by, `(H, W)`.
        stop_at: Ends early when all scores are at least this.

    Returns:
        The images, and the scores before each step, of images as shifted, and at the end, `(steps done + 1, B)`.
    """
    low, high = (bound.to(images.device) for bound in bounds)
    trace = []
    for step in range(steps):
        leaf = images.detach().requires_grad_()
        across, down = torch.randint(-jitter, jitter + 1, (2,), generator=generator).tolist()
        scores = score(leaf.roll((down, across), (2, 3)))
        if bool((scores >= stop_at).all()):
            break
        trace.append(scores.detach())
        gradient = _gradient(scores, leaf)
        change = lr * gradient / gradient.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(TINY)
        if tv_weight:
            change = change - tv_weight * _gradient(total_variation(leaf), leaf)
        change = change - decay * images
        images = images + (change if mask is None else change * mask(step))
        if blur and step % blur_every == blur_every - 1:
            # Padding by reflection allows no kernel beyond the image.
            width = min(2 * ceil(3 * blur) + 1, 2 * min(images.shape[2:]) - 1)
            images = gaussian_blur(images, [width, width], [blur, blur])
        images = images.clamp(low, high)
    trace.append(score(images).detach())
    return images.detach(), torch.stack(trace)


def _gradient(scores: Tensor, leaf: Tensor) -> Tensor:
    found = torch.autograd.grad(scores.sum(), leaf, allow_unused=True)[0] if scores.requires_grad else None
    if found is None:
        raise ValueError("what shall be raised does not depend on the image; choose another layer or channel.")
    if not bool(found.isfinite().all()):
        raise ValueError("the gradient by the image is not finite; does the model give NaN for these images?")
    return found

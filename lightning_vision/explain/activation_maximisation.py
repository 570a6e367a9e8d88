"""Images that a unit of a network likes best: gradient ascent on the pixels, held natural by simple priors.

Erhan et al. 2009; Simonyan et al. 2013, arXiv:1312.6034 (a class score and L2); Yosinski et al. 2015, arXiv:1506.06579
(decay and blur); Mordvintsev et al. 2015 (jitter).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_vision.inspection.at_rest import at_rest

from ._pixel_ascent import PixelSpace, ascend, checked_knobs, grey_noise, placed, unit_scores

__all__ = ["MaximisedImages", "maximise_activation"]


@dataclass(frozen=True)
class MaximisedImages:
    """Images made to raise a unit, and how far it rose.

    Args:
        images: `(N, C, H, W)` float32, normalised, within the pixel range.
        start: Activation of the images at the start `(N,)`.
        end: Activation of `images`, `(N,)`.
    """

    images: Tensor
    start: Tensor
    end: Tensor


def maximise_activation(
    model: nn.Module,
    channel: int | Sequence[int],
    layer: str | None = None,
    *,
    size: tuple[int, int, int] | None = None,
    start: Tensor | None = None,
    steps: int = 200,
    lr: float = 0.05,
    tv_weight: float = 0.1,
    decay: float = 0.0,
    jitter: int = 1,
    blur: float = 0.0,
    blur_every: int = 4,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    seed: int = 0,
) -> MaximisedImages:
    """Make images that raise a class's logit, or the mean of a channel of a layer.

    The model is only asked, in eval mode: its weights, gradients and modes stay, and frozen parameters or
    `torch.inference_mode()` do not matter.

    Args:
        model: Called as `model(images)`.
        channel: Class, or channel of `layer`; several make an image each.
        layer: Dotted name; None is the answer `(B, K)` before the softmax.
        size: Channels, height and width of images to begin with grey noise; not with `start`.
        start: Images to begin with, `(N, C, H, W)` normalised, one a channel; None is grey noise.
        steps: Steps of ascent, at least 1.
        lr: Root mean square by which a step moves a pixel, fraction of black to white, at least 0.
        tv_weight: Weight of the gradient of total variation against a gradient of size 1; 0 is none. Stable while
            `lr * tv_weight` is below 0.12.
        decay: Share by which a step shrinks the image towards 0, the mean of normalised data, 0 to 1; 0 is none.
        jitter: Largest shift before each look, pixels; 0 is none.
        blur: Deviation of a Gaussian blur, pixels; 0 is none.
        blur_every: Steps from one blur to the next; Yosinski et al. take 4.
        mean: Of the normalisation, pixels from 0 to 1, one value or one a channel.
        std: Of the normalisation, likewise.
        seed: Of noise and jitter.

    Shape:
        Images `(N, C, H, W)`, activations `(N,)`, N the number of channels or of `start`.

    Raises:
        ValueError: there is no such layer or channel, not exactly one of `size` and `start` is given, their number
            does not fit, `start` is outside the pixel range, or a number is out of range.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> found = maximise_activation(network, [3, 8], size=(1, 8, 8), steps=20)
        >>> tuple(found.images.shape), bool((found.end > found.start).all())
        ((2, 1, 8, 8), True)

    Reference: Yosinski et al. 2015, arXiv:1506.06579

    BibTeX:
        @inproceedings{yosinski2015understanding,
          title     = {Understanding Neural Networks Through Deep Visualization},
          author    = {Yosinski, Jason and Clune, Jeff and Nguyen, Anh and Fuchs, Thomas and Lipson, Hod},
          booktitle = {ICML Deep Learning Workshop},
          year      = {2015}
        }

    Differs from the paper:
        The gradient is divided by its root mean square, total variation and jitter are there, and pixels of small norm
        or contribution are not cleared.

    See also:
        `visualise_facets`, which begins with means of images; `make_fooling_images`, without priors.
    """
    checked_knobs(steps=steps, lr=lr, tv_weight=tv_weight, decay=decay, jitter=jitter, blur=blur, blur_every=blur_every)
    channels = [channel] if isinstance(channel, int) else list(channel)
    if (size is None) == (start is None) or not channels:
        raise ValueError("give at least one channel and either size=(C, H, W) to begin with noise, or start=images.")
    generator = torch.Generator().manual_seed(seed)
    device = placed(model)["device"]
    with at_rest(model):
        if start is None:
            assert size is not None
            space = PixelSpace(mean, std, size[0], device)
            pixels = grey_noise((len(channels), *size), generator, device)
        else:
            space = PixelSpace(mean, std, start.shape[min(1, start.ndim - 1)], device)
            pixels = space.pixels(start)
        if len(channels) not in (1, len(pixels)):
            raise ValueError(
                f"there are {len(channels)} channels and {len(pixels)} images to start from; give one each."
            )
        chosen = torch.tensor(channels, device=device).expand(len(pixels))

        def score(batch: Tensor) -> Tensor:
            return unit_scores(model, space.shown(batch), chosen, layer)

        before = score(pixels).detach()
        pixels, trace = ascend(
            score, pixels, steps, lr, generator, tv_weight, decay, space.mean, jitter, blur, blur_every
        )
        return MaximisedImages(space.shown(pixels), before, trace[-1])

"""What a layer still knows of an image: the image made anew from the layer's output alone.

Mahendran and Vedaldi 2014, arXiv:1412.0035; the second of the four families in the survey of Qin et al. 2018,
arXiv:1804.11191.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_vision.inspection.at_rest import at_rest
from lightning_vision.inspection.layers import find_layer

from ._pixel_ascent import PixelSpace, checked_knobs, grey_noise, layer_output, placed, total_variation

__all__ = ["InvertedImages", "invert_layer"]


@dataclass(frozen=True)
class InvertedImages:
    """Images made anew from what a layer put out for others.

    Args:
        images: `(B, C, H, W)` float32, normalised, within the pixel range.
        objective: What was minimised, before each step and at the end, `(steps + 1, B)`.
        distance: `||Phi(x) - Phi(x0)||^2 / ||Phi(x0)||^2` at the end `(B,)`; 0 is an equal output.
        error: Root mean square distance from the originals `(B,)`, pixels from 0 to 1.
    """

    images: Tensor
    objective: Tensor
    distance: Tensor
    error: Tensor


def invert_layer(
    model: nn.Module,
    images: Tensor,
    layer: str,
    *,
    steps: int = 300,
    lr: float = 0.1,
    alpha: float = 6.0,
    alpha_weight: float = 1e-5,
    beta: float = 2.0,
    tv_weight: float = 0.1,
    start: Tensor | None = None,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    seed: int = 0,
) -> InvertedImages:
    """Make images whose output at a layer is that of given ones, which shows what the layer keeps.

    Minimised is `||Phi(x) - Phi(x0)||^2 / ||Phi(x0)||^2 + alpha_weight mean|x|^alpha + tv_weight mean TV^beta(p)` by
    Adam, whose rate falls to zero along half a cosine; p are the pixels of x, cut to 0..1 after each step.

    Args:
        model: Called as `model(images)`; it is left as it was.
        images: Originals x0 `(B, C, H, W)`, normalised.
        layer: Dotted name of Phi; its output may have any shape with the images first.
        steps: Steps of Adam, at least 1.
        lr: Rate of the first step, about how far it moves a pixel, fraction of black to white, at least 0.
        alpha: Of the norm that keeps pixels from extremes, at least 1; 6 in the paper.
        alpha_weight: Weight of that norm; 0 is none.
        beta: Of total variation, at least 1; 2 is the smoothest.
        tv_weight: Weight of total variation; 0 is none.
        start: Images to begin with, like `images`; None is grey noise.
        mean: Of the normalisation, pixels from 0 to 1, one value or one a channel.
        std: Of the normalisation, likewise.
        seed: Of the noise.

    Shape:
        Images `(B, C, H, W)`, objective `(steps + 1, B)`, distance and error `(B,)`.

    Raises:
        ValueError: there is no such layer, it puts out only zeros for an image, images are outside the pixel range,
            `start` has another shape, or a number is out of range.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
        >>> found = invert_layer(network, torch.rand(2, 1, 8, 8), "0", steps=20)
        >>> tuple(found.images.shape), bool((found.objective[-1] < found.objective[0]).all())
        ((2, 1, 8, 8), True)

    Reference: Mahendran and Vedaldi 2014, arXiv:1412.0035

    BibTeX:
        @inproceedings{mahendran2015understanding,
          title     = {Understanding Deep Image Representations by Inverting Them},
          author    = {Mahendran, Aravindh and Vedaldi, Andrea},
          booktitle = {CVPR},
          year      = {2015}
        }

    Differs from the paper:
        Adam and not momentum; both priors are means over pixels and not sums, so that weights hold at every size; the
        pixel range is kept, and x is not scaled by the mean norm of images.

    See also:
        `maximise_activation`, without an original.
    """
    checked_knobs(steps=steps, lr=lr, alpha_weight=alpha_weight, tv_weight=tv_weight)
    if min(alpha, beta) < 1:
        raise ValueError(f"alpha is {alpha} and beta {beta}; both must be at least 1.")
    generator = torch.Generator().manual_seed(seed)
    place = placed(model)
    with at_rest(model):
        space = PixelSpace(mean, std, images.shape[min(1, images.ndim - 1)], place["device"])
        originals = space.pixels(images)
        if start is None:
            pixels = grey_noise(originals.shape, generator, place["device"])
        elif start.shape == images.shape:
            pixels = space.pixels(start)
        else:
            raise ValueError(f"start is {tuple(start.shape)} and images are {tuple(images.shape)}; they must be alike.")
        part = find_layer(model, layer)

        def phi(p: Tensor) -> Tensor:
            with layer_output(part, f"layer {layer!r}") as output_of:
                model(space.shown(p).to(**place))
            return output_of().float().flatten(1)

        wanted = phi(originals).detach()
        scale = wanted.square().sum(1)
        if not bool((scale > 0).all()):
            raise ValueError(f"layer {layer!r} puts out only zeros for image {int(scale.argmin())}; name another one.")

        def distance(p: Tensor) -> Tensor:
            return (phi(p) - wanted).square().sum(1) / scale

        def objective(p: Tensor) -> Tensor:
            norm = alpha_weight * space.shown(p).abs().pow(alpha).flatten(1).mean(1)
            return distance(p) + norm + tv_weight * total_variation(p, beta) / p[0].numel()

        pixels.requires_grad_()
        adam = torch.optim.Adam([pixels], lr)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
        trace = []
        for _ in range(steps):
            value = objective(pixels)
            trace.append(value.detach())
            pixels.grad = torch.autograd.grad(value.sum(), pixels)[0]
            adam.step()
            falling.step()
            pixels.data.clamp_(0, 1)
        found = pixels.detach()
        trace.append(objective(found).detach())
        error = (found - originals).square().flatten(1).mean(1).sqrt()
        return InvertedImages(space.shown(found), torch.stack(trace), distance(found).detach(), error)

"""Insertion and deletion: whether the pixels that a map calls important decide what the model says.

Petsiuk et al. 2018, arXiv:1806.07421, section 4.2. Letters: B images, P pixels of an image, S steps.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from lightning_vision.inspection.at_rest import at_rest
from lightning_vision.inspection.scores import class_scores, rival_logits

__all__ = ["deletion", "insertion", "perturbation_curve"]

Baseline = Literal["blur", "zero"]
KERNEL, SIGMA = 11, 5.0  # pixels, of the blur


def perturbation_curve(
    model: nn.Module,
    start: Tensor,
    end: Tensor,
    maps: Tensor,
    class_index: int | Tensor,
    steps: int = 64,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Probability of a class while pixels go from `start` to `end`, those of the largest map values first.

    Args:
        model: Answers logits `(B, K)`; it is run in eval mode and left as it was.
        start: Images before, `(B, C, H, W)`.
        end: Images after.
        maps: `(B, H, W)`; pixels of equal value come in random order, so a constant map gives a random one.
        class_index: One class for all or int64 `(B,)`.
        steps: Number of steps S, >= 1; each changes the same number of pixels, to rounding.
        batch_size: Images that the model sees at once.
        generator: For the order of pixels of equal value, on the CPU; None draws the same order every time.

    Shape:
        `(B, S + 1)`, softmax probabilities: nothing changed first, everything last.

    Raises:
        ValueError: sizes disagree, `steps` is out of 1..P, or the answer is no `(B, K)`.
    """
    if start.shape != end.shape or maps.shape != (len(start), *start.shape[-2:]):
        raise ValueError(f"maps are {tuple(maps.shape)} for images {tuple(start.shape)}; give one (H, W) an image.")
    if not 1 <= steps <= maps[0].numel():
        raise ValueError(f"steps is {steps}; give 1 to {maps[0].numel()}, the pixels of an image.")
    rank = _ranks(maps, generator)
    classes = torch.as_tensor(class_index, device=start.device).expand(len(start))
    found = torch.empty(len(start), steps + 1)
    with at_rest(model), torch.no_grad():
        for first in range(0, len(start), batch_size):
            part = slice(first, first + batch_size)
            for step in range(steps + 1):
                changed = rank[part] < round(step * maps[0].numel() / steps)
                images = torch.where(changed[:, None], end[part], start[part])
                answer = rival_logits(model(images))
                class_scores(answer, classes[part])
                found[part, step] = answer.float().softmax(1).gather(1, classes[part, None]).squeeze(1).cpu()
    return found


def insertion(
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    class_index: int | Tensor | None = None,
    steps: int = 64,
    baseline: Baseline = "blur",
    batch_size: int = 64,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Area under the class probability while an image appears, its most important pixels first; large is good.

    Args:
        model: Answers logits `(B, K)`; it is run in eval mode and left as it was.
        images: `(B, C, H, W)`, normalised as the model takes them.
        maps: What explains them, `(B, H, W)`, large where important.
        class_index: Class that was explained, one for all or int64 `(B,)`; None is each image's predicted one.
        steps: Number of steps from nothing to all pixels, >= 1.
        baseline: What stands where a pixel is not there yet: the image `blur`red as the authors do it (a kernel of
            11 pixels, less where the image is smaller, of standard deviation 5), or `zero`, the mean of normalised
            images.
        batch_size: Images that the model sees at once.
        generator: For the order of pixels of equal value; None draws the same order every time.

    Shape:
        `(B,)`, 0 to 1.

    Raises:
        ValueError: sizes disagree, `steps` or `baseline` is out of range, or the answer is no `(B, K)`.

    Reference: Petsiuk et al. 2018, arXiv:1806.07421
    """
    classes = _predicted(model, images) if class_index is None else class_index
    empty = _without(images, baseline)
    return _area(perturbation_curve(model, empty, images, maps, classes, steps, batch_size, generator))


def deletion(
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    class_index: int | Tensor | None = None,
    steps: int = 64,
    baseline: Baseline = "zero",
    batch_size: int = 64,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Area under the class probability while an image vanishes, its most important pixels first; small is good.

    The arguments are those of `insertion`; `baseline` is what stands where a pixel is gone.

    Reference: Petsiuk et al. 2018, arXiv:1806.07421
    """
    classes = _predicted(model, images) if class_index is None else class_index
    empty = _without(images, baseline)
    return _area(perturbation_curve(model, images, empty, maps, classes, steps, batch_size, generator))


def _ranks(maps: Tensor, generator: torch.Generator | None) -> Tensor:
    """Place of each pixel when the largest comes first, int64 `(B, H, W)`."""
    flat = maps.flatten(1)
    generator = generator or torch.Generator().manual_seed(0)
    # One for all images, so that an image's score does not depend on its place in the batch.
    shuffle = torch.randperm(flat.shape[1], generator=generator).to(flat.device).expand_as(flat)
    # Stable after a shuffle: pixels of equal value keep the shuffled order.
    order = shuffle.gather(1, flat.gather(1, shuffle).argsort(dim=1, descending=True, stable=True))
    places = torch.arange(flat.shape[1], device=flat.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view(maps.shape)


def _predicted(model: nn.Module, images: Tensor) -> Tensor:
    with at_rest(model), torch.no_grad():
        return class_scores(model(images), None)[1]


def _without(images: Tensor, baseline: Baseline) -> Tensor:
    if baseline == "zero":
        return torch.zeros_like(images)
    if baseline != "blur":
        raise ValueError(f"baseline is {baseline!r}; give 'blur' or 'zero'.")
    side = min(images.shape[-2:])
    kernel = min(KERNEL, side - 1 + side % 2)
    return gaussian_blur(images, [kernel, kernel], [SIGMA, SIGMA])


def _area(curve: Tensor) -> Tensor:
    """By trapezoids over the share of changed pixels."""
    return torch.trapezoid(curve, dim=1) / (curve.shape[1] - 1)

"""Images that a classifier is sure of and nobody recognises: a check of what its confidence is worth.

Nguyen et al. 2014, arXiv:1412.1897: gradient ascent, and MAP-Elites with pixels or with a small network that paints
(CPPN) as the genome.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf, log
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_vision.inspection.at_rest import at_rest
from lightning_vision.inspection.scores import rival_logits

from ._map_elites import Painter, Pixels, map_elites
from ._pixel_ascent import PixelSpace, ascend, checked_knobs, grey_noise, placed

__all__ = ["FoolingImages", "make_fooling_images"]


@dataclass(frozen=True)
class FoolingImages:
    """Images made to be taken for a class, and how sure the model is of them.

    Args:
        images: `(R, K, C, H, W)`, of each run one a class, float32, normalised, within the pixel range.
        classes: Which classes they are for, int64 `(K,)`.
        confidence: Softmax probability of the class `(R, K)`.
        history: The same before each step (of evolution, the archive's), and at the end, `(steps done + 1, R, K)`.
    """

    images: Tensor
    classes: Tensor
    confidence: Tensor
    history: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean confidence of each class over the runs `(K,)`."""
        return self.confidence.mean(0)

    @property
    def median(self) -> Tensor:
        """Median confidence of each class over the runs `(K,)`; of an even number the mean of the middle two."""
        return self.confidence.quantile(0.5, dim=0)


def make_fooling_images(
    model: nn.Module,
    size: tuple[int, int, int],
    classes: Sequence[int] | None = None,
    *,
    method: Literal["gradient", "evolution", "cppn"] = "gradient",
    runs: int = 1,
    steps: int = 200,
    lr: float = 0.02,
    decay: float = 0.0,
    mutation_rate: float = 0.1,
    offspring: int = 64,
    threshold: float = 0.9999,
    batch_size: int = 64,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    seed: int = 0,
) -> FoolingImages:
    """Make images that a classifier takes for each class with high confidence though nothing is to be seen.

    Args:
        model: Called as `model(images)`, answers logits `(B, K)`, K >= 2; it is left as it was.
        size: Channels, height and width of the images.
        classes: For which classes; None is all.
        method: `gradient` climbs the logarithm of the probability from grey noise; `evolution` keeps the best image of
            every class and mutates pixels (MAP-Elites, direct encoding); `cppn` does so with small painting networks.
        runs: Images a class, each from a start of its own, at least 1.
        steps: Steps of ascent, or generations, at least 1.
        lr: Of `gradient`: root mean square by which a step moves a pixel, fraction of black to white, at least 0.
        decay: Of `gradient`: share by which a step shrinks the image towards 0 (the paper's L2), 0 to 1; 0 is none.
        mutation_rate: Of evolution: fraction of genes that a mutation changes, 0 to 1; 0.1 in the paper.
        offspring: Of evolution: mutants a generation and run, at least 1; 200 in the authors' code.
        threshold: Ends early when all confidences are at least this; above 1 is never. 0.9999 in the paper.
        batch_size: Images asked at a time.
        mean: Of the normalisation, pixels from 0 to 1, one value or one a channel.
        std: Of the normalisation, likewise.
        seed: Of starts and mutations.

    Shape:
        Images `(R, K, C, H, W)`, confidence `(R, K)`, R = `runs` and K the number of classes asked for.

    Raises:
        ValueError: the answer is no `(B, K)` or K is 1, a class is outside it, the method is unknown, or a number is
            out of range.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> found = make_fooling_images(network, (1, 8, 8), [3, 8], steps=20)
        >>> tuple(found.images.shape), bool((found.history[-1] > found.history[0]).all())
        ((1, 2, 1, 8, 8), True)

    Reference: Nguyen et al. 2014, arXiv:1412.1897

    BibTeX:
        @inproceedings{nguyen2015deep,
          title     = {Deep Neural Networks are Easily Fooled: High Confidence Predictions for Unrecognizable Images},
          author    = {Nguyen, Anh and Yosinski, Jason and Clune, Jeff},
          booktitle = {CVPR},
          year      = {2015}
        }

    Differs from the paper:
        The gradient is of the logarithm of the probability, divided by its root mean square; the painting networks have
        two hidden layers of fixed width, whose weights and functions evolve and whose wiring does not, so crossover and
        growth (NEAT) are left out.

    See also:
        `maximise_activation`, whose priors make images to look at.
    """
    checked_knobs(steps=steps, runs=runs, offspring=offspring, batch_size=batch_size, lr=lr)
    checked_knobs(decay=decay, mutation_rate=mutation_rate)
    if method not in ("gradient", "evolution", "cppn"):
        raise ValueError(f"method is {method!r}; choose gradient, evolution or cppn.")
    if len(size) != 3 or min(size) < 1:
        raise ValueError(f"size is {tuple(size)} and must be channels, height and width.")
    generator = torch.Generator().manual_seed(seed)
    place = placed(model)
    device = place["device"]
    with at_rest(model):
        space = PixelSpace(mean, std, size[0], device)

        def log_probabilities(pixels: Tensor) -> Tensor:
            return rival_logits(model(space.shown(pixels.to(device)).to(**place))).float().log_softmax(1)

        with torch.no_grad():
            known = log_probabilities(torch.full((1, *size), 0.5)).shape[1]
        asked = torch.arange(known) if classes is None else torch.tensor(list(classes), dtype=torch.int64)
        if not len(asked) or int(asked.min()) < 0 or int(asked.max()) >= known:
            raise ValueError(f"classes are {asked.tolist()} and the model has classes 0 to {known - 1}.")
        if method == "gradient":
            begun = grey_noise((runs * len(asked), *size), generator, device)
            knobs = {"steps": steps, "lr": lr, "generator": generator, "decay": decay, "rest": space.mean}
            stop_at = log(threshold) if threshold > 0 else -inf
            pixels, trace = _climb(log_probabilities, begun, asked.repeat(runs), batch_size, stop_at, knobs)
            history = trace.exp().unflatten(1, (runs, len(asked)))
        else:

            def confidences(painted: Tensor) -> Tensor:
                with torch.no_grad():
                    return torch.cat([log_probabilities(it).exp()[:, asked].cpu() for it in painted.split(batch_size)])

            encoding = Pixels(size) if method == "evolution" else Painter(size)
            elites, history = map_elites(
                confidences, encoding, runs, len(asked), steps, offspring, mutation_rate, threshold, generator
            )
            pixels = encoding.paint(elites.flatten(0, 1)).to(device)
        images = space.shown(pixels).unflatten(0, (runs, len(asked)))
        return FoolingImages(images, asked, history[-1], history)


def _climb(
    log_probabilities: Callable[[Tensor], Tensor],
    begun: Tensor,
    target: Tensor,
    batch_size: int,
    stop_at: float,
    knobs: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """Ascend batch by batch: pixels `(N, C, H, W)` and the targets' log probabilities `(T, N)`, on the CPU."""

    def score(chosen: Tensor, pixels: Tensor) -> Tensor:
        return log_probabilities(pixels).gather(1, chosen).squeeze(1)

    found, traces = [], []
    for pixels, wanted in zip(begun.split(batch_size), target.to(begun.device).split(batch_size), strict=True):
        climbed, trace = ascend(partial(score, wanted[:, None]), pixels, stop_at=stop_at, **knobs)
        found.append(climbed)
        traces.append(trace.cpu())
    longest = max(len(trace) for trace in traces)
    # A batch that was done early stays as it is.
    even = [torch.cat([trace, trace[-1:].expand(longest - len(trace), -1)]) for trace in traces]
    return torch.cat(found), torch.cat(even, 1)

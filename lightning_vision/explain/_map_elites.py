"""MAP-Elites with a class as a niche, and two ways of writing an image as genes.

Mouret and Clune 2015, arXiv:1504.04909, as Nguyen et al. 2014, arXiv:1412.1897 use it. All genes lie in 0..1.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Encoding", "Painter", "Pixels", "map_elites", "mutate"]

ETA = 15.0  # of the polynomial mutation, as in the paper: larger is nearer to the parent
HALVED_EVERY = 1000  # generations after which the paper halves the mutation rate


class Encoding(Protocol):
    """How many genes an image has, and how they become one."""

    genes: int

    def paint(self, genes: Tensor) -> Tensor:
        """Genes `(M, G)` to pixels `(M, C, H, W)`, both from 0 to 1."""
        ...


class Pixels:
    """Direct encoding: a gene a pixel."""

    def __init__(self, size: tuple[int, int, int]) -> None:
        self.size = size
        self.genes = size[0] * size[1] * size[2]

    def paint(self, genes: Tensor) -> Tensor:
        """Genes `(M, G)` to pixels `(M, C, H, W)`."""
        return genes.unflatten(1, self.size)


class Painter:
    """Indirect encoding: a small network that is given a place and answers its colour (CPPN, Stanley 2007).

    Inputs are x, y and the distance from the middle, -1 to 1 at the edges, and 1; then two layers of `WIDTH` nodes,
    each with a sine, a sigmoid, a Gaussian or nothing as its function; then a sigmoid a channel. Genes are weights,
    from `-REACH` to `REACH`, and functions.
    """

    WIDTH, REACH = 8, 3.0

    def __init__(self, size: tuple[int, int, int]) -> None:
        channels, height, width = size
        self.size = size
        self.shapes = [(4, self.WIDTH), (self.WIDTH, self.WIDTH), (self.WIDTH, channels)]
        self.genes = sum(rows * columns for rows, columns in self.shapes) + 2 * self.WIDTH
        down, across = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        places = [across, down, (across.square() + down.square()).sqrt(), torch.ones_like(down)]
        self.places = torch.stack(places, -1).flatten(0, 1)

    def paint(self, genes: Tensor) -> Tensor:
        """Genes `(M, G)` to pixels `(M, C, H, W)`."""
        sizes = [rows * columns for rows, columns in self.shapes]
        *flat, first, second = genes.split([*sizes, self.WIDTH, self.WIDTH], 1)
        weights = [
            (2 * it - 1).mul(self.REACH).unflatten(1, shape) for it, shape in zip(flat, self.shapes, strict=True)
        ]
        signal = self.places.expand(len(genes), -1, -1)
        for weight, kind in zip(weights, (first, second), strict=False):
            signal = signal @ weight
            which = kind.mul(4).long().clamp_max(3)[:, None]
            bent = torch.where(which == 0, signal.sin(), torch.where(which == 1, signal.sigmoid(), signal))
            signal = torch.where(which == 2, (-signal.square()).exp(), bent)
        return (signal @ weights[2]).sigmoid().transpose(1, 2).unflatten(2, self.size[1:])


def mutate(genes: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Polynomial mutation (Deb) of genes `(..., G)` in 0..1: each gene moves with probability `rate`."""
    drawn = torch.rand(genes.shape, generator=generator)
    power = 1 / (ETA + 1)
    moved = torch.where(drawn < 0.5, (2 * drawn) ** power - 1, 1 - (2 * (1 - drawn)) ** power)
    changed = torch.rand(genes.shape, generator=generator) < rate
    return torch.where(changed, genes + moved, genes).clamp(0, 1)


def map_elites(
    confidences: Callable[[Tensor], Tensor],
    encoding: Encoding,
    runs: int,
    niches: int,
    generations: int,
    offspring: int,
    rate: float,
    threshold: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Keep the best of every niche; mutate elites of any niche; a child takes every niche where it is better.

    Args:
        confidences: Of pixels `(M, C, H, W)` from 0 to 1, `(M, K)`, one a niche.
        encoding: How genes become images.
        runs: Archives R, apart from one another.
        niches: K.
        generations: Most generations.
        offspring: Random beginners, and children a generation, of each archive.
        rate: Fraction of genes that a mutation changes.
        threshold: Ends early when every elite's confidence is at least this.
        generator: Draws everything.

    Returns:
        Genes of the elites `(R, K, G)`, and their confidences at the start and after each generation, `(T, R, K)`.
    """
    elites = torch.zeros(runs, niches, encoding.genes)
    best = torch.full((runs, niches), -1.0)
    children = torch.rand(runs, offspring, encoding.genes, generator=generator)
    history: list[Tensor] = []
    archive = torch.arange(runs)[:, None]
    for generation in range(generations + 1):
        scores = confidences(encoding.paint(children.flatten(0, 1))).unflatten(0, (runs, offspring))
        top, child = scores.max(1)
        better = top > best
        elites = torch.where(better[..., None], children[archive, child], elites)
        best = torch.where(better, top, best)
        history.append(best)
        if bool((best >= threshold).all()):
            break
        parents = torch.randint(niches, (runs, offspring), generator=generator)
        children = mutate(elites[archive, parents], rate * 0.5 ** (generation // HALVED_EVERY), generator)
    return elites, torch.stack(history)

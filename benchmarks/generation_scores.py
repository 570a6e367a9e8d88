"""What scores of made images cost, beside torchmetrics' and prdc's, and beside making the images."""

from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from tempfile import TemporaryDirectory
from typing import Any

import torch
from prdc import compute_prdc
from torch import Tensor, nn
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import KernelInceptionDistance

from lightning_vision.callbacks import GenerationScores
from lightning_vision.callbacks.generation.frechet import Moments, frechet_distance, frechet_distance_of_features
from lightning_vision.callbacks.generation.kernel import kernel_distance
from lightning_vision.callbacks.generation.manifold import manifold_scores

from .fits import batches_of
from .side_by_side import Row, Side, take_turns, unprepared
from .validations import Paints, validating

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Score sets of random features; validate with scores and without.

    Args:
        quick: One repetition of small sets.
    """
    turns = (1, 0) if quick else (7, 1)
    wide, narrow, many = (256, 16, 300) if quick else (2048, 64, 2000)
    return [*_distances(wide, many, *turns), *_shares(narrow, many, *turns), *_validations(64, *turns)]


def _distances(wide: int, many: int, *turns: int) -> list[Row]:
    real, made = _clouds(2 * wide, wide)
    first, second = Moments.of(real), Moments.of(made)
    moments = first.mean, first.covariance, second.mean, second.covariance
    few = _clouds(wide // 8, wide)
    one, other = _clouds(many // 2, 64)
    size = many // 2
    times = _times(
        {
            "ours": unprepared(lambda: frechet_distance(first, second)),
            "theirs": unprepared(lambda: _compute_fid(*moments)),
            "few": unprepared(lambda: frechet_distance_of_features(*few)),
            "few by moments": unprepared(lambda: frechet_distance(*map(Moments.of, few))),
            "kernel": unprepared(lambda: kernel_distance(one, other, size)),
            "their kernel": lambda: _their_kernel(one, other, size),
        },
        turns,
    )
    what, by = f"Frechet distance of moments of {wide:,} features", "torchmetrics' `_compute_fid`"
    short = f"Frechet distance of {wide // 8} and {wide // 8} images, {wide:,} features"
    kernel = f"kernel distance of {size:,} and {size:,} images, all of them in a subset"
    theirs = "torchmetrics' `KernelInceptionDistance`"
    return [
        Row.slowdown(what, by, times["ours"], times["theirs"], "cpu", "<= 0.50"),
        Row.slowdown(short, "by their moments", times["few"], times["few by moments"], "cpu", "<= 1.00"),
        Row.slowdown(kernel, theirs, times["kernel"], times["their kernel"], "cpu", "<= 1.00"),
    ]


def _shares(narrow: int, many: int, *turns: int) -> list[Row]:
    real, made = _clouds(many, narrow)

    def theirs() -> Any:
        with redirect_stdout(StringIO()):
            return compute_prdc(real.numpy(), made.numpy(), 5)

    if any(abs(vars(manifold_scores(real, made))[name] - value) > 1e-9 for name, value in theirs().items()):
        raise AssertionError("prdc and we have other shares")
    times = _times({"ours": unprepared(lambda: manifold_scores(real, made)), "theirs": unprepared(theirs)}, turns)
    what = f"precision, recall, density and coverage of {many:,} and {many:,} images, {narrow} features"
    return [Row.slowdown(what, "prdc's `compute_prdc`", times["ours"], times["theirs"], "cpu", "<= 1.00")]


def _validations(images: int, *turns: int) -> list[Row]:
    scores = GenerationScores(samples=images, features=_Pooled(), real=images, batch_size=32)
    with TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        sides: dict[str, Side] = {
            "plain": validating(batches_of(32, 2), folder, kind=Paints),
            "ours": validating(batches_of(32, 2), folder, scores, kind=Paints),
            "made": lambda: _making(images),
        }
        times = _times(sides, turns)
    added = [ours - plain for ours, plain in zip(times["ours"], times["plain"], strict=True)]
    return [
        Row.slowdown(f"what scores of {images} images add", "making them", added, times["made"], "cpu", "<= 1.30"),
    ]


class _Pooled(nn.Module):
    """Means of squares of the image."""

    def forward(self, image: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(image, 8).flatten(1)


def _clouds(count: int, width: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    real, made = torch.randn(2, count, width, generator=random, dtype=torch.float64)
    mixed = torch.randn(width, width, generator=random, dtype=torch.float64) / width**0.5
    return real @ mixed, made @ mixed + 0.1


def _their_kernel(real: Tensor, made: Tensor, size: int) -> Callable[[], Any]:
    metric = KernelInceptionDistance(feature=nn.Identity(), subset_size=size)
    metric.set_dtype(torch.float64)
    metric.update(real, real=True)
    metric.update(made, real=False)
    return metric.compute


def _making(images: int) -> Callable[[], Any]:
    module = Paints().eval()

    def run() -> None:
        with torch.no_grad():
            for _ in range(images // 32):
                module.sample(32)

    return run


def _times(sides: dict[str, Side], turns: tuple[int, ...]) -> dict[str, list[float]]:
    return {name: clocks["cpu"] for name, clocks in take_turns(sides, *turns).items()}

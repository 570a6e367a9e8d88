"""What a map of features of every validation costs, beside one extra batch and beside a pass for the features alone."""

from tempfile import TemporaryDirectory
from typing import Any

import torch
from sklearn.decomposition import PCA

from lightning_vision.callbacks import EmbeddingLogger, principal_coordinates

from .fits import Batches, batches_of
from .side_by_side import Row, Side, take_turns
from .validations import Validated, one_batch, validating

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Validate `resnet20_cifar` on batches of 64 with and without; project and draw 500 images.

    Args:
        quick: One repetition of two batches.
    """
    batches = batches_of(64, 2 if quick else 10)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(20 if quick else 500, 512, generator=generator)
    labels = torch.randint(10, (len(features),), generator=generator)
    maps = {name: EmbeddingLogger(projection=name) for name in ("pca", "tsne")}
    pca = PCA(2, svd_solver="full")
    with TemporaryDirectory() as folder:
        sides: dict[str, Side] = {
            "plain": validating(batches, folder),
            "ours": validating(batches, folder, EmbeddingLogger()),
            "again": lambda: lambda: _features_alone(batches),
            "batch": one_batch(batches),
            "draw": lambda: lambda: maps["pca"].draw(Validated(), features, labels, None),
            "tsne": lambda: lambda: maps["tsne"].draw(Validated(), features, labels, None),
            "coordinates": lambda: lambda: principal_coordinates(features),
            "sklearn": lambda: lambda: pca.fit_transform(features.numpy()),
        }
        times = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (7, 1)).items()}
    what = "map and number of 500 images, 512 features"
    return [
        Row.slowdown("a validation of 10 batches with the logger", "without it", times["ours"], times["plain"], "cpu"),
        Row("a pass of 500 images for their features alone", "", times["again"], "cpu"),
        Row.slowdown(f"{what}, PCA", "one batch of the validation", times["draw"], times["batch"], "cpu", "<= 1.00"),
        Row.slowdown(f"{what}, t-SNE", "one batch of the validation", times["tsne"], times["batch"], "cpu"),
        Row.slowdown(
            "two coordinates", "scikit-learn's `PCA`, exact", times["coordinates"], times["sklearn"], "cpu", "<= 1.00"
        ),
    ]


@torch.no_grad()
def _features_alone(batches: Batches) -> Any:
    network: Any = Validated().network.eval()
    return [network.forward_features(image) for image, _ in batches[:8]]

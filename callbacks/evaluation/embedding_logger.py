"""What a classifier makes of images, as a map: near each other is what it finds alike.

Letters: N images, D features, X features `(N, D)`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, final, get_args

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor

from ..hooks.features import Features
from ._labels import label_sets

__all__ = ["EmbeddingLogger", "nearest_neighbour_share", "principal_coordinates"]

Projection = Literal["pca", "tsne"]
ALIKE = 1e-6  # features that differ by less, of their largest value, differ by rounding
PERPLEXITY = 30.0  # scikit-learn's, the number of neighbours that a point of t-SNE heeds


def principal_coordinates(features: Tensor, components: int = 2) -> Tensor:
    """Coordinates of features along the directions in which they vary most (PCA), `(N, D)` to `(N, components)`.

    Signs are fixed: the largest entry of a direction, by absolute value, is positive. Directions that do not exist, of
    one image or one feature, have coordinate 0.

    Args:
        features: Finite.
        components: How many directions, the most varied first, >= 1.
    """
    # Here, for scipy takes a while to import.
    from scipy.linalg import eigh

    centred = features.double().cpu() - features.double().cpu().mean(0)
    # Of the two matrices with the same eigenvalues the smaller one.
    few = len(centred) <= centred.shape[1]
    matrix = centred @ centred.T if few else centred.T @ centred
    size = len(matrix)
    # Only the largest, in a quarter of the time that all of them take.
    values, vectors = map(torch.from_numpy, eigh(matrix.numpy(), subset_by_index=[max(0, size - components), size - 1]))
    directions = centred.T @ vectors if few else vectors
    found = vectors * values.clamp_min(0).sqrt() if few else centred @ directions
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True)).squeeze(0)
    found = (found * torch.where(largest < 0, -1, 1)).flip(1)
    return F.pad(found, (0, components - found.shape[1])).to(features)


def nearest_neighbour_share(features: Tensor, classes: Tensor) -> float:
    """The share of images whose nearest other image, by Euclidean distance of the features, has the same class.

    Args:
        features: Finite, `(N, D)`, N >= 2.
        classes: Whole numbers `(N,)`.
    """
    distance = torch.cdist(features.double(), features.double()).fill_diagonal_(torch.inf)
    return float((classes[distance.argmin(1)] == classes).double().mean())


@final
class EmbeddingLogger(Features):
    """Logs a map of what the classifier is given to decide on, coloured by class, and how pure neighbourhoods are.

    Features are read in the batches of a validation or test. A module with a method `features(images)`, as the learners
    of self-supervision have, is asked for them, one more forward pass; of others a forward hook takes what the linear
    layer is given that puts out the answer, or what a named layer puts out, without another one. Two coordinates of
    them, by PCA or t-SNE, make the map; beside it the share of images whose nearest neighbour among all features has
    the same class is logged as `val/embedding_neighbours`. Images are those of the first process, spread evenly over
    its batches. Training sees nothing of it; a compiled module runs the batches that are read eagerly.

    Args:
        samples: Images on the map, >= 2.
        projection: `pca`, the two directions of largest variance, at once; or `tsne`, which shows groups better, takes
            seconds, and whose distances between groups mean little.
        layer: Dotted name of the layer whose output is read, averaged over positions if it has maps; None asks the
            module's `features`, or takes the input of the linear layer that puts out the answer.
        every_n_epochs: While fitting, validations of every n-th epoch are drawn, from the first on, >= 0; `validate`
            and `test` always. Neutral: 0, which draws nothing.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, if batches are mappings; in other batches they come second.
        name: Part of the state key, and what picture and number are called.

    Shape:
        Images `(B, C, H, W)`; features `(B, D)`, or of a named layer also `(B, C, h, w)`, `(B, h, w, C)` or tokens
        `(B, N, C)`. Labels int `(B,)`, negative ones are grey; or `(B, K)`, where each set of labels that occurs is a
        class, or the largest one, where the module says `multilabel = False`. Without labels all points are grey.

    Raises:
        ValueError: an argument out of its range; before the first step, if there is no such layer, or no linear one; in
            the first batch, sanity check included, if no linear layer puts out the answer, or a layer puts out no
            features, one row for each image.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import EmbeddingLogger
        >>> trainer = Trainer(callbacks=[EmbeddingLogger(samples=200)], accelerator="cpu", logger=False)

    See also:
        `principal_coordinates` and `nearest_neighbour_share`, the map and the number of any features.
    """

    title: ClassVar[str] = "embedding"

    def __init__(
        self,
        samples: int = 500,
        projection: Projection = "pca",
        layer: str | None = None,
        every_n_epochs: int = 1,
        image_key: str = "image",
        target_key: str = "target",
        name: str | None = None,
    ) -> None:
        super().__init__(
            samples=samples,
            layer=layer,
            every_n_epochs=every_n_epochs,
            image_key=image_key,
            target_key=target_key,
            name=name,
        )
        if projection not in get_args(Projection):
            raise ValueError(f"EmbeddingLogger: projection is {projection!r}; give 'pca' or 'tsne'.")
        self.projection: Projection = projection

    def draw(
        self, pl_module: LightningModule, features: Tensor, labels: Tensor | None, names: list[str] | None
    ) -> tuple[NDArray[np.uint8] | None, Mapping[str, float]]:
        # Here, for matplotlib takes a while to import and most runs end elsewhere.
        from ._scatter import scatter_picture

        finite = features.isfinite().all(1)
        if not finite.any():
            rank_zero_warn("EmbeddingLogger: no image has finite features, so there is no map of them.")
            return None, {}
        classes, called = _classes(labels, names, getattr(pl_module, "multilabel", None), len(features))
        features, classes = features[finite], classes[finite]
        known = classes >= 0
        title = f"{self.projection.replace('tsne', 't-SNE').replace('pca', 'PCA')} of {len(features)} images"
        numbers = {}
        if int(known.sum()) > 1:
            numbers["neighbours"] = nearest_neighbour_share(features[known], classes[known])
            title += f"; {numbers['neighbours']:.0%} of nearest neighbours have the same class"
        points = _points(features, self.projection)
        if not points.any():
            title += "; their features are alike"
        return scatter_picture(points, classes.tolist(), called, title), numbers


def _points(features: Tensor, projection: Projection) -> NDArray[Any]:
    """Places `(N, 2)`, all 0 where the features are alike."""
    centred = features.double() - features.double().mean(0)
    spread = float(centred.abs().max())
    if spread <= ALIKE * float(features.abs().max()):
        return np.zeros((len(features), 2))
    # t-SNE overflows with huge features and crashes with tiny ones.
    features = (centred / spread).float()
    if projection == "pca" or len(features) < 5 or features.shape[1] < 2:
        # Too few have no neighbours.
        return principal_coordinates(features).numpy()
    return _tsne(features)


def _tsne(features: Tensor) -> NDArray[Any]:
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    points: NDArray[Any] = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(features.numpy())
    return points


def _classes(
    labels: Tensor | None, names: list[str] | None, multilabel: bool | None, count: int
) -> tuple[Tensor, list[str]]:
    """The class of each image `(N,)`, -1 where there is none, and what the classes are called."""
    if labels is None:
        return torch.full((count,), -1), []
    if labels.ndim == 2:
        fitting = names if names and len(names) == labels.shape[1] else [str(it) for it in range(labels.shape[1])]
        return (labels.argmax(1), fitting) if multilabel is False else label_sets(labels > 0.5, fitting)
    classes = labels.long().clamp_min(-1)
    highest = int(classes.max()) + 1
    return classes, names if names and len(names) >= highest else [str(it) for it in range(highest)]

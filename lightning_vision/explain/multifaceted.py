"""The several kinds of images that one unit of a network likes, one picture each.

Nguyen et al. 2016, arXiv:1602.03616, Algorithm 1: the images that raise the unit most, their deep features by PCA and
t-SNE in the plane, k-means there, and activation maximisation from the mean of the images nearest each centre.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor, nn

from lightning_vision.inspection.at_rest import at_rest
from lightning_vision.inspection.layers import find_layer

from ._pixel_ascent import PixelSpace, ascend, checked_knobs, layer_output, placed, unit_scores

__all__ = ["Facets", "centre_mask", "facet_clusters", "visualise_facets"]


@dataclass(frozen=True)
class Facets:
    """The facets of a unit: a picture of each, and which images belong to it.

    Args:
        images: One picture a facet `(F, C, H, W)`, normalised, the largest facet first.
        means: Where they began: mean images `(F, C, H, W)`.
        start: Activation of the means `(F,)`.
        end: Activation of the pictures `(F,)`.
        chosen: Which of the given images were used, by falling activation, int64 `(n,)`.
        facet: To which facet each of these belongs, int64 `(n,)`.
        embedding: Where t-SNE put each of these `(n, 2)`.
    """

    images: Tensor
    means: Tensor
    start: Tensor
    end: Tensor
    chosen: Tensor
    facet: Tensor
    embedding: Tensor


def visualise_facets(
    model: nn.Module,
    images: Tensor,
    channel: int,
    layer: str | None = None,
    *,
    facets: int = 10,
    per_mean: int = 15,
    top: int = 300,
    features: str | None = None,
    pca: int = 50,
    steps: int = 200,
    lr: float = 0.01,
    tv_weight: float = 0.1,
    jitter: int = 1,
    centre: tuple[float, float] = (0.92, 0.98),
    margin: float = 0.22,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    batch_size: int = 64,
    seed: int = 0,
) -> Facets:
    """Make one picture for each kind of image that raises a class's logit or a channel.

    Args:
        model: Called as `model(images)`; it is left as it was.
        images: Among which the unit's favourites are sought, `(B, C, H, W)`, normalised.
        channel: Class, or channel of `layer`.
        layer: Dotted name; None is the answer `(B, K)`.
        facets: Clusters k, at least 1; 10 in the paper.
        per_mean: Images nearest a centre whose mean is the start; 15 in the paper.
        top: Images of highest activation that are clustered; all, where there are fewer.
        features: Dotted name of the layer whose output is embedded; None is what the `nn.Linear` is given whose
            output is the answer.
        pca: Dimensions before t-SNE, at least 1; 50 in the paper.
        steps: Steps of ascent, at least 1.
        lr: Root mean square by which a step moves a pixel, fraction of black to white, at least 0.
        tv_weight: Weight of the gradient of total variation against a gradient of size 1; 0 is none. Stable while
            `lr * tv_weight` is below 0.12.
        jitter: Largest shift before each look, pixels; 0 is none.
        centre: From which to which fraction of the steps only the middle is changed; the authors' code does so in steps
            490 to 520 of 530. Equal fractions are never.
        margin: Width of the frame that rests then, fraction of a side, 0 to 0.5; the authors' is 50 pixels of 224.
        mean: Of the normalisation, pixels from 0 to 1, one value or one a channel.
        std: Of the normalisation, likewise.
        batch_size: Images asked at a time.
        seed: Of t-SNE, k-means and jitter.

    Shape:
        Pictures `(F, C, H, W)`, F = `facets`.

    Raises:
        ValueError: there is no such layer or channel, fewer than 4 images or than facets, images outside the pixel
            range, `features` is None and no `nn.Linear` puts out the answer, or a number is out of range.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> found = visualise_facets(network, torch.rand(20, 1, 8, 8), 3, facets=2, steps=5)
        >>> tuple(found.images.shape), bool((found.end > found.start).all())
        ((2, 1, 8, 8), True)

    Reference: Nguyen et al. 2016, arXiv:1602.03616

    BibTeX:
        @article{nguyen2016multifaceted,
          title   = {Multifaceted Feature Visualization: Uncovering the Different Types of Features Learned By Each
                     Neuron in Deep Neural Networks},
          author  = {Nguyen, Anh and Yosinski, Jason and Clune, Jeff},
          journal = {arXiv preprint arXiv:1602.03616},
          year    = {2016}
        }

    Differs from the paper:
        The image is not enlarged between phases, total variation acts as one step of diffusion and not as a solved
        denoising, and jitter is a shift around the edges.

    See also:
        `maximise_activation`, from noise.
    """
    checked_knobs(facets=facets, per_mean=per_mean, top=top, pca=pca, batch_size=batch_size)
    checked_knobs(steps=steps, lr=lr, tv_weight=tv_weight, jitter=jitter)
    if not 0 <= centre[0] <= centre[1] <= 1 or not 0 <= margin < 0.5:
        raise ValueError(f"centre is {centre} and margin {margin}; give 0 <= from <= to <= 1 and 0 <= margin < 0.5.")
    generator = torch.Generator().manual_seed(seed)
    with at_rest(model):
        device = placed(model)["device"]
        home = PixelSpace(mean, std, images.shape[min(1, images.ndim - 1)], images.device)
        pixels = home.pixels(images)
        space = PixelSpace(mean, std, pixels.shape[1], device)
        if features is None:
            part, called = _head(model, space.shown(pixels[:1].to(device)).to(**placed(model))), "the head"
        else:
            part, called = find_layer(model, features), f"layer {features!r}"
        activation, deep = [], []
        with torch.no_grad():
            for batch in pixels.split(batch_size):
                batch = space.shown(batch.to(device))
                target = torch.full((len(batch),), channel, device=device)
                with layer_output(part, called, features is None) as feature:
                    activation.append(unit_scores(model, batch, target, layer).cpu())
                deep.append(feature().float().flatten(1).cpu())
        chosen = torch.cat(activation).argsort(descending=True, stable=True)[:top]
        facet, embedding = facet_clusters(torch.cat(deep)[chosen], facets, pca, seed)
        means = torch.stack(
            [pixels[chosen[nearest]].mean(0) for nearest in _nearest(facet, embedding, facets, per_mean)]
        ).to(device)
        unit = torch.full((facets,), channel, device=device)

        def score(batch: Tensor) -> Tensor:
            return unit_scores(model, space.shown(batch), unit, layer)

        def mask(step: int) -> Tensor:
            return centre_mask(step / steps, (means.shape[2], means.shape[3]), centre, margin).to(device)

        before = score(means).detach()
        pictures, trace = ascend(score, means, steps, lr, generator, tv_weight, jitter=jitter, mask=mask)
        return Facets(space.shown(pictures), space.shown(means), before, trace[-1], chosen, facet, embedding)


def facet_clusters(features: Tensor, facets: int, pca: int = 50, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Group deep features: PCA, t-SNE into the plane and k-means there, all by scikit-learn.

    Args:
        features: `(n, D)`.
        facets: Clusters, at least 1.
        pca: Dimensions before t-SNE, at least 1; no more than n and D are kept.
        seed: Of t-SNE and k-means.

    Returns:
        The cluster of each, int64 `(n,)`, the largest being 0, and places in the plane `(n, 2)`.

    Raises:
        ValueError: there are fewer than 4 features, fewer different ones than clusters, or they are not finite.

    Example:
        >>> facet, places = facet_clusters(torch.cat([torch.zeros(6, 3), torch.ones(4, 3)]), 2)
        >>> facet.tolist()
        [0, 0, 0, 0, 0, 0, 1, 1, 1, 1]
    """
    number = len(features)
    if number < max(4, facets):
        raise ValueError(
            f"there are {number} images for {facets} facets; give at least {max(4, facets)}, or ask for fewer."
        )
    if not bool(features.isfinite().all()):
        raise ValueError("the features are not finite; does the model give NaN for these images?")
    table = features.double().numpy()
    # t-SNE divides by the spread of the points, and crashes where there is none.
    if (distinct := len(np.unique(table, axis=0))) < max(2, facets):
        raise ValueError(
            f"the images are only {distinct} different ones to the network; ask for fewer facets, or add some."
        )
    reduced = PCA(min(pca, *table.shape), svd_solver="full").fit_transform(table)
    # 30 is t-SNE's own; it must stay below the number of points, and with few of them well below.
    perplexity = min(30.0, (number - 1) / 3)
    start = "pca" if reduced.shape[1] > 1 else "random"
    places = TSNE(perplexity=perplexity, init=start, random_state=seed).fit_transform(reduced)
    labels = KMeans(facets, n_init=10, random_state=seed).fit(places.astype(np.float64)).labels_
    order = np.argsort(-np.bincount(labels, minlength=facets), kind="stable")
    rank = np.empty(facets, dtype=np.int64)
    rank[order] = np.arange(facets)
    return torch.from_numpy(rank[labels]), torch.from_numpy(places)


def centre_mask(progress: float, size: tuple[int, int], centre: tuple[float, float], margin: float) -> Tensor:
    """What an update is multiplied by, `(H, W)`: ones, and within the fractions `centre` of the run zero in a frame.

    Args:
        progress: Fraction of the steps done, 0 to 1.
        size: Height and width, pixels.
        centre: From which to which fraction the frame rests.
        margin: Width of the frame, fraction of a side.

    Example:
        >>> [int(centre_mask(done, (4, 4), (0.9, 1.0), 0.25).sum()) for done in (0.5, 0.95)]
        [16, 4]
    """
    if not centre[0] <= progress < centre[1]:
        return torch.ones(size)
    mask = torch.zeros(size)
    down, across = (int(margin * side) for side in size)
    mask[down : size[0] - down, across : size[1] - across] = 1
    return mask


@torch.no_grad()
def _head(model: nn.Module, image: Tensor) -> nn.Module:
    """The last `nn.Linear` to run that puts out the answer, whatever the order in which the network defines them."""
    ran: list[tuple[nn.Module, torch.Size]] = []
    with ExitStack() as hooks:
        for part in model.modules():
            if isinstance(part, nn.Linear):
                handle = part.register_forward_hook(lambda it, _, output: ran.append((it, output.shape)))
                hooks.callback(handle.remove)
        answer = model(image)
    for part, shape in reversed(ran):
        if shape == getattr(answer, "shape", None):
            return part
    raise ValueError(
        f"no nn.Linear of {type(model).__name__} puts out its answer, so it is not known what is embedded; name "
        "features=."
    )


def _nearest(facet: Tensor, embedding: Tensor, facets: int, number: int) -> list[Tensor]:
    """Of each cluster the members nearest its centre, at most `number`."""
    found = []
    for index in range(facets):
        members = (facet == index).nonzero().squeeze(1)
        away = (embedding[members] - embedding[members].mean(0)).square().sum(1)
        found.append(members[away.argsort(stable=True)[:number]])
    return found

"""Intra-Cluster Mixup: partners by hand, the limits of one cluster and of one for each image, training equal to a loop.

Resume, processes, precisions, undo and the neutral run are proved in `tests/conformance`, the reading of the training
images in `tests/callbacks/hooks/test_prepared.py`.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_vision.callbacks import IntraClusterMixup, MixUp
from lightning_vision.callbacks.hooks.targets import Mix
from lightning_vision.callbacks.mixing.intra_cluster_mixup import (
    cluster_centroids,
    intra_cluster_partner,
    nearest_centroid,
)
from lightning_vision.callbacks.mixing.mixup import MixUpDraw
from lightning_vision.classification.complementary import complementary_negative_log
from lightning_vision.datamodules.digits import read_digits, split_digits
from support.compare import distance, seeded
from support.data import labelled_images, plain_loader
from support.modules import Plain


@pytest.mark.parametrize(
    ("order", "clusters", "partner"),
    [
        ([2, 0, 1], [0, 0, 0], [2, 0, 1]),
        ([2, 0, 1], [0, 1, 2], [0, 1, 2]),
        ([3, 2, 1, 0], [0, 1, 0, 1], [2, 3, 0, 1]),
        ([4, 1, 2, 0, 3], [5, 5, 5, 0, 0], [1, 2, 0, 4, 3]),
    ],
    ids=["one cluster", "each alone", "two and two", "three and two"],
)
def test_partners_are_those_by_hand(order: list[int], clusters: list[int], partner: list[int]) -> None:
    assert intra_cluster_partner(torch.tensor(order), torch.tensor(clusters)).tolist() == partner


def test_each_permutation_of_a_cluster_is_as_probable() -> None:
    """Three mates have six permutations; a count of 6,000 draws is within five standard deviations of 1,000."""
    random = np.random.default_rng(0)
    clusters = torch.tensor([1, 0, 1, 0, 1])
    drawn = [tuple(intra_cluster_partner(torch.from_numpy(random.permutation(5)), clusters)[::2]) for _ in range(6000)]
    counts = {key: [tuple(map(int, it)) for it in drawn].count(key) for key in {tuple(map(int, it)) for it in drawn}}

    assert len(counts) == 6
    assert max(abs(count - 1000) for count in counts.values()) < 5 * math.sqrt(6000 * 1 / 6 * 5 / 6)


def test_centroids_and_clusters_are_scikit_learns() -> None:
    features = labelled_images(60).tensors[0].flatten(1)
    expected = KMeans(4, n_init=10, random_state=7).fit(features.double().numpy())
    centroids = cluster_centroids(features, 4, seed=7)

    assert torch.equal(centroids, torch.from_numpy(expected.cluster_centers_).float())
    assert nearest_centroid(features, centroids).tolist() == expected.labels_.tolist()


def test_row_165_one_cluster_is_plain_mixup_bit_for_bit(fit: Callable[..., Any]) -> None:
    for settings in ({}, {"per_sample": True}):
        ours, theirs = seeded(Plain), seeded(Plain)
        for module, callback in (ours, IntraClusterMixup(1.0, 1, **settings)), (theirs, MixUp(1.0, **settings)):
            torch.manual_seed(1)
            fit(module, [callback], plain_loader(29), max_epochs=2)

        assert distance(ours.state_dict(), theirs.state_dict()) == 0.0


def test_row_165_a_cluster_for_each_image_is_no_mixing(fit: Callable[..., Any]) -> None:
    """Images are left as they are bit for bit; `lam L + (1 - lam) L` rounds, which "sampled" does not."""
    for targets, limit in (("loss", 1e-6), ("sampled", 0.0)):
        ours, plain = seeded(Plain), seeded(Plain)
        for module, callbacks in (ours, [IntraClusterMixup(1.0, 29, targets=targets)]), (plain, []):
            torch.manual_seed(1)
            fit(module, callbacks, plain_loader(29), max_epochs=2)

        assert distance(ours.state_dict(), plain.state_dict()) <= limit


def test_row_165_every_mixed_pair_shares_a_cluster() -> None:
    callback = IntraClusterMixup(alpha=1.0, n_clusters=4)
    images = labelled_images(60).tensors[0]
    callback.prepared = cluster_centroids(images.flatten(1), 4)
    clusters = nearest_centroid(images.flatten(1), callback.prepared)
    for seed in range(10):
        mix = callback.mix(images, callback.draw(images.shape, np.random.default_rng(seed)))

        assert torch.equal(clusters[mix.partner], clusters)
        assert sorted(mix.partner.tolist()) == list(range(60))
        assert int((mix.partner != torch.arange(60)).sum()) > 30


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """1,000 training digits, their classes and complementary labels; the test digits and their classes."""
    pixels, targets = read_digits()
    train, _, test = (torch.as_tensor(it) for it in split_digits(targets, 0))
    images, classes = torch.as_tensor(pixels).float().view(-1, 1, 8, 8) / 255, torch.as_tensor(targets).long()
    generator = torch.Generator().manual_seed(0)
    part = train[torch.randperm(len(train), generator=generator)[:1000]]
    complementary = (classes[part] + torch.randint(1, 10, (1000,), generator=generator)) % 10
    return images[part], classes[part], complementary, images[test], classes[test]


def test_row_165_fewer_complementary_labels_are_false_than_with_random_pairs() -> None:
    """Of the samples that have a partner, for one that is left alone cannot have a false label and is no success."""
    images, classes, complementary, _, _ = digits()
    callback, order = IntraClusterMixup(alpha=1.0), np.random.default_rng(0)
    callback.prepared = cluster_centroids(images.flatten(1), 10)
    own, false, mixed = torch.arange(50), Counter[str](), Counter[str]()
    for start in range(0, 1000, 50):
        rows = slice(start, start + 50)
        draw = callback.draw(images[rows].shape, order)
        # The mutant leaves every other sample alone.
        half = draw.partner.where(own % 2 == 0, own)
        clusters = callback.mix(images[rows], draw).partner
        for name, partner in {"random": draw.partner, "half of random": half, "clusters": clusters}.items():
            false[name] += int((classes[rows] == complementary[rows][partner]).sum())
            mixed[name] += int((partner != own).sum())
    share = {name: false[name] / mixed[name] for name in mixed}

    # A ninth of the partners of other classes have it; within a cluster most are of the same class.
    assert 0.07 < share["random"] < 0.13
    assert share["clusters"] < 0.65 * share["random"] < share["half of random"]


class Complementary(Plain):
    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)]
        self.network = nn.Sequential(*layers)

    def loss(self, image: Tensor, target: Any) -> Tensor:
        return complementary_negative_log(self(image), target)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def test_row_165_a_network_learns_more_from_complementary_labels_than_with_random_pairs(
    fit: Callable[..., Any],
) -> None:
    images, _, complementary, test, classes = digits()
    mean, std = images.mean(), images.std()
    right: list[float] = []
    for callback in (IntraClusterMixup(alpha=1.0), MixUp(alpha=1.0)):
        module = seeded(Complementary)
        loader = DataLoader(TensorDataset((images - mean) / std, complementary), 50)
        fit(module, [callback], loader, max_epochs=10)
        with torch.no_grad():
            answers = module.eval()((test - mean) / std).argmax(1)
        right.append(float((answers == classes).float().mean()))

    assert right[0] > max(right[1], 0.6)


def by_hand(network: nn.Module, image: Tensor, target: Tensor, random: np.random.Generator) -> Tensor:
    known = labelled_images(29).tensors[0].flatten(1).double().numpy()
    clusters = KMeans(3, n_init=10, random_state=0).fit(known).predict(image.flatten(1).double().numpy())
    order, lam = random.permutation(len(image)), float(random.beta(1.0, 1.0))
    partner = torch.empty(len(image), dtype=torch.int64)
    for cluster in range(3):
        mates = [n for n in range(len(image)) if clusters[n] == cluster]
        for own, other in zip(mates, [n for n in order if n in mates], strict=True):
            partner[own] = int(other)
    logits = network(torch.lerp(image[partner], image, lam))
    return lam * F.cross_entropy(logits, target) + (1 - lam) * F.cross_entropy(logits, target[partner])


def test_training_equals_a_loop_that_mixes_cluster_by_cluster(apart: Callable[..., float]) -> None:
    assert apart(IntraClusterMixup(alpha=1.0, n_clusters=3), by_hand) == 0.0


class AnyPartner(IntraClusterMixup):
    def mix(self, images: Tensor, draw: MixUpDraw) -> Mix:
        return MixUp(alpha=1.0).mix(images, draw)


class ClustersOfTheBatch(IntraClusterMixup):
    def mix(self, images: Tensor, draw: MixUpDraw) -> Mix:
        self.prepared = cluster_centroids(images.flatten(1), 3)
        return super().mix(images, draw)


class LabelsUnmixed(IntraClusterMixup):
    def mix(self, images: Tensor, draw: MixUpDraw) -> Mix:
        return replace(super().mix(images, draw), lam=1.0)


@pytest.mark.parametrize("mutant", [AnyPartner, ClustersOfTheBatch, LabelsUnmixed])
def test_a_wrong_one_is_noticed(mutant: type[IntraClusterMixup], apart: Callable[..., float]) -> None:
    assert apart(mutant(alpha=1.0, n_clusters=3), by_hand) > 1e-3


def test_given_centroids_are_taken_and_nothing_is_read(fit: Callable[..., Any]) -> None:
    centroids = [[-1.0] * 64, [4.0] * 64]
    callback = IntraClusterMixup(centroids=centroids)
    callback.prepare = lambda features: pytest.fail("was read")  # type: ignore[method-assign]
    fit(Plain(), [callback], plain_loader(12), max_epochs=1)

    assert callback.prepared is not None and callback.prepared.tolist() == centroids


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -1.0}, "IntraClusterMixup: alpha is -1.0; give a finite number of at least 0."),
        ({"n_clusters": 0}, "IntraClusterMixup: n_clusters is 0; give a whole number of at least 1."),
        ({"max_samples": 0}, "IntraClusterMixup: max_samples is 0; give a whole number of at least 1."),
        ({"per_sample": 1}, "IntraClusterMixup: per_sample is 1; give True or False."),
        (
            {"centroids": [[1.0], [1.0, 2.0]]},
            "IntraClusterMixup: centroids must be rows of as many finite numbers each; give K rows of D.",
        ),
        (
            {"features": "inception"},
            "IntraClusterMixup: features is 'inception'; give a checkpoint's path (*.ckpt), a network, or None for the "
            "pixels themselves.",
        ),
    ],
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        IntraClusterMixup(**settings)

    assert str(refusal.value) == message


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (IntraClusterMixup(n_clusters=13), "n_clusters is 13 and 12 training images were read"),
        (IntraClusterMixup(centroids=[[1.0, 2.0]]), "images of this batch have 64 features and the centroids 2"),
    ],
    ids=["more clusters than images", "centroids of another width"],
)
def test_clusters_that_cannot_be_had_are_refused(callback: Callback, message: str, fit: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=message):
        fit(Plain(), [callback], plain_loader(12), max_epochs=1)

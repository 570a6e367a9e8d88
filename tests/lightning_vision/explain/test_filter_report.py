"""What the filter report says of kernels is what they were made to be, and scikit-learn's PCA where that holds."""

import math

import numpy as np
import pytest
import timm
import torch
from sklearn.decomposition import PCA
from torch import nn

from lightning_vision.explain import (
    explained_ratios,
    filter_report,
    filter_shift,
    kernel_entropy,
    kernel_orthogonality,
    spent_kernels,
)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def conv(weight, groups=1):
    layer = nn.Conv2d(weight.shape[1] * groups, weight.shape[0], weight.shape[2:], groups=groups)
    layer.weight.data.copy_(weight)
    return layer


@pytest.mark.parametrize("factor", [torch.ones(20, 5, 1, 1), normal(20, 5, 1, 1, seed=1)], ids=["equal", "multiples"])
def test_row_114_kernels_that_are_all_alike_have_no_entropy(factor):
    assert kernel_entropy(normal(1, 1, 3, 3) * factor) == pytest.approx(0, abs=1e-6)


def test_row_114_kernels_at_random_have_almost_the_largest_entropy():
    """Of n kernels of 9 numbers the ratios spread by some 2 sqrt(9 / n) of 1/9; entropy falls by its square."""
    assert kernel_entropy(normal(200, 200, 3, 3)) == pytest.approx(math.log10(9), abs=1e-3)
    assert kernel_entropy(normal(200, 200, 5, 5)) == pytest.approx(math.log10(25), abs=1e-3)


def test_two_kinds_of_kernels_have_the_entropy_of_their_shares():
    """Along two axes with variances 3 to 1: H = -(0.75 log10 0.75 + 0.25 log10 0.25)."""
    kernels = torch.zeros(4, 1, 1, 2)
    kernels[0, 0, 0, 0], kernels[1, 0, 0, 0], kernels[2, 0, 0, 1], kernels[3, 0, 0, 1] = 3**0.5, -(3**0.5), 1, -1

    assert kernel_entropy(kernels) == pytest.approx(-(0.75 * math.log10(0.75) + 0.25 * math.log10(0.25)), abs=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.6])
def test_row_114_zeroed_kernels_are_the_sparsity_reported(share):
    weight = normal(20, 10, 3, 3) + 0.1 * normal(20, 10, 3, 3, seed=1).sign()
    weight.view(200, 3, 3)[: int(200 * share)] *= 1e-4
    expected = pytest.approx(share)

    assert filter_report(conv(weight))[0]["sparsity"] == expected
    assert [True] * int(200 * share) == spent_kernels(weight)[: int(200 * share)].tolist()


def test_a_kernel_is_spent_only_if_all_its_entries_are_small():
    weight = torch.full((3, 1, 3, 3), 0.009)
    weight[0] = 1.0
    weight[1, 0, 1, 2] = -0.011

    assert spent_kernels(weight).tolist() == [False, False, True]
    assert spent_kernels(weight, eps=0.012).tolist() == [False, True, True]
    assert spent_kernels(torch.zeros(2, 1, 3, 3)).tolist() == [True, True]


@pytest.mark.parametrize("count", [5, 300])
def test_row_114_explained_ratios_are_those_of_scikit_learn(count):
    kernels = normal(count, 9) @ normal(9, 9, seed=1) + 2
    expected = np.zeros(9)
    found = PCA().fit(kernels.double().numpy()).explained_variance_ratio_
    expected[: len(found)] = found

    assert np.allclose(expected, explained_ratios(kernels).numpy(), atol=1e-7)


def test_ratios_of_uncentred_kernels_are_noticed():
    kernels = normal(300, 9) + 2
    wrong = torch.linalg.svdvals(kernels.double()) ** 2

    assert float((wrong / wrong.sum() - explained_ratios(kernels)).abs().max()) > 0.1


def test_orthogonality_is_1_of_orthogonal_filters_and_0_of_equal_ones():
    orthogonal = torch.linalg.qr(normal(18, 18)).Q[:10].reshape(10, 2, 3, 3)
    lengths = 0.1 + normal(10, 1, 1, 1, seed=1).abs()
    signs = normal(10, 1, 1, 1, seed=2).sign()
    half = torch.cat([orthogonal[:1], orthogonal[1:2], (orthogonal[:1] + orthogonal[1:2]) / 2**0.5])

    assert kernel_orthogonality(orthogonal * lengths) == pytest.approx(1, abs=1e-6)
    assert kernel_orthogonality(orthogonal[:1] * signs * lengths) == pytest.approx(0, abs=1e-6)
    assert kernel_orthogonality(half) == pytest.approx(1 - 4 * 2**-0.5 / 6, abs=1e-6)
    assert kernel_orthogonality(orthogonal[:1]) == 1.0


def by_hand(first, second, bins):
    """The shift by scikit-learn and numpy."""
    sides = [it / it.abs().amax(1, keepdim=True) for it in (first, second)]
    both = torch.cat(sides).double().numpy()
    pca = PCA().fit(both)
    own, other = (pca.transform(it.double().numpy()) for it in sides)
    low, high = min(own.min(), other.min()), max(own.max(), other.max())
    total = 0.0
    for index, ratio in enumerate(pca.explained_variance_ratio_):
        p, q = (np.histogram(it[:, index], bins, (low, high))[0] / len(it) for it in (own, other))
        p, q = np.maximum(p, 1e-5), np.maximum(q, 1e-5)
        total += ratio * (np.sum(p * np.log(p / q)) + np.sum(q * np.log(q / p)))
    return total


def test_row_114_a_network_is_not_shifted_from_itself_and_both_ways_alike_from_another():
    one, other = conv(normal(40, 30, 3, 3)), conv(normal(50, 30, 3, 3, seed=1) @ normal(3, 3, seed=2))
    expected = by_hand(one.weight.detach().reshape(-1, 9), other.weight.detach().reshape(-1, 9), 70)
    alone = filter_shift(conv(normal(40, 30, 3, 3)), conv(normal(40, 30, 3, 3, seed=3)))

    assert filter_shift(one, one) == 0
    assert filter_shift(one, other) == pytest.approx(expected, rel=0.02)
    assert filter_shift(other, one) == pytest.approx(expected, rel=0.02)
    assert alone < expected / 5


def test_the_shift_is_that_of_shapes_and_not_of_sizes():
    one = conv(normal(40, 30, 3, 3))

    assert filter_shift(one, conv(one.weight * 7)) == pytest.approx(0, abs=1e-3)


def test_rows_tell_of_each_layer_and_of_all():
    net = nn.Sequential(conv(normal(8, 4, 3, 3)), nn.Conv2d(8, 8, 1), conv(normal(8, 1, 3, 3, seed=1), groups=8))
    net[2].weight.data[:4] = 0
    first, second, whole = filter_report(net)

    assert [it["layer"] for it in (first, second, whole)] == ["0", "2", "all"]
    assert [it["kernels"] for it in (first, second, whole)] == [32, 8, 40]
    assert [it["sparsity"] for it in (first, second, whole)] == [0, 0.5, 0.1]
    assert whole["orthogonality"] == pytest.approx((first["orthogonality"] + second["orthogonality"]) / 2)
    assert all(type(value) in (str, int, float) for row in (first, second, whole) for value in row.values())


def test_real_networks_are_reported_by_the_size_asked_for():
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32)

    assert filter_report(timm.create_model("resnet18"))[0]["layer"] == "layer1.0.conv1"
    assert filter_report(vit, kernel_size=16)[-1]["kernels"] == 192 * 3
    assert filter_report(timm.create_model("inception_v4"), kernel_size=(1, 7))[-1]["kernels"] > 0


@pytest.mark.parametrize(
    ("message", "ask"),
    [
        (
            r"^Conv2d has no convolution with kernels of 3x3; those there are have 16x16\.$",
            lambda: filter_report(nn.Conv2d(3, 8, 16)),
        ),
        (r"kernels of 3x3; there are none at all\.$", lambda: filter_report(nn.Linear(3, 8))),
        (r"have 1x1, 3x5\.$", lambda: filter_report(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, (3, 5))), 5)),
        ("a kernel of 1x1 is one number", lambda: filter_report(nn.Conv2d(3, 8, 1), 1)),
        ("eps is 2; give a share", lambda: filter_report(nn.Conv2d(3, 8, 3), eps=2)),
        ("bins is 1 and eps", lambda: filter_shift(nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), bins=1)),
        ("no convolution with kernels of 3x3", lambda: filter_shift(nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 1))),
    ],
    ids=["patches", "none", "sizes", "points", "eps", "bins", "reference"],
)
def test_what_cannot_be_reported_is_refused(message, ask):
    with pytest.raises(ValueError, match=message):
        ask()

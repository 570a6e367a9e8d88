"""Scores of made images equal scipy's root of a matrix and loops over all pairs."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from lightning_vision.callbacks.generation.frechet import Moments, frechet_distance, frechet_distance_of_features
from lightning_vision.callbacks.generation.manifold import manifold_scores, radii


def features(count, dim=6, seed=0, shift=0.0):
    random = torch.Generator().manual_seed(seed)
    mixed = torch.randn(dim, dim, generator=torch.Generator().manual_seed(9))
    return torch.randn(count, dim, generator=random) @ (mixed if seed else mixed.T) + shift


def by_scipy(first, second):
    one, other = (it.double().numpy() for it in (first, second))
    means, covariances = [it.mean(0) for it in (one, other)], [np.cov(it.T) for it in (one, other)]
    cross = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    return ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * cross)


def test_the_distance_is_that_by_the_root_of_a_matrix():
    first, second = features(50), features(80, seed=1, shift=0.5)
    found = frechet_distance(Moments.of(first), Moments.of(second))

    assert found.item() == pytest.approx(by_scipy(first, second), rel=1e-6)
    assert found.item() == pytest.approx(frechet_distance(Moments.of(second), Moments.of(first)).item(), rel=1e-9)
    # The mutant multiplies the roots, as if both had the same axes.
    roots = [scipy.linalg.sqrtm(np.cov(it.double().numpy().T)).real for it in (first, second)]
    assert (
        abs(np.trace(roots[0] @ roots[1]) - np.trace(scipy.linalg.sqrtm(np.cov(first.T) @ np.cov(second.T)).real)) > 0.1
    )


def test_of_gaussians_on_one_line_it_is_the_formula():
    first, second = torch.randn(100, 1), 3 * torch.randn(100, 1) + 2
    found = frechet_distance(Moments.of(first), Moments.of(second))
    wanted = (first.mean() - second.mean()) ** 2 + (first.std() - second.std()) ** 2

    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_of_fewer_images_than_features_it_is_finite_and_of_the_same_ones_nought():
    few, more = features(4, dim=12), features(40, dim=12, seed=1)
    found = frechet_distance(Moments.of(few), Moments.of(more))

    assert math.isfinite(found) and found > 1
    assert frechet_distance(Moments.of(few), Moments.of(few)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("few", "more", "dim"), [(5, 7, 12), (5, 7, 13), (50, 7, 12), (50, 80, 6)])
def test_of_features_it_is_that_of_their_moments_whichever_matrix_is_smaller(few, more, dim):
    first, second = features(few, dim), features(more, dim, seed=1, shift=0.4)
    expected = float(frechet_distance(Moments.of(first), Moments.of(second)))

    assert float(frechet_distance_of_features(first, second)) == pytest.approx(expected, rel=1e-6)
    assert float(frechet_distance_of_features(first, first)) == pytest.approx(0, abs=1e-5)


def test_what_has_no_moments_is_refused():
    with pytest.raises(ValueError, match="N of at least 2, and got"):
        Moments.of(features(1))
    with pytest.raises(ValueError, match="some features are not finite"):
        Moments.of(torch.full((3, 2), torch.nan))
    with pytest.raises(ValueError, match="features have 6 and 9 numbers; compare those of one network"):
        frechet_distance_of_features(features(3), features(3, dim=9))
    with pytest.raises(ValueError, match="features have 6 and 5 numbers; compare those of one network"):
        frechet_distance(Moments.of(features(9)), Moments.of(features(9, dim=5)))


def by_loops(real, made, k):
    """Precision, recall, density and coverage, one pair at a time."""

    def reach(rows):
        return [sorted(math.dist(a, b) for j, b in enumerate(rows) if j != i)[k - 1] for i, a in enumerate(rows)]

    real, made = real.double().tolist(), made.double().tolist()
    of_real, of_made = reach(real), reach(made)
    near = [[math.dist(m, r) <= radius for r, radius in zip(real, of_real, strict=True)] for m in made]
    back = [any(math.dist(m, r) <= radius for m, radius in zip(made, of_made, strict=True)) for r in real]
    return [
        np.mean([any(row) for row in near]),
        np.mean(back),
        np.sum(near) / (k * len(made)),
        np.mean([any(column) for column in zip(*near, strict=True)]),
    ]


@pytest.mark.parametrize("chunk", [7, 1024])
def test_shares_are_those_of_loops_over_all_pairs(chunk):
    real, made = features(40, dim=3), features(30, dim=3, seed=1, shift=0.8)
    found = manifold_scores(real, made, k=3, chunk=chunk)
    given = [found.precision, found.recall, found.density, found.coverage]

    assert given == pytest.approx(by_loops(real, made, 3))
    assert 0.05 < found.precision < 0.95 and 0.05 < found.coverage < 0.95
    assert given != pytest.approx(by_loops(made, real, 3))


def test_the_same_images_are_right_and_all_there():
    real = features(60, dim=3)
    found = manifold_scores(real, real.clone(), k=4)

    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)
    # Each lies in its own ball and in those of its neighbours.
    assert found.density == pytest.approx(1.25, abs=0.05)
    assert manifold_scores(real, real + 1e3, k=4).density == 0


def test_radii_reach_to_the_kth_other_image():
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0]])

    assert radii(line, 1).tolist() == [1, 1, 2, 4]
    assert radii(line, 2, chunk=2).tolist() == [3, 2, 3, 6]


def test_sets_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="k is 5 and the smaller set has 5 images; give 1 to 4"):
        manifold_scores(features(9), features(5))
    with pytest.raises(ValueError, match=r"features are \(9, 6\) and \(9, 5\); give"):
        manifold_scores(features(9), features(9, dim=5))

"""The loss of Barlow Twins against lightly's, in closed form, and over two processes."""

import pytest
import torch
from lightly.loss import BarlowTwinsLoss

from lightning_vision.self_supervised.barlow_twins import BarlowTwins, barlow_twins_loss, cross_correlation
from lightning_vision.self_supervised.off_diagonal import off_diagonal
from support.joined_losses import alone, on_a_rank
from support.learners import resumed, tiny

# Columns of mean 0 and variance 1 that are orthogonal: a batch without any correlation.
DECORRELATED = torch.tensor([[1.0, 1, 1], [-1, 1, -1], [1, -1, -1], [-1, -1, 1]])


def embeddings(*shape):
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()


def test_beside_the_diagonal_stands_all_else():
    matrix = torch.randn(5, 5)

    assert torch.equal(off_diagonal(matrix), matrix[~torch.eye(5, dtype=torch.bool)])
    assert off_diagonal(torch.ones(1, 1)).shape == (0,)


@pytest.mark.parametrize("weight", [0.0, 0.005, 1.0])
def test_value_and_gradient_are_lightlys(weight):
    ours, theirs = embeddings(7, 5), embeddings(7, 5)
    loss = barlow_twins_loss(ours[0], ours[1], weight)["loss"]
    expected = BarlowTwinsLoss(lambda_param=weight)(theirs[0], theirs[1])
    loss.backward()
    expected.backward()

    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_wrong_ones_are_noticed():
    first, second = embeddings(7, 5).detach()
    expected = BarlowTwinsLoss(lambda_param=0.1)(first, second)
    centred = [rows - rows.mean(0) for rows in (first, second)]
    covariance = centred[0].T @ centred[1] / 7
    not_standardised = (1 - covariance.diagonal()).square().sum() + 0.1 * off_diagonal(covariance).square().sum()
    whole = cross_correlation(first, second)
    with_the_diagonal = (1 - whole.diagonal()).square().sum() + 0.1 * whole.square().sum()

    for wrong in (not_standardised, with_the_diagonal):
        assert (wrong - expected).abs() > 0.01


def test_equal_views_whose_features_are_uncorrelated_cost_nothing():
    terms = barlow_twins_loss(DECORRELATED, DECORRELATED, 1.0)

    torch.testing.assert_close(terms["loss"], torch.tensor(0.0), atol=1e-8, rtol=0)


def test_one_feature_three_times_costs_each_pair_of_them_once():
    copied = DECORRELATED[:, :1].expand(4, 3)
    terms = barlow_twins_loss(copied, copied, 0.5)

    torch.testing.assert_close(terms["redundancy"], torch.tensor(6.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(terms["loss"], torch.tensor(3.0), atol=1e-3, rtol=0)


def test_opposite_views_have_the_largest_invariance_term():
    terms = barlow_twins_loss(DECORRELATED, -DECORRELATED, 0.5)

    torch.testing.assert_close(terms["invariance"], torch.tensor(12.0), atol=1e-3, rtol=0)


def test_a_constant_feature_stays_finite():
    constant = torch.ones(4, 3, requires_grad=True)
    loss = barlow_twins_loss(constant, constant, 0.005)["loss"]
    loss.backward()

    torch.testing.assert_close(loss, torch.tensor(3.0))
    assert constant.grad.isfinite().all()


def test_two_ranks_with_unequal_rows_are_one_process(two_ranks):
    def joined(views):
        first, second = views
        return barlow_twins_loss(first, second, 0.1)["loss"]

    def apart(views):
        first, second = views
        return BarlowTwinsLoss(lambda_param=0.1)(first, second)

    expected = alone(joined, 2, 4)
    for found in two_ranks(on_a_rank, joined, 2, 4):
        torch.testing.assert_close(found, expected)
    assert (two_ranks(on_a_rank, apart, 2, 4)[0][1] - expected[1]).abs().max() > 1e-2


def test_what_it_cannot_compare_is_refused():
    with pytest.raises(ValueError, match="redundancy_weight is -1; give 0 or more"):
        BarlowTwins(redundancy_weight=-1, backbone="resnet8_cifar", views="digits")
    with pytest.raises(ValueError, match="BarlowTwins compares 2 views and `views` gives 10; give 2"):
        BarlowTwins(backbone="resnet8_cifar", views="dino")


def test_a_resumed_run_is_the_straight_one(tmp_path):
    assert resumed(lambda: tiny(BarlowTwins), tmp_path) == []

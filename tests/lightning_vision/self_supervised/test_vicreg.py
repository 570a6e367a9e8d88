"""The loss of VICReg against lightly's, in closed form, and over two processes."""

import pytest
import torch
from lightly.loss import VICRegLoss

from lightning_vision.datamodules import PlacedDigits
from lightning_vision.self_supervised.vicreg import VICReg, covariance_term, variance_term, vicreg_loss
from support.joined_losses import alone, on_a_rank
from support.learners import resumed, tiny
from support.trainers import quiet_trainer

# Columns of mean 0 that are orthogonal: a batch without any correlation, of variance 4 in 3 degrees of freedom.
DECORRELATED = 3**0.5 * torch.tensor([[1.0, 1, 1], [-1, 1, -1], [1, -1, -1], [-1, -1, 1]])


def embeddings(*shape):
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 3.0)])
def test_value_and_gradient_are_lightlys(weights):
    ours, theirs = embeddings(7, 5), embeddings(7, 5)
    loss = vicreg_loss(ours[0], ours[1], *weights)["loss"]
    expected = VICRegLoss(*weights)(theirs[0], theirs[1])
    loss.backward()
    expected.backward()

    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_wrong_ones_are_noticed():
    first = embeddings(7, 5).detach()[0]
    of_variances = torch.relu(1 - first.var(0)).mean()
    without_bessel = torch.relu(1 - (first.var(0, correction=0) + 1e-4).sqrt()).mean()
    not_centred = (first.T @ first / 6).triu(1).square().sum() * 2 / 5
    half = (torch.cov(first.T).triu(1)).square().sum() / 5

    for wrong, right in (
        (of_variances, variance_term(first)),
        (without_bessel, variance_term(first)),
        (not_centred, covariance_term(first)),
        (half, covariance_term(first)),
    ):
        assert (wrong - right).abs() > 0.005


def test_equal_views_that_vary_enough_and_not_together_cost_nothing():
    terms = vicreg_loss(DECORRELATED, DECORRELATED, 25.0, 25.0, 1.0)

    assert {name: round(float(value), 6) for name, value in terms.items()} == dict.fromkeys(terms, 0.0)


def test_half_the_spread_costs_what_is_missing_to_one():
    torch.testing.assert_close(variance_term(DECORRELATED / 4), torch.tensor(0.5), atol=2e-4, rtol=0)


def test_collapsed_embeddings_cost_the_variance_term_alone():
    constant = torch.ones(4, 3, requires_grad=True)
    terms = vicreg_loss(constant, constant, 25.0, 25.0, 1.0)
    terms["loss"].backward()

    torch.testing.assert_close(terms["loss"], torch.tensor(25 * (1 - 0.0001**0.5)))
    assert constant.grad.isfinite().all()


def test_one_feature_three_times_costs_its_variance_squared_for_each_pair():
    """D (D - 1) covariances of 4 are squared, summed and divided by D."""
    torch.testing.assert_close(covariance_term(DECORRELATED[:, :1].expand(4, 3)), torch.tensor(2 * 16.0))


def test_an_image_alone_is_finite_in_evaluation():
    terms = vicreg_loss(torch.ones(1, 3), torch.zeros(1, 3), 1.0, 1.0, 1.0)

    assert all(value.isfinite() for value in terms.values())


def test_two_ranks_with_unequal_rows_are_one_process(two_ranks):
    def joined(views):
        first, second = views
        return vicreg_loss(first / 3, second / 3, 25.0, 25.0, 1.0)["loss"]

    def apart(views):
        first, second = views
        return VICRegLoss(25.0, 25.0, 1.0)(first / 3, second / 3)

    expected = alone(joined, 2, 4)
    for found in two_ranks(on_a_rank, joined, 2, 4):
        torch.testing.assert_close(found, expected)
    assert (two_ranks(on_a_rank, apart, 2, 4)[0][1] - expected[1]).abs().max() > 1e-2


def test_what_it_cannot_do_is_refused():
    with pytest.raises(
        ValueError, match=r"the weights of VICReg's terms are \(25.0, -1, 1.0\); give 0 or more for each"
    ):
        VICReg(variance_weight=-1, backbone="resnet8_cifar", views="digits")


def test_a_resumed_run_is_the_straight_one(tmp_path):
    assert resumed(lambda: tiny(VICReg, invariance_weight=1.0, variance_weight=1.0), tmp_path) == []


@pytest.mark.parametrize(("size", "which"), [(1, "a batch"), (9, "the last batch of an epoch")])
def test_a_batch_of_one_image_is_refused_at_set_up(size, which):
    data = PlacedDigits(batch_size=size, labels_per_class=1)

    with pytest.raises(ValueError, match=f"^{which} has 1 image and VICReg needs 2; give drop_last=True or"):
        quiet_trainer(max_steps=1).fit(tiny(VICReg), data)

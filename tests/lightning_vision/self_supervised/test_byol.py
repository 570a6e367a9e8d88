"""BYOL's loss is lightly's, on ranks as alone; the target that follows, and what happens without it."""

import math

import pytest
import torch
from lightly.loss import NegativeCosineSimilarity

from lightning_vision.self_supervised import BYOL
from lightning_vision.self_supervised.byol import byol_loss
from support.learners import contrasted, moves, resumed, shared, tiny, unlabelled
from support.trainers import quiet_trainer


def pair(count=6, dim=5):
    torch.manual_seed(1)
    return torch.randn(2, count, dim, dtype=torch.float64, requires_grad=True)


def test_the_loss_is_two_and_twice_lightlys_gradient_too():
    predictions, targets = pair()
    ours = byol_loss(predictions, targets)
    theirs = 2 + 2 * NegativeCosineSimilarity()(predictions, targets.detach())

    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, predictions)[0] for loss in (ours, theirs)))


def test_it_is_the_squared_distance_of_unit_vectors():
    predictions, targets = pair()
    units = [rows / rows.norm(dim=1, keepdim=True) for rows in (predictions, targets)]

    torch.testing.assert_close(byol_loss(predictions, targets), ((units[0] - units[1]) ** 2).sum(1).mean())
    assert byol_loss(predictions, 3 * predictions).item() == pytest.approx(0)
    assert byol_loss(predictions, -predictions).item() == pytest.approx(4)


def test_targets_get_no_gradient_and_with_one_it_is_noticed():
    embeddings = pair()
    moved = torch.autograd.grad(byol_loss(*embeddings), embeddings)[0]
    attached = 2 + 2 * NegativeCosineSimilarity()(*embeddings)

    assert moved[1].abs().max() == 0
    assert torch.autograd.grad(attached, embeddings)[0][1].abs().max() > 1e-3


def test_ranks_with_unequal_rows_are_one_process(two_ranks):
    def ours(*embeddings):
        return byol_loss(*embeddings)

    def mean_of_means(*embeddings):
        return 2 + 2 * NegativeCosineSimilarity()(embeddings[0], embeddings[1].detach())

    expected = contrasted(ours)
    for found in two_ranks(contrasted, ours):
        torch.testing.assert_close(found, expected)
    assert (two_ranks(contrasted, mean_of_means)[0][1] - expected[1]).abs().max() > 1e-3


def test_both_views_foretell_each_other():
    predictions, targets = (torch.randn(2, 4, 8) for _ in range(2))
    loss = tiny(BYOL).compare([*predictions], [*targets])["loss"]

    torch.testing.assert_close(loss, byol_loss(predictions[0], targets[1]) + byol_loss(predictions[1], targets[0]))
    # The mutant that foretells the view it sees.
    assert abs(loss - byol_loss(predictions[0], targets[0]) - byol_loss(predictions[1], targets[1])) > 1e-2


def test_the_target_moves_once_a_step_and_a_shared_one_is_noticed():
    assert moves(tiny(BYOL, momentum=0.9, momentum_end=None)) == ["stays", "moves"] * 2
    assert moves(shared(tiny(BYOL, momentum=0.9, momentum_end=None))) != ["stays", "moves"] * 2


def test_with_a_momentum_of_one_the_target_stays():
    assert moves(tiny(BYOL, momentum=1.0)) == ["stays"] * 4


def test_the_momentum_rises_along_a_cosine_to_its_end():
    learner = tiny(BYOL, momentum=0.9, momentum_end=1.0)
    quiet_trainer(max_steps=8).fit(learner, unlabelled())

    found = [learner.tau(step) for step in (0, 4, 8)]
    assert found == pytest.approx([0.9, 0.95, 1.0])
    assert learner.tau(2) == pytest.approx(1 - 0.1 * (math.cos(math.pi / 4) + 1) / 2)


def test_the_target_has_no_predictor_and_is_no_parameter_of_the_optimizer():
    learner = tiny(BYOL)
    trained = {id(param) for group in learner.configure_optimizers().param_groups for param in group["params"]}

    assert [name for name, _ in learner.target.copy.named_children()] == ["backbone", "projector"]
    assert trained == {id(param) for param in learner.network.parameters()}


def test_a_resumed_run_is_the_straight_one(tmp_path):
    assert resumed(lambda: tiny(BYOL, momentum=0.9), tmp_path) == []


def test_a_momentum_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"^momentum is 1.5; give the share of the target that stays at a step"):
        tiny(BYOL, momentum=1.5)

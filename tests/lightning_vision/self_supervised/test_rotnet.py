"""Rotations and labels of RotNet, what a constant image teaches, and that digits teach more."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from lightning_vision.callbacks import LinearProbe
from lightning_vision.datamodules import Digits, PlacedDigits
from lightning_vision.self_supervised.rotnet import RotNet, rotations_of
from support.joined_losses import alone, on_a_rank
from support.learners import resumed
from support.trainers import quiet_trainer


def rotnet(**options):
    torch.manual_seed(0)
    return RotNet(**{"backbone": "resnet8_cifar", "in_channels": 1} | options)


def test_row_121_four_rotations_are_the_identity():
    image = torch.randn(2, 3, 5, 5)
    turned = image
    for _ in range(4):
        turned = rotations_of(turned)[1]

    assert torch.equal(turned, image)
    assert torch.equal(rotations_of(rotations_of(image, 2)[1], 2)[1], image)
    assert not torch.equal(rotations_of(image)[1], image)


def test_row_121_a_turn_is_a_quarter_against_the_clock():
    image = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None]

    assert rotations_of(image)[:, 0, 0].tolist() == [
        [[1, 2], [3, 4]],
        [[2, 4], [1, 3]],
        [[4, 3], [2, 1]],
        [[3, 1], [4, 2]],
    ]


def test_row_121_of_two_rotations_the_second_is_half_a_turn():
    image = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None]

    assert rotations_of(image, 2)[:, 0, 0].tolist() == [[[1, 2], [3, 4]], [[4, 3], [2, 1]]]


@pytest.mark.parametrize(("rotations", "all_four"), [(4, True), (2, True), (4, False)])
def test_row_121_the_loss_is_that_of_turned_images_and_their_turns(rotations, all_four):
    learner = rotnet(rotations=rotations, all_four=all_four).eval()
    image = torch.randn(6, 1, 8, 8)
    uniform = torch.rand(6, learner.draws)
    turns = [[*range(rotations)]] * 6 if all_four else [[int(it * rotations)] for it in uniform[:, -1]]
    labels = torch.tensor([turn for own in turns for turn in own])
    images = [
        torch.rot90(one, turn * 4 // rotations, (1, 2)) for one, own in zip(image, turns, strict=True) for turn in own
    ]
    logits = learner.network(torch.stack(images))
    terms = learner.losses(image, uniform)

    assert learner.draws == int(not all_four)
    torch.testing.assert_close(terms["loss"], F.cross_entropy(logits, labels))
    torch.testing.assert_close(terms["acc"], (logits.argmax(1) == labels).float().mean())
    # Turned the other way round, halves excepted, it is another loss.
    if rotations == 4:
        assert (F.cross_entropy(logits, -labels % 4) - terms["loss"]).abs() > 1e-3


def test_row_121_a_constant_image_costs_log_4_at_least():
    """Its four copies have one answer, whose mean cross-entropy with all four labels is log 4 plus a divergence."""
    learner = rotnet().train()
    constant = torch.ones(4, 1, 8, 8) * torch.randn(4, 1, 1, 1)
    random = learner.losses(constant, torch.empty(4, 0))["loss"]
    for parameter in learner.network.get_submodule("classifier").parameters():
        torch.nn.init.zeros_(parameter)

    assert random > math.log(4)
    assert learner.losses(constant, torch.empty(4, 0))["loss"].item() == pytest.approx(math.log(4))


def test_row_121_digits_teach_it_to_tell_rotations():
    learner = rotnet(optimizer=partial(torch.optim.AdamW, lr=0.01))
    data = Digits(batch_size=64)
    quiet_trainer(max_steps=20, max_epochs=-1, limit_val_batches=0).fit(learner, data)
    (metrics,) = quiet_trainer().validate(learner, data, verbose=False)

    assert metrics["val/acc"] > 0.6


def test_row_121_a_linear_probe_of_what_it_learned_beats_the_untrained_network(tmp_path):
    """Ten labels a class, on digits at any place; of both seeds together an untrained network gets a ninth or so."""
    shares = {"untrained": 0.0, "trained": 0.0}
    for seed in range(2):
        torch.manual_seed(seed)
        small = {"backbone": "plain8_cifar", "backbone_settings": {"widths": [8, 16, 32]}, "crop": (0.6, 1.0)}
        learner = RotNet(**small, in_channels=1, optimizer=partial(torch.optim.AdamW, lr=0.01))
        for state in shares:
            if state == "trained":
                quiet_trainer(max_steps=30, max_epochs=-1, limit_val_batches=0).fit(learner, PlacedDigits())
            trainer = quiet_trainer(callbacks=[LinearProbe("few_labels", seed=seed)], default_root_dir=tmp_path)
            trainer.validate(learner, PlacedDigits(), verbose=False)
            shares[state] += float(trainer.callback_metrics["probe/linear"]) / 2

    assert shares["trained"] > shares["untrained"] + 0.08


def test_a_crop_comes_before_the_turn_and_makes_squares():
    learner = rotnet(crop=(0.5, 1.0), size=6, flip=0.5).eval()
    image = torch.randn(3, 1, 8, 10)

    assert learner.losses(image, torch.rand(3, learner.draws))["loss"].isfinite()


def test_images_that_are_not_square_are_refused():
    sentence = "images are 8 x 10 pixels and a quarter turn would change that; give `size`, which squashes them"

    with pytest.raises(ValueError, match=sentence):
        rotnet().losses(torch.randn(2, 1, 8, 10), torch.empty(2, 0))
    assert rotnet(rotations=2).eval().losses(torch.randn(2, 1, 8, 10), torch.empty(2, 0))["loss"].isfinite()
    with pytest.raises(ValueError, match="rotations is 3; give 4"):
        rotnet(rotations=3)


def test_a_datamodule_of_other_images_is_refused_at_set_up():
    data = PlacedDigits()
    data.image_size = (24, 32)

    with pytest.raises(ValueError, match="images are 24 x 32 pixels and a quarter turn"):
        quiet_trainer(max_steps=1).fit(rotnet(), data)


def test_two_ranks_with_unequal_rows_are_one_process(two_ranks):
    def joined(views):
        learner = rotnet(backbone=_Rows()).double()
        torch.nn.init.eye_(learner.network.get_submodule("classifier").weight)
        return learner.losses(views[0].reshape(-1, 1, 2, 2), torch.empty(views.shape[1], 0))["loss"]

    expected = alone(joined, 1, 4)
    for found in two_ranks(on_a_rank, joined, 1, 4):
        torch.testing.assert_close(found, expected)


def test_a_resumed_run_is_the_straight_one(tmp_path):
    small = {"backbone": "plain8_cifar", "backbone_settings": {"widths": [4, 8]}}

    assert resumed(lambda: rotnet(**small, crop=(0.5, 1.0), all_four=False), tmp_path) == []


class _Rows(torch.nn.Flatten):
    num_features = 4

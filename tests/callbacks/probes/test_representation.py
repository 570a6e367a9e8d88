"""Rank, alignment, uniformity and spread are what their formulas give by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from lightly.utils.debug import std_of_l2_normalized
from torch import nn

from lightning_vision.callbacks import Representation, alignment, feature_spread, rank_me, uniformity
from lightning_vision.callbacks.probes.representation import _pairs_of_classes
from support.data import plain_loader
from support.modules import Featured
from support.trainers import quiet_trainer


def features(count, width, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def of_singular_values(*values, rows=30, columns=12):
    """A matrix of these singular values."""
    left, right = (torch.linalg.qr(features(size, len(values), size).double()).Q for size in (rows, columns))
    return left @ torch.tensor(values, dtype=torch.float64).diag() @ right.T


@pytest.mark.parametrize("rank", [1, 2, 5, 12])
@pytest.mark.parametrize(("rows", "columns"), [(30, 12), (12, 30)])
def test_equal_directions_are_counted(rank, rows, columns):
    assert rank_me(of_singular_values(*[3.0] * rank, rows=rows, columns=columns)) == pytest.approx(rank, abs=1e-3)


def test_the_rank_of_unequal_directions_is_the_papers_equation():
    # Shares 1/2, 1/4, 1/4: the entropy is ln 2 / 2 + 2 ln 4 / 4.
    expected = math.exp(math.log(2) / 2 + math.log(4) / 2)
    matrix = of_singular_values(2.0, 1.0, 1.0)
    squared = torch.linalg.svdvals(matrix).square()
    mutant = float(torch.special.entr(squared / squared.sum()).sum().exp())

    assert rank_me(matrix) == pytest.approx(expected, rel=1e-4) == pytest.approx(2 * 2**0.5, rel=1e-4)
    assert abs(mutant - expected) > 0.1
    assert rank_me(5 * matrix) == pytest.approx(rank_me(matrix), rel=1e-6)


def test_the_rank_is_that_of_singular_values_with_epsilon():
    matrix = features(40, 9)
    values = torch.linalg.svdvals(matrix.double())
    shares = values / values.sum() + 1e-3

    assert rank_me(matrix, epsilon=1e-3) == pytest.approx(float((-(shares * shares.log()).sum()).exp()), rel=1e-6)
    assert rank_me(torch.zeros(4, 3)) == 0.0


def test_alignment_is_the_mean_distance_on_the_sphere():
    first, second = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 5.0], [0.0, 9.0]])

    # Distances of the square's corners: root 2, and 0.
    assert alignment(first, second) == pytest.approx(1.0)
    assert alignment(first, second, alpha=1) == pytest.approx(2**0.5 / 2)
    assert alignment(first, -first) == pytest.approx(4.0)
    assert alignment(first, first) == 0.0


def test_uniformity_is_the_mean_over_pairs_and_not_over_an_image_with_itself():
    values = features(33, 6)
    distances = torch.pdist(F.normalize(values.double(), dim=1))
    unit = F.normalize(values.double(), dim=1)
    mutant = float((-2 * torch.cdist(unit, unit).square()).exp().mean().log())

    assert uniformity(values) == pytest.approx(float((-2 * distances.square()).exp().mean().log()), rel=1e-5)
    assert abs(mutant - uniformity(values)) > 0.1
    # Two opposite points: distance 2, exp(-2 * 4).
    assert uniformity(torch.tensor([[1.0, 0.0], [-3.0, 0.0]])) == pytest.approx(-8.0, rel=1e-5)
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0.0, abs=1e-5)
    assert uniformity(values, t=1) > uniformity(values)


def test_uniformity_is_the_same_in_any_chunks(monkeypatch):
    whole = uniformity(features(33, 6))
    monkeypatch.setattr("lightning_vision.callbacks.probes.representation.CHUNK", 7)

    assert uniformity(features(33, 6)) == pytest.approx(whole, rel=1e-6)


def test_spread_is_one_on_the_whole_sphere_and_zero_at_a_point():
    corners = torch.cat([torch.eye(4), -torch.eye(4)])

    assert feature_spread(corners).tolist() == pytest.approx([1.0] * 4)
    assert feature_spread(torch.tensor([[3.0, 4.0], [6.0, 8.0]])).tolist() == [0.0, 0.0]
    assert feature_spread(features(4000, 16)).mean() == pytest.approx(1, abs=0.02)
    assert torch.equal(feature_spread(corners * torch.arange(1.0, 9)[:, None]), feature_spread(corners))
    # lightly divides by N - 1, and leaves the root of D to the reader.
    lightlys = std_of_l2_normalized(features(50, 16)) * 16**0.5 * (49 / 50) ** 0.5
    assert feature_spread(features(50, 16)).mean() == pytest.approx(float(lightlys), rel=1e-5)


def test_pairs_are_of_one_class_and_of_each_image_once():
    targets = torch.tensor([2, 0, 1, 2, 2, 0, -1, 2, 0, 2, 3, -1])
    left, right = _pairs_of_classes(targets, 0)
    used = torch.cat([left, right]).tolist()

    assert torch.equal(targets[left], targets[right]) and bool((targets[left] >= 0).all())
    # Five of class 2 and three of class 0 make two pairs and one.
    assert targets[left].bincount(minlength=4).tolist() == [1, 0, 2, 0]
    assert len(set(used)) == len(used)
    assert len(_pairs_of_classes(torch.tensor([-1, -1]), 0)[0]) == 0


class Pixels(Featured):
    def features(self, image):
        return image.flatten(1)


class Shifts(nn.Module):
    """Two views: the image shifted by its first and by its second number."""

    draws = 2

    def forward(self, image, uniform, mean, std):
        return [image + uniform[:, index, None, None, None] for index in range(2)]


class Viewed(Pixels):
    def __init__(self):
        super().__init__()
        self.views = Shifts()


def measured(module, folder, **settings):
    probe = Representation(**settings)
    trainer = quiet_trainer(callbacks=[probe], max_epochs=2, default_root_dir=folder)
    trainer.fit(module, plain_loader(12), plain_loader(20))
    return probe, {name: float(value) for name, value in trainer.callback_metrics.items() if "probe" in name}


def test_the_callback_logs_the_functions_of_the_validations_features(tmp_path):
    probe, numbers = measured(Pixels(), tmp_path)
    image, target = plain_loader(20).dataset.tensors
    values = image.flatten(1)
    left, right = _pairs_of_classes(target, 0)

    assert numbers == pytest.approx(
        {
            "probe/representation_rank": rank_me(values),
            "probe/representation_uniformity": uniformity(values),
            "probe/representation_spread": float(feature_spread(values).mean()),
            "probe/representation_alignment": alignment(values[left], values[right]),
        }
    )
    assert probe.settings["alike"] == "two images of a class"


def test_a_module_with_one_view_is_compared_by_classes(tmp_path):
    module = Viewed()
    module.views.forward = lambda image, *_: [image]
    probe, _ = measured(module, tmp_path)

    assert probe.settings["alike"] == "two images of a class"


def test_a_module_with_views_is_asked_for_two_of_each_image_which_stay_the_same(tmp_path):
    probe, numbers = measured(Viewed(), tmp_path)
    _, again = measured(Viewed(), tmp_path)
    _, other = measured(Viewed(), tmp_path, seed=1)
    _, by_class = measured(Pixels(), tmp_path)

    assert probe.settings["alike"] == "two views"
    assert 0 < numbers["probe/representation_alignment"] < by_class["probe/representation_alignment"]
    assert numbers == again
    assert other["probe/representation_alignment"] != numbers["probe/representation_alignment"]

"""GeodesicMix: matchings against brute force and POT, the worst point, training equal to a loop written out.

Resume, processes, precisions, undo and the neutral run are proved in `tests/conformance`.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from itertools import permutations
from typing import Any

import numpy as np
import ot
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

from lightning_vision.callbacks import SAM, CutMix, Distillation, GeodesicMix, MixUp
from lightning_vision.callbacks.mixing.geodesic_mix import (
    GeodesicMixDraw,
    geodesic_images,
    geodesic_partner,
    optimal_matching,
    smoothness,
)
from support.compare import distance, seeded
from support.data import labelled_images, plain_loader
from support.modules import Plain, TwoOptimizers, small_network


def two_sets(first: int, second: int, width: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(first, width, generator=generator), torch.randn(second, width, generator=generator) + 1


@pytest.mark.parametrize(("first", "second"), [(6, 6), (3, 6), (6, 4)])
def test_row_266_the_matching_is_scipys_assignment(first: int, second: int) -> None:
    one, other = two_sets(first, second)
    rows, columns = linear_sum_assignment(((one[:, None] - other[None]) ** 2).sum(2).numpy())
    found = optimal_matching(one, other)

    assert (found.first.tolist(), found.second.tolist()) == (rows.tolist(), columns.tolist())


def test_no_other_matching_costs_less_and_pot_transports_for_as_much() -> None:
    one, other = two_sets(6, 6)
    found = optimal_matching(one, other)
    costs = [float((one - other[list(order)]).square().sum(1).mean()) for order in permutations(range(6))]
    even = np.full(6, 1 / 6)

    assert found.cost == pytest.approx(min(costs))
    assert found.cost == pytest.approx(float(ot.emd2(even, even, ot.dist(one.numpy(), other.numpy()))))


def test_row_266_in_one_dimension_it_is_sorting() -> None:
    one, other = two_sets(9, 9, width=1)
    found = optimal_matching(one, other)

    assert torch.equal(other[found.second].flatten()[one.flatten().argsort()], other.flatten().sort().values)


def test_row_266_identical_sets_are_transported_nowhere() -> None:
    one, _ = two_sets(7, 7)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    found = optimal_matching(one, one[order])

    assert found.cost == 0.0
    assert torch.equal(one[order][found.second], one)


def test_row_266_the_ends_are_the_batch_and_its_matches_bit_for_bit() -> None:
    images, labels = labelled_images(24).tensors
    callback = GeodesicMix()
    partner = callback.partners(images, labels, callback.draw(images.shape, np.random.default_rng(0)))
    start, end = (callback.at(images, partner, s) for s in (0.0, 1.0))

    assert torch.equal(start.images, images) and start.lam == 1.0
    assert torch.equal(end.images, images[partner]) and end.lam == 0.0
    # The other class's samples, all that have a match.
    assert torch.equal(end.images[partner], images)


def test_partners_are_matched_in_the_class_that_is_paired() -> None:
    labels = torch.tensor([0, 1, 0, 2, 1, 2, 0, 3, 4])
    features = torch.randn(9, 3, generator=torch.Generator().manual_seed(2))
    order = torch.tensor([3, 0, 7, 1, 2, 8, 4, 5, 6])  # classes 2, 0, 3, 1, 4: 2 with 0, 3 with 1, 4 alone
    partner = geodesic_partner(features, labels, order)
    pairs = {frozenset((int(labels[own]), int(labels[other]))) for own, other in enumerate(partner.tolist())}

    assert pairs == {frozenset((2, 0)), frozenset((3, 1)), frozenset((0,)), frozenset((1,)), frozenset((4,))}
    assert torch.equal(partner[partner], torch.arange(9))
    # Of three zeros one is left over, of two ones one, and the only four.
    assert sorted(labels[partner == torch.arange(9)].tolist()) == [0, 1, 4]
    cost = (features - features[partner]).square().sum(1)[labels == 2].sum()
    assert cost == pytest.approx(2 * optimal_matching(features[labels == 2], features[labels == 0]).cost)


class Asked(Plain):
    """Keeps the loss of each computation of its step, and how many steps were taken before it."""

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__(dropout)
        self.asked: list[tuple[int, float]] = []

    def loss(self, image: Tensor, target: Any) -> Tensor:
        value = super().loss(image, target)
        if self.training:
            mixed = getattr(value, "mixed_value", lambda: value)()
            self.asked.append((self.trainer.global_step, float(mixed.detach())))
        return value


def test_row_266_the_chosen_point_is_where_the_loss_is_highest(fit: Callable[..., Any]) -> None:
    """Five computations ahead, then the step and the point beside: with dropout equal to the last bit."""
    module = Asked()
    fit(module, [GeodesicMix()], plain_loader(60, batch_size=12), max_epochs=2)
    chosen = []
    for step in range(10):
        *ahead, taken, beside = [loss for at, loss in module.asked if at == step]
        chosen.append(int(np.argmax(ahead)))

        assert len(ahead) == 5 and taken == max(ahead)
        assert beside == ahead[chosen[-1] + 1 if chosen[-1] < 4 else 3]
    assert len(set(chosen)) > 1


class UnknownAt(GeodesicMix):
    """Whose second loss of three is not a number."""

    asked = 0

    def _loss_ahead(self, batch: Any) -> float:
        self.asked += 1
        return math.nan if self.asked % 3 == 2 else super()._loss_ahead(batch)


def test_a_loss_that_is_not_a_number_is_no_worst_case(fit: Callable[..., Any]) -> None:
    module, callback = Asked(), UnknownAt(3, reg_weight=0.0)
    fit(module, [callback], plain_loader(24, batch_size=12), max_epochs=2)

    assert callback.asked == 12
    for step in range(4):
        *ahead, taken = [loss for at, loss in module.asked if at == step]
        assert taken == max(ahead) and len(ahead) == 2


POINTS = [0.0, 0.25, 0.5]
SETTINGS: dict[str, Any] = {"n_geodesic": 3, "reg_weight": 0.5}


def by_hand(network: nn.Module, image: Tensor, target: Tensor, random: np.random.Generator) -> Tensor:
    order = random.permutation(len(image))
    classes = list(dict.fromkeys(target[order].tolist()))
    partner = torch.arange(len(image))
    for one, other in zip(classes[::2], classes[1::2], strict=False):
        rows, columns = (torch.nonzero(target == it).flatten() for it in (one, other))
        few, many = sorted((rows, columns), key=len)
        costs = {
            chosen: float((image[few] - image[list(chosen)]).double().square().sum())
            for chosen in permutations(many.tolist(), len(few))
        }
        best = torch.tensor(min(costs, key=lambda it: costs[it]))
        partner[few], partner[best] = best, few

    def loss(apart: nn.Module | dict[str, Tensor], s: float) -> Tensor:
        mixed = torch.lerp(image[partner], image, 1 - s)
        logits = functional_call(network, apart, mixed) if isinstance(apart, dict) else apart(mixed)
        own, other = F.cross_entropy(logits, target), F.cross_entropy(logits, target[partner])
        return own if s == 0 else (1 - s) * own + (1 - (1 - s)) * other

    losses = [loss(deepcopy(network), s).item() for s in POINTS]
    worst = int(np.argmax(losses))
    beside = worst + 1 if worst < 2 else worst - 1
    taken = loss(network, POINTS[worst])
    buffers = {name: value.clone() for name, value in network.named_buffers()}
    change = (loss(buffers, POINTS[beside]) - taken).abs() / 0.25
    return taken + 0.5 * change


def test_training_equals_a_loop_written_out(apart: Callable[..., float]) -> None:
    assert apart(GeodesicMix(**SETTINGS), by_hand) == 0.0


class TheBestPoint(GeodesicMix):
    def _loss_ahead(self, batch: Any) -> float:
        return -super()._loss_ahead(batch)


class AnyMatch(GeodesicMix):
    def partners(self, images: Tensor, labels: Tensor, draw: GeodesicMixDraw) -> Tensor:
        return draw.order


class LabelsUnmixed(GeodesicMix):
    def at(self, images: Tensor, partner: Tensor, point: float) -> Any:
        return super().at(images, partner, point).__class__(geodesic_images(images, partner, point), partner, 1.0)


class SquaredSlope(GeodesicMix):
    def change_between(self, loss: Tensor, beside: Tensor, distance: float) -> Tensor:
        return smoothness(loss, beside, distance).square()


@pytest.mark.parametrize("mutant", [TheBestPoint, AnyMatch, LabelsUnmixed, SquaredSlope])
def test_a_wrong_one_is_noticed(mutant: type[GeodesicMix], apart: Callable[..., float]) -> None:
    assert apart(mutant(**SETTINGS), by_hand) > 1e-3


def test_a_step_that_is_computed_twice_has_its_penalty_twice(fit: Callable[..., Any]) -> None:
    module = Asked(dropout=0.0)
    fit(module, [GeodesicMix(**SETTINGS), SAM(rho=1e-12)], plain_loader(24, batch_size=12), max_epochs=1)
    first = [loss for at, loss in module.asked if at == 0]

    # Three ahead, then twice the chosen point and the one beside it.
    assert len(first) == 7
    assert first[3:5] == pytest.approx(first[5:7], abs=1e-5)
    assert first[3] == max(first[:3]) and first[4] in first[:3]


def test_a_teacher_hears_the_step_and_not_the_point_beside(fit: Callable[..., Any]) -> None:
    modules = [seeded(Plain, 0.0) for _ in range(2)]
    for module, weight in zip(modules, (0.0, 1e-9), strict=True):
        # The weight alone tells whether the point beside is computed.
        teacher = Distillation(teacher=seeded(small_network, 0.0), kd_weight=1.0, network="network")
        fit(module, [GeodesicMix(3, reg_weight=weight), teacher], plain_loader(24, batch_size=12), max_epochs=1)

    assert distance(modules[0].state_dict(), modules[1].state_dict()) < 1e-6


def test_soft_labels_are_searched_alike(fit: Callable[..., Any]) -> None:
    ours, theirs = seeded(Plain, 0.0), seeded(Plain, 0.0)
    fit(ours, [GeodesicMix(**SETTINGS)], plain_loader(24, batch_size=12), max_epochs=2)
    fit(
        theirs, [GeodesicMix(**SETTINGS, targets="soft", num_classes=10)], plain_loader(24, batch_size=12), max_epochs=2
    )

    assert distance(ours.state_dict(), theirs.state_dict()) < 1e-5


@pytest.mark.parametrize("other", [CutMix(), MixUp(targets="sampled")])
@pytest.mark.parametrize("targets", ["soft", "sampled"])
def test_one_that_mixes_after_the_search_is_refused(other: Any, targets: Any, fit: Callable[..., Any]) -> None:
    searching = GeodesicMix(targets=targets, num_classes=10)
    with pytest.raises(ValueError) as refusal:
        fit(Plain(), [searching, other], plain_loader(12), max_epochs=1)

    assert str(refusal.value) == (
        f"GeodesicMix: {other.state_key} would mix the batch after it was searched, so the step would be taken at "
        "another point; leave GeodesicMix at targets='loss', which acts last, and give the other "
        "targets='sampled', or leave one of them out."
    )


@pytest.mark.parametrize("targets", ["loss", "soft"])
def test_one_that_mixes_before_the_search_is_welcome(targets: Any, fit: Callable[..., Any]) -> None:
    module = Asked(dropout=0.0)
    # Of those that act at one time the names decide, here CutMix before GeodesicMix.
    mixers = [GeodesicMix(3, targets=targets, num_classes=10), CutMix(targets="sampled")]
    fit(module, mixers, plain_loader(24, batch_size=12), max_epochs=1)

    assert len(module.asked) == 2 * 5


@pytest.mark.parametrize("reg_weight", [0.0, 0.1])
def test_a_step_that_is_given_copies_of_the_searched_images_is_refused(
    reg_weight: float, fit: Callable[..., Any]
) -> None:
    class Copying(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            step = pl_module.training_step
            pl_module.training_step = lambda batch, batch_idx: step([batch[0].clone(), batch[1]], batch_idx)

    with pytest.raises(ValueError, match="GeodesicMix: training_step was given other images than those that were sea"):
        fit(Plain(), [GeodesicMix(reg_weight=reg_weight), Copying()], plain_loader(12), max_epochs=1)


def test_processes_search_at_the_same_batches() -> None:
    callback = GeodesicMix(prob=0.5)
    coins = []
    for number in range(20):
        callback._batches = number
        two = {callback.coin(np.random.default_rng((0, rank, number))) for rank in (0, 1)}
        coins += two

        assert len(two) == 1
    assert 4 < sum(coin < 0.5 for coin in coins) < 16


class NoLoss(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"logits": self(batch[0])}


@pytest.mark.parametrize(
    ("module", "labels", "message"),
    [
        (TwoOptimizers, torch.arange(12) % 10, "GeodesicMix: TwoOptimizers optimises manually"),
        (NoLoss, torch.arange(12) % 10, "GeodesicMix: training_step returned dict without a loss"),
        (Plain, torch.arange(12) % 3 - 100, "GeodesicMix: a label is -100, which is no class, and it matches classes"),
        (Plain, torch.rand(12, 10), r"GeodesicMix: it matches classes, and the labels are float32 \(6, 10\)"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    module: type[LightningModule], labels: Tensor, message: str, fit: Callable[..., Any]
) -> None:
    loader = DataLoader(TensorDataset(torch.randn(12, 1, 8, 8), labels), 6)
    with pytest.raises(ValueError, match=message):
        fit(module(), [GeodesicMix()], loader, max_epochs=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_geodesic": 0}, "GeodesicMix: n_geodesic is 0; give a whole number of at least 1."),
        ({"s_range": 0.5}, "GeodesicMix: s_range is 0.5; give its two ends, such as [0.0, 0.5]."),
        ({"s_range": (0.0, 1.5)}, "GeodesicMix: an end of s_range is 1.5; give a number from 0 to 1."),
        ({"s_range": (0.5, 0.5)}, "GeodesicMix: s_range runs from 0.5 to 0.5; give a first end below the last."),
        ({"reg_weight": -1.0}, "GeodesicMix: reg_weight is -1.0; give a finite number of at least 0."),
        (
            {"n_geodesic": 1},
            "GeodesicMix: reg_weight is 0.1 and along one point nothing changes; give n_geodesic=2 or more, or "
            "reg_weight=0.",
        ),
        ({"prob": 2.0}, "GeodesicMix: prob is 2.0; give a number from 0 to 1."),
    ],
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        GeodesicMix(**settings)

    assert str(refusal.value) == message

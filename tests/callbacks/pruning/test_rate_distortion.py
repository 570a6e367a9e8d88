"""Rate-distortion: the program against brute force, distortions by hand, additivity, one rate for all as a rival."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from lightning_vision.callbacks import Pruning
from lightning_vision.callbacks.pruning.magnitude import Magnitude, magnitude_masks
from lightning_vision.callbacks.pruning.rate_distortion import (
    RateDistortion,
    distortion_curves,
    least_distortion_counts,
    pruning_distortion,
    uniform_pruning_counts,
)
from support.data import ResumableLoader, labelled_images
from support.modules import Plain
from support.pruning import moment_of, weights_of
from support.trainers import quiet_trainer

IMAGES = labelled_images(16).tensors[0]


class Branches(nn.Module):
    """Two linear branches on halves of the input, whose outputs are added."""

    def __init__(self, left, right):
        super().__init__()
        self.left, self.right = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.left.weight.data, self.right.weight.data = torch.tensor(left), torch.tensor(right)

    def forward(self, x):
        return self.left(x[:, :2]) + self.right(x[:, 2:])


def branches():
    return Branches([[1.0, 2.0], [-3.0, 4.0]], [[5.0, 1.0], [2.0, -6.0]])


# The halves are uncorrelated: each column of the one is orthogonal to each of the other.
UNCORRELATED = torch.tensor(
    [[1.0, 2.0, 1.0, 0.0], [1.0, 2.0, -1.0, 0.0], [3.0, -1.0, 0.0, 2.0], [3.0, -1.0, 0.0, -2.0]]
)


def masks_of(module, counts):
    """Masks of magnitude, so many weights pruned in each layer."""
    masks = {}
    for (name, weight), count in zip(weights_of(module).items(), counts, strict=True):
        kept = torch.ones_like(weight, dtype=torch.bool)
        masks |= magnitude_masks({name: weight}, {name: kept}, weight.numel() - count)
    return masks


def pruned_in(masks):
    return [int((~mask).sum()) for mask in masks.values()]


@pytest.mark.parametrize("seed", range(5))
def test_row_187_the_program_equals_brute_force_and_hits_every_target(seed):
    random = np.random.default_rng(seed)
    curves = [np.concatenate([[0.0], random.random(size)]) for size in random.integers(1, 5, 4)]
    for target in range(sum(len(curve) - 1 for curve in curves) + 1):
        counts = least_distortion_counts(curves, target)
        choices = [c for c in itertools.product(*(range(len(curve)) for curve in curves)) if sum(c) == target]
        least = min(sum(curve[k] for curve, k in zip(curves, choice, strict=True)) for choice in choices)

        assert sum(counts) == target
        assert sum(curve[k] for curve, k in zip(curves, counts, strict=True)) == pytest.approx(least, rel=1e-12)


def test_a_greedy_choice_would_miss_the_best_one():
    """Marginal costs are best followed on convex curves alone; the second layer's is not."""
    assert least_distortion_counts([np.array([0.0, 1.0, 5.0]), np.array([0.0, 2.0, 3.0])], 2) == [0, 2]


def test_row_187_no_pruning_has_no_distortion_and_more_has_more_on_average():
    curves = []
    for seed in range(3):
        torch.manual_seed(seed)
        module = Plain()
        weights, kept = (it := moment_of(module, IMAGES)).weights, it.kept
        found = distortion_curves(module, IMAGES, weights, kept, (0.25, 0.5, 0.75))
        assert pruning_distortion(module, IMAGES, weights, [{}, kept]) == [0.0, 0.0]
        assert [counts for counts, _ in found.values()] == [[0, 9, 18, 27, 36], [0, 90, 180, 270, 360]]
        curves += [distortions for _, distortions in found.values()]
    mean = np.mean(curves, axis=0)

    assert [curve[0] for curve in curves] == [0.0] * 6
    assert (np.diff(mean) > 0).all()


def test_a_layers_distortion_by_hand():
    """Without 1, and then 1 and 2: the first output loses x0, then x0 + 2 x1; squares 1, 1, 9, 9 and 25, 25, 1, 1."""
    module = branches()
    moment = moment_of(module, UNCORRELATED)
    curves = distortion_curves(module, UNCORRELATED, moment.weights, moment.kept, (0.25, 0.5))

    assert curves["left.weight"][0] == [0, 1, 2, 4]
    assert curves["left.weight"][1][:3] == [0.0, 5.0, 13.0]


def test_a_layer_is_pruned_as_torch_prunes_it():
    torch.manual_seed(0)
    module = Plain()
    masks = RateDistortion().keep(moment_of(module, IMAGES), 100)
    for name, count in zip(masks, pruned_in(masks), strict=True):
        layer = copy.deepcopy(module.get_submodule(name.removesuffix(".weight")))
        prune.l1_unstructured(layer, "weight", count)

        assert torch.equal(masks[name], layer.weight_mask.bool())


def test_row_187_distortions_add_exactly_for_two_uncorrelated_linear_branches():
    module = branches()
    moment = moment_of(module, UNCORRELATED)
    curves = distortion_curves(module, UNCORRELATED, moment.weights, moment.kept, (0.25, 0.5, 0.75))
    (_, left), (_, right) = curves.values()
    for i, j in itertools.product(range(5), repeat=2):
        (joint,) = pruning_distortion(module, UNCORRELATED, moment.weights, [masks_of(module, (i, j))])
        assert joint == left[i] + right[j]

    correlated = UNCORRELATED.clone()
    correlated[:, 2:] = correlated[:, :2]
    (_, left), (_, right) = distortion_curves(module, correlated, moment.weights, moment.kept, (0.25,)).values()
    (joint,) = pruning_distortion(module, correlated, moment.weights, [masks_of(module, (1, 1))])
    assert joint != left[1] + right[1]


@pytest.mark.parametrize("sparsity", [0.3, 0.6, 0.9, 0.99])
def test_row_187_never_above_one_rate_for_all_layers_at_the_same_count(sparsity):
    ratios = []
    for seed in range(5):
        torch.manual_seed(seed)
        module = Plain()
        moment = moment_of(module, IMAGES)
        target = round(sparsity * 396)
        ours = RateDistortion().keep(moment, 396 - target)
        uniform = masks_of(module, uniform_pruning_counts([36, 360], target))
        mine, theirs = pruning_distortion(module, IMAGES, moment.weights, [ours, uniform])

        assert sum(pruned_in(ours)) == sum(pruned_in(uniform)) == target
        assert mine <= theirs
        ratios.append(mine / theirs)
    assert min(ratios) < 1


def test_where_distortions_do_not_add_one_rate_may_win_and_is_taken():
    """Each branch alone is missed; without both the errors cancel, which the sum of the two does not see."""
    module = Branches([[1.0, 0.0], [0.0, 0.0]], [[-1.0, 0.0], [0.0, 0.0]])
    module.left.weight.data[1, 1], module.right.weight.data[1, 1] = 1.1, 1.1
    same = torch.tensor([[9.0, 1.0, 9.0, 1.0]])
    kept = {f"{side}.weight": torch.eye(2, dtype=torch.bool) for side in ("left", "right")}
    masks = RateDistortion(rates=(0.5,)).keep(moment_of(module, same, kept), 2)

    assert pruned_in(masks) == [3, 3]
    assert pruning_distortion(module, same, weights_of(module), [masks]) == [0.0]


def test_a_layer_that_hardly_matters_gives_the_most_however_large_its_weights():
    module = branches()
    module.left.weight.data.mul_(100)
    images = UNCORRELATED * torch.tensor([1e-4, 1e-4, 1.0, 1.0])
    moment = moment_of(module, images)

    assert pruned_in(RateDistortion((0.25, 0.5, 0.75)).keep(moment, 4)) == [4, 0]
    assert pruned_in(Magnitude().keep(moment, 4)) == [0, 4]


def test_all_counts_may_be_chosen_between_those_measured():
    """On straight curves one layer after the other is emptied, as far as the target goes."""
    module = nn.Sequential(nn.Linear(5, 1, bias=False))
    module[0].weight.data = torch.arange(1.0, 6.0)[None]
    moment = moment_of(module, torch.eye(5))

    assert [int(RateDistortion((0.5,)).keep(moment, count)["0.weight"].sum()) for count in range(6)] == [*range(6)]


@pytest.mark.parametrize("count", [1, 137, 4_999, 5_000, 7_003, 9_996])
def test_a_large_network_hits_the_target_though_it_is_counted_in_units(count):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 100, bias=False), nn.ReLU(), nn.Linear(100, 33), nn.ReLU(), nn.Linear(33, 9))
    images = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    masks = RateDistortion((0.5, 0.9)).keep(moment_of(module, images), count)

    assert sum(mask.numel() for mask in masks.values()) == 6_400 + 3_300 + 297
    assert sum(int(mask.sum()) for mask in masks.values()) == count


def test_one_rate_for_all_takes_what_rounding_leaves():
    assert uniform_pruning_counts([10, 10, 5], 13) == [5, 5, 3]
    assert uniform_pruning_counts([3, 3, 3], 9) == [3, 3, 3]
    assert uniform_pruning_counts([0, 0], 0) == [0, 0]


class Counts(Plain):
    """Counts its calls in a buffer, and draws."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, image):
        self.calls += torch.rand(())
        return super().forward(image)


def test_the_network_and_the_streams_are_as_before():
    torch.manual_seed(0)
    module = Counts()
    module.network[0].eval()
    before, flags = copy.deepcopy(module.state_dict()), [part.training for part in module.modules()]
    stream = torch.get_rng_state()
    RateDistortion().keep(moment_of(module, IMAGES), 100)

    assert [part.training for part in module.modules()] == flags
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(it.requires_grad and it.grad is None for it in module.parameters())


@pytest.mark.parametrize("rates", [(), (0.0,), (0.5, 1.1), ("half",)])
def test_rates_out_of_range_are_refused(rates):
    with pytest.raises(ValueError, match=r"^RateDistortion: rates is .*; give numbers above 0 and at most 1"):
        RateDistortion(rates)


def test_outputs_that_are_not_finite_or_no_tensor_are_refused():
    module = branches()
    with pytest.raises(
        ValueError, match=r"^RateDistortion: pruning layers of Branches moves its outputs by a distance"
    ):
        RateDistortion().keep(moment_of(module, UNCORRELATED * torch.inf), 4)
    with pytest.raises(
        ValueError, match=r"^RateDistortion: Branches could not be called .* \(2, 3\) .* choose another"
    ):
        RateDistortion().keep(moment_of(module, torch.ones(2, 3)), 4)


def test_the_callback_prunes_by_it():
    torch.manual_seed(0)
    module = Plain()
    loader = ResumableLoader(labelled_images(12), 6)
    first = next(iter(copy.deepcopy(loader)))[0]
    expected = RateDistortion().keep(moment_of(module, first), round(0.2 * 396))
    pruning = Pruning(sparsity=0.8, criterion="rate_distortion")
    quiet_trainer(max_steps=2, callbacks=[pruning]).fit(module, loader)

    assert all(torch.equal(pruning.kept_masks[name], mask) for name, mask in expected.items())

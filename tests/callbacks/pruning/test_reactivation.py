"""Activating while pruning: rates and scores by hand, inputs that only rise, rates that do not, and equal sparsity."""

import copy
from itertools import product

import pytest
import torch
from torch import nn

from lightning_vision.callbacks import Pruning
from lightning_vision.callbacks.pruning._criteria import CRITERIA, criterion_named
from lightning_vision.callbacks.pruning._criterion import Criterion
from lightning_vision.callbacks.pruning._units import read_units
from lightning_vision.callbacks.pruning.magnitude import Magnitude
from lightning_vision.callbacks.pruning.movement import Movement
from lightning_vision.callbacks.pruning.reactivation import (
    Reactivation,
    dead_neuron_rate,
    reactivation_masks,
    reactivation_scores,
)
from support.data import ResumableLoader, labelled_images
from support.modules import Plain
from support.pruning import moment_of, weights_of
from support.trainers import quiet_trainer

IMAGES = labelled_images(16).tensors[0]


class Residual(nn.Module):
    """Batch norms, some with negative factors, a sum, a grouped convolution, and one ReLU that is called twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.middle, self.last = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Sequential(nn.Linear(256, 8), nn.ReLU(), nn.Linear(8, 10))
        for norm in (self.norm, self.middle, self.last):
            norm.weight.data.normal_()
            norm.running_mean.normal_(std=0.3)

    def forward(self, image):
        x = torch.relu(self.norm(self.stem(image)))
        x = x + self.last(self.second(self.relu(self.middle(self.first(x)))))
        return self.head(self.relu(x).flatten(1))


def perceptron():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 10))


MADE = {"perceptron": perceptron, "residual": Residual, "plain": Plain}


def made(kind, seed):
    torch.manual_seed(seed)
    return MADE[kind]()


def pruned(masks):
    return sum(int((~mask).sum()) for mask in masks.values())


def tiny():
    """Two units, 2 x and -x - y, of which three images make (4, -3), (-2, 1) and (0, -1)."""
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    module[0].weight.data = torch.tensor([[2.0, 0.0], [-1.0, -1.0]])
    return module, torch.tensor([[2.0, 1.0], [-1.0, 0.0], [0.0, 1.0]])


def test_row_250_the_dead_neuron_rate_equals_a_hand_count():
    module, images = tiny()

    assert dead_neuron_rate(module, images) == {"1": 4 / 6}
    assert dead_neuron_rate(module, images[1:2]) == {"1": 1 / 2}
    assert dead_neuron_rate(module, images, {"0.weight": torch.eye(2)}) == {"1": 3 / 6}


def test_a_relu_that_is_called_twice_is_told_twice():
    assert list(dead_neuron_rate(made("residual", 0), IMAGES)) == ["relu", "relu:2", "head.1"]


def test_scores_by_hand():
    """Inputs 0 ... 2, -1 ... 1 and -3 ... -1; two mostly dead units, of which the second is turned, and a live one."""
    weight = torch.tensor([[-1.0, -1.0, 2.0], [4.0, 4.0, -1.0], [-1.0, -1.0, 2.0]])
    low, high = torch.tensor([[0.0, -1.0, -3.0]]), torch.tensor([[2.0, 1.0, -1.0]])
    dead, gain = torch.tensor([0.75, 1.0, 0.5]), torch.tensor([2.0, -0.5, 2.0])
    scores = reactivation_scores(weight, dead, gain, low, high, torch.tensor([[1.0, 0.5, 2.0]]))

    assert scores.tolist() == [[1.5, 0.0, 6.0], [2.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    kernel = reactivation_scores(weight[..., None, None], dead, gain, low, high, torch.tensor([[1.0, 0.5, 2.0]]))
    assert kernel[..., 0, 0].equal(scores)


def relu_inputs(module, weights):
    seen = []
    parts = [part for part in module.modules() if isinstance(part, nn.ReLU)]
    handles = [part.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone())) for part in parts]
    with torch.no_grad():
        torch.func.functional_call(module.eval(), weights, (IMAGES.to(next(module.parameters()).dtype),))
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("kind", ["perceptron", "residual"])
def test_taking_a_weight_with_a_score_away_raises_its_units_input_for_every_image(kind):
    module = made(kind, 0).double()
    units = read_units(module, IMAGES.double(), weights_of(module))
    calls = list(dead_neuron_rate(module, IMAGES.double()))
    before = relu_inputs(module, {})
    found = 0
    for name, unit in units.items():
        weight = weights_of(module)[name]
        scores = reactivation_scores(weight, unit.dead, unit.gain, unit.low, unit.high, unit.size)
        for position in scores.nonzero()[:40]:
            without = weight.clone()
            without[tuple(position)] = 0
            after = relu_inputs(module, {name: without})[calls.index(unit.relu)]
            rise = after - before[calls.index(unit.relu)]
            assert rise.min() > -1e-12
            assert rise.max() > 0
            found += 1

    assert found > 20
    assert units["head.0.weight" if kind == "residual" else "3.weight"].relu == calls[-1]


@pytest.mark.parametrize("kind", MADE)
def test_row_250_no_treated_layers_rate_rises_on_the_same_batch(kind):
    falls = 0
    for seed, budget in product(range(4), (20, 400)):
        module = made(kind, seed)
        moment = moment_of(module, IMAGES)
        units = read_units(module, IMAGES, moment.weights)
        before = dead_neuron_rate(module, IMAGES)
        masks = reactivation_masks(module, IMAGES, moment.weights, moment.kept, budget)
        after = dead_neuron_rate(module, IMAGES, {name: moment.weights[name] * mask for name, mask in masks.items()})
        treated = [units[name].relu for name, mask in masks.items() if not mask.all()]

        assert 0 <= pruned(masks) <= budget
        assert [relu for relu in treated if after[relu] > before[relu]] == []
        falls += sum(after[relu] < before[relu] for relu in treated)
    assert kind == "plain" or falls >= 4


def test_the_opposite_weights_raise_the_rate():
    """The mutant of the rule: contributions that are never negative."""
    module = made("perceptron", 0)
    weights = weights_of(module)
    before = dead_neuron_rate(module, IMAGES)["4"]
    wrong = weights["3.weight"].clamp(max=0)

    assert dead_neuron_rate(module, IMAGES, {"3.weight": wrong})["4"] > before


def test_a_layer_whose_treatment_would_raise_a_treated_rate_is_left_as_it_is():
    """Units x - 2 y, then -h - 1, which is always dead, and 1 - 3 h, which dies where the first wakes."""
    module = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    module[2].bias.data = torch.tensor([-1.0, 1.0])
    weights = {"0.weight": torch.tensor([[1.0, -2.0]]), "2.weight": torch.tensor([[-1.0], [-3.0]])}
    images = torch.tensor([[3.0, 1.0], [2.0, 2.0], [1.0, 2.0]])
    kept = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    masks = reactivation_masks(module, images, weights, kept, budget=2)

    assert dead_neuron_rate(module, images, weights) == {"1": 2 / 3, "3": 4 / 6}
    assert masks["0.weight"].tolist() == [[True, True]]
    assert masks["2.weight"].tolist() == [[False], [True]]
    awake = weights | {"0.weight": torch.tensor([[1.0, 0.0]])}
    assert dead_neuron_rate(module, images, awake) == {"1": 0.0, "3": 6 / 6}


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_row_250_the_count_is_the_same_whatever_the_share_and_nothing_revives(name, share):
    torch.manual_seed(0)
    module = made("perceptron", 0)
    kept = {n: torch.rand_like(w) > 0.2 for n, w in weights_of(module).items()}
    moment = moment_of(module, IMAGES, kept, step=1)
    bases = [criterion_named("Test", name) for _ in range(2)]
    for _ in range(3):
        for parameter in module.parameters():
            parameter.grad = torch.randn_like(parameter)
        for base in bases:
            base.observe(dict(module.named_parameters()))
    left = sum(int(mask.sum()) for mask in kept.values())
    for count in (0, 1, 100, 700, left):
        alone = bases[0].keep(moment, count)
        shared = Reactivation(bases[1], share).keep(moment_of(module, IMAGES, kept, step=1), count)
        for masks in (alone, shared):
            assert sum(int(mask.sum()) for mask in masks.values()) == count
            assert not any((mask & ~kept[n]).any() for n, mask in masks.items())
            assert {n: (mask.dtype, mask.shape) for n, mask in masks.items()} == {
                n: (torch.bool, mask.shape) for n, mask in kept.items()
            }
        if share == 0.0 and name != "random":
            assert all(torch.equal(shared[n], mask) for n, mask in alone.items())
        elif share == 1.0 and count == 700:
            assert not all(torch.equal(shared[n], mask) for n, mask in alone.items())


def test_row_250_without_a_share_the_callback_is_the_base_pruner():
    def trained(**options):
        torch.manual_seed(0)
        module = perceptron_module()
        pruning = Pruning(sparsity=0.8, end_step=4, every_n_steps=2, **options)
        quiet_trainer(max_steps=6, callbacks=[pruning]).fit(module, ResumableLoader(labelled_images(36), 6))
        return pruning

    plain, none, half = trained(), trained(reactivation=0.0), trained(reactivation=0.5)
    assert all(torch.equal(plain.kept_masks[name], mask) for name, mask in none.kept_masks.items())
    assert not all(torch.equal(plain.kept_masks[name], mask) for name, mask in half.kept_masks.items())
    assert plain.sparsity_now == half.sparsity_now


def perceptron_module():
    module = Plain()
    module.network = perceptron()
    return module


def test_a_share_goes_first_and_the_base_decides_on_the_rest():
    moment = moment_of(made("perceptron", 0), IMAGES)
    spent = reactivation_masks(moment.module, IMAGES, moment.weights, moment.kept, budget=50)
    masks = Reactivation(Magnitude(), share=0.5).keep(moment, 1336 - 100)
    rest = Magnitude().keep(moment_of(moment.module, IMAGES, spent), 1336 - 100)

    assert 0 < pruned(spent) <= 50
    assert all(torch.equal(masks[name], rest[name]) for name in masks)


def test_the_base_observes_and_its_state_is_the_state():
    base = Movement()
    criterion = Reactivation(base, share=0.5)
    it = torch.nn.Parameter(torch.ones(2))
    it.grad = torch.ones(2)
    criterion.observe({"weight": it})
    other = Reactivation(Movement(), share=0.5)
    other.load_state_dict(criterion.state_dict())

    assert base.state_dict()["scores"]["weight"].tolist() == [-1.0, -1.0]
    assert other.state_dict()["scores"]["weight"].tolist() == [-1.0, -1.0]


def test_the_network_its_hooks_and_the_streams_are_as_before():
    module = made("residual", 0)
    module.first.eval()
    before, flags = copy.deepcopy(module.state_dict()), [part.training for part in module.modules()]
    stream, calls = torch.get_rng_state(), []
    module.relu.register_forward_hook(lambda *_: calls.append(1))
    Reactivation(Magnitude(), 0.5).keep(moment_of(module, IMAGES), 500)

    assert [part.training for part in module.modules()] == flags
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(it.requires_grad and it.grad is None for it in module.parameters())
    assert sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()) == 1


def test_a_network_without_relus_and_a_share_out_of_range_are_refused():
    silu = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.SiLU(), nn.Linear(8, 10))
    with pytest.raises(ValueError, match=r"^Reactivation: Sequential has no `nn.ReLU` among its modules, .* leave the"):
        Reactivation(Magnitude(), 0.5).fits(silu)
    with pytest.raises(ValueError, match=r"^Reactivation: Sequential has no `nn.ReLU` among its modules, .* leave the"):
        Reactivation(Magnitude(), 0.5).keep(moment_of(silu, IMAGES), 100)
    with pytest.raises(ValueError, match=r"^Reactivation: Sequential could not be called as `module\(images\)` on"):
        Reactivation(Magnitude(), 0.5).keep(moment_of(perceptron(), IMAGES[..., :4]), 100)
    with pytest.raises(ValueError, match=r"^Reactivation: share is 1.5; give a number from 0 to 1"):
        Reactivation(Magnitude(), 1.5)


def test_a_unit_whose_input_is_zero_is_dead_and_a_group_sees_its_own_inputs():
    module, images = tiny()
    units = read_units(module, images, weights_of(module))["0.weight"]
    assert units.dead.tolist() == pytest.approx([2 / 3, 2 / 3])

    grouped = nn.Sequential(nn.Conv2d(4, 4, 1, groups=2), nn.ReLU())
    image = torch.arange(4.0).view(1, 4, 1, 1).expand(2, 4, 3, 3)
    units = read_units(grouped, image, weights_of(grouped))["0.weight"]
    assert units.low.tolist() == units.high.tolist() == [[0, 1], [0, 1], [2, 3], [2, 3]]


class Asked(Criterion):
    """Keeps all that it may, and the moment at which it was asked."""

    def keep(self, moment, count):
        self.moment = moment
        return moment.kept


def test_the_base_sees_the_weights_that_went_as_zeros():
    base = Asked()
    Reactivation(base, share=1.0).keep(moment_of(made("perceptron", 0), IMAGES), 1336 - 50)

    assert pruned(base.moment.kept) > 0
    assert [name for name, mask in base.moment.kept.items() if base.moment.weights[name][~mask].any()] == []


def test_a_network_whose_relus_no_layer_leads_to_is_refused():
    class Functional(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.spare, self.layer = torch.nn.ReLU(), torch.nn.Linear(4, 3)

        def forward(self, image):
            return self.layer(image).relu()

    module = Functional()
    weights = {"layer.weight": module.layer.weight.detach()}
    kept = {"layer.weight": torch.ones(3, 4, dtype=torch.bool)}
    with pytest.raises(
        ValueError, match=r"^Reactivation: no layer of Functional that may be pruned leads to an `nn.ReLU`"
    ):
        reactivation_masks(module, torch.randn(5, 4), weights, kept, 2)

"""SynFlow: flow by hand, its conservation as an identity, the authors' loop, layers that do not collapse, no trace."""

import copy
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from lightning_vision.callbacks import Pruning
from lightning_vision.callbacks.pruning.magnitude import Magnitude
from lightning_vision.callbacks.pruning.synflow import SynFlow, synaptic_flow, synflow_counts, synflow_masks
from support.data import ResumableLoader, labelled_images
from support.modules import Plain
from support.pruning import moment_of, weights_of
from support.trainers import quiet_trainer

ONES = torch.zeros(3, 1, 8, 8)  # of which the shape counts


def whole_numbers(module, seed=0):
    """The module with weights -3 ... 3, so that sums and products of them are exact."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randint(-3, 4, parameter.shape, generator=generator))
    return module


def convolutions(bias=False):
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, bias=bias),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 3, bias=bias),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 6, bias=bias),
        nn.ReLU(),
        nn.Linear(6, 5, bias=bias),
    )


def layer_sums(module):
    return [score.sum().item() for score in synaptic_flow(module, weights_of(module), ONES).values()]


def test_the_flow_of_four_weights_and_two_by_hand():
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    weights = {"0.weight": torch.tensor([[1.0, -2.0], [3.0, 0.0]]), "2.weight": torch.tensor([[-1.0, 2.0]])}

    scores = synaptic_flow(module, weights, torch.randn(5, 2, generator=torch.Generator().manual_seed(0)))
    assert scores["0.weight"].tolist() == [[1.0, 2.0], [6.0, 0.0]]
    assert scores["2.weight"].tolist() == [[3.0, 6.0]]


@pytest.mark.parametrize("seed", range(3))
def test_each_layer_carries_the_whole_flow(seed):
    module = whole_numbers(convolutions(), seed)
    linear = copy.deepcopy(module).double()
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.abs_()
    flow = linear(torch.ones(1, 1, 8, 8, dtype=torch.float64)).sum().item()

    assert layer_sums(module) == [flow] * 4
    # Through a bias flow comes in beside the weights, and nothing else is told by the identity.
    assert len(set(layer_sums(whole_numbers(convolutions(bias=True), seed)))) == 4


def test_what_flows_into_a_unit_flows_out_of_it():
    module = whole_numbers(convolutions())
    scores = synaptic_flow(module, weights_of(module), ONES)

    assert scores["6.weight"].sum(1).tolist() == scores["8.weight"].sum(0).tolist()
    assert scores["0.weight"].sum((1, 2, 3)).tolist() == scores["3.weight"].sum((0, 2, 3)).tolist()


def test_batch_norm_scales_the_flow_and_what_it_has_seen_is_not_taken_away():
    module = Plain().eval()
    fresh = synaptic_flow(module, weights_of(module), ONES)
    norm = module.network[1]
    norm.running_mean.fill_(7.0)
    seen = synaptic_flow(module, weights_of(module), ONES)
    norm.weight.data.mul_(-2)
    scaled = synaptic_flow(module, weights_of(module), ONES)

    assert all(torch.equal(fresh[name], seen[name]) for name in fresh)
    torch.testing.assert_close(scaled["network.0.weight"], 2 * fresh["network.0.weight"])


def test_counts_shrink_in_proportion_to_the_last():
    assert synflow_counts(1000, 1, 3) == [100, 10, 1]
    assert synflow_counts(7, 7, 2) == [7, 7]
    assert synflow_counts(50, 0, 3) == [0, 0, 0]
    assert synflow_counts(5, 3, 1) == [3]
    steps = synflow_counts(268_336, 2_684, 100)
    assert steps == sorted(steps, reverse=True)
    assert len(steps) == 100


def by_hand(module, count, rounds, mutant=""):
    """The authors' loop: masks on a copy whose tensors are made positive, scored and thresholded in turn."""
    positive = copy.deepcopy(module).double().eval()
    with torch.no_grad():
        for tensor in positive.state_dict().values():
            tensor.abs_()
    names = list(weights_of(module))
    total = sum(weight.numel() for weight in weights_of(module).values())
    parameters = dict(positive.named_parameters())
    for k in range(1, rounds + 1):
        left = round(total * (count / total) ** (k / rounds)) if mutant != "at once" else count
        positive.zero_grad()
        positive(torch.ones(1, 1, 8, 8, dtype=torch.float64)).sum().backward()
        weighed = [parameters[n].grad * (1 if mutant == "gradient" else parameters[n].detach()) for n in names]
        scores = torch.cat([score.flatten() for score in weighed])
        threshold = scores.sort(descending=True).values[left - 1]
        with torch.no_grad():
            for name, score in zip(names, weighed, strict=True):
                parameters[name].mul_(score >= threshold)
    return {name: parameters[name].detach() != 0 for name in names}


@pytest.mark.parametrize("count", [60, 20])
def test_masks_equal_the_authors_loop(count):
    torch.manual_seed(1)
    module = Plain()
    moment = moment_of(module, ONES)
    masks = synflow_masks(module, moment.weights, moment.kept, ONES, count, rounds=20)

    expected = by_hand(module, count, 20)
    assert all(torch.equal(masks[name], expected[name]) for name in masks)
    for mutant in ("at once", "gradient"):
        wrong = by_hand(module, count, 20, mutant)
        assert any(not torch.equal(masks[name], wrong[name]) for name in masks)


def test_no_layer_collapses_where_one_weight_is_left_for_each():
    torch.manual_seed(0)
    widths = [16, 64, 64, 32, 10]
    layers = [part for i, o in pairwise(widths) for part in (nn.Linear(i, o, bias=False), nn.ReLU())]
    moment = moment_of(nn.Sequential(*layers[:-1]), torch.zeros(1, 16))

    def left(criterion):
        return [int(mask.sum()) for mask in criterion.keep(moment, 4).values()]

    assert left(SynFlow()) == [1, 1, 1, 1]
    assert 0 in left(Magnitude())
    assert 0 in left(SynFlow(rounds=1))


class Noisy(Plain):
    """Draws in its forward, whatever its mode, and counts in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, image):
        self.calls += 1
        return super().forward(image) + 0 * torch.rand(()).to(image.dtype)


def test_the_network_and_the_streams_are_as_before():
    module = Noisy()
    module.network[0].eval()
    module.network[5].bias.requires_grad_(False)
    module.network[5].weight.grad = torch.ones_like(module.network[5].weight)
    before = copy.deepcopy(module.state_dict())
    flags = [part.training for part in module.modules()]
    streams = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    SynFlow(rounds=5).keep(moment_of(module, ONES), 40)

    assert [part.training for part in module.modules()] == flags
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert [it.requires_grad for it in module.parameters()] == [True] * 5 + [False]
    assert module.network[5].weight.grad.eq(1).all()
    assert module.network[0].weight.grad is None
    assert torch.equal(torch.get_rng_state(), streams[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == streams[1:]


class Fails(Plain):
    def forward(self, image):
        raise RuntimeError("only photographs")


class Softmax(Plain):
    def forward(self, image):
        return super().forward(image).softmax(1)


class Labels(Plain):
    def forward(self, image):
        return super().forward(image).argmax(1)


def test_networks_that_it_cannot_judge_are_refused():
    with pytest.raises(ValueError, match=r"^SynFlow: Fails could not be called .* \(1, 1, 8, 8\) \(only photographs\)"):
        SynFlow(rounds=2).keep(moment_of(Fails(), ONES), 40)
    with pytest.raises(ValueError, match=r"^SynFlow: what Softmax answers to an image of ones does not grow with"):
        SynFlow(rounds=2).keep(moment_of(Softmax(), ONES), 40)
    with pytest.raises(ValueError, match=r"^SynFlow: Labels answers images with Tensor, where a tensor of floats is"):
        SynFlow(rounds=2).keep(moment_of(Labels(), ONES), 40)
    with pytest.raises(ValueError, match=r"^SynFlow: rounds is 0; give a whole number of at least 1"):
        SynFlow(rounds=0)
    module = Plain()
    module.network[3] = nn.GroupNorm(2, 4)
    with pytest.raises(ValueError, match=r"^SynFlow: network\.3 is a GroupNorm that takes the mean .* choose another"):
        SynFlow().fits(module)


def test_the_callback_prunes_by_it():
    torch.manual_seed(0)
    module = Plain()
    expected = SynFlow().keep(moment_of(module, ONES), round(0.2 * 396))
    pruning = Pruning(sparsity=0.8, criterion="synflow")
    quiet_trainer(max_steps=2, callbacks=[pruning]).fit(module, ResumableLoader(labelled_images(12), 6))

    assert all(torch.equal(pruning.kept_masks[name], mask) for name, mask in expected.items())
    assert all((weights_of(module)[name][~mask] == 0).all() for name, mask in expected.items())

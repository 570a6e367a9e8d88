"""Soups are means of weights: exact where arithmetic allows, in any order, and greedy ones never below the best."""

import math
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lightning_vision.merging import greedy_soup, uniform_soup
from support.modules import small_network


def networks(count=3):
    """State dicts of networks with batch norm, whose counts of batches differ."""
    torch.manual_seed(0)
    made = [small_network() for _ in range(count)]
    for number, network in enumerate(made):
        for _ in range(number + 1):
            network(torch.randn(8, 1, 8, 8))
    return [{name: value.clone() for name, value in network.state_dict().items()} for network in made]


def same(left, right):
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_row_103_a_soup_of_identical_checkpoints_is_the_checkpoint(count, kind):
    (state,) = networks(1)
    state = {name: it.to(kind) if it.is_floating_point() else it for name, it in state.items()}

    assert same(state, uniform_soup([state] * count))
    assert same(state, uniform_soup([state] * count, weights=[0.1 * (it + 1) for it in range(count)]))


def test_row_103_for_a_linear_model_the_soups_logits_are_the_mean_of_logits_exactly():
    """Weights and images are small whole numbers, so that no product, sum or quarter is rounded."""
    generator = torch.Generator().manual_seed(0)
    states = [
        {
            "weight": torch.randint(-8, 9, (10, 64), generator=generator).float(),
            "bias": torch.randint(-8, 9, (10,), generator=generator).float(),
        }
        for _ in range(4)
    ]
    images = torch.randint(0, 17, (20, 64), generator=generator).float()
    logits = torch.stack([F.linear(images, **state) for state in states])

    assert torch.equal(logits.mean(dim=0), F.linear(images, **uniform_soup(states)))
    assert not torch.equal(logits.mean(dim=0), F.linear(images, **uniform_soup(states[:3])))


def test_row_103_the_uniform_soup_is_independent_of_the_order_of_files():
    """Values over many scales, whose sum in the order of the files rounds one way or another."""
    generator = torch.Generator().manual_seed(0)
    scales = 10.0 ** torch.arange(-9, 10, dtype=torch.float64)
    states = [
        {"wide": torch.randn(500, 19, generator=generator, dtype=torch.float64) * scales, **state}
        for state in networks(4)
    ]
    weights = [1.0, 2.0, 0.5, 3.0]
    orders = list(permutations(range(4)))
    soups = [uniform_soup([states[it] for it in order]) for order in orders]
    weighted = [uniform_soup([states[it] for it in order], [weights[it] for it in order]) for order in orders]
    naive = {tuple(sum(states[it]["wide"] for it in order).flatten().tolist()) for order in orders}

    assert all(same(soups[0], other) for other in soups)
    assert all(same(weighted[0], other) for other in weighted)
    assert len(naive) > 1


def test_row_103_integer_buffers_keep_their_type_and_the_longest_count():
    soup = uniform_soup(networks(3))
    flags = uniform_soup([{"seen": torch.tensor([True, False])}, {"seen": torch.tensor([False, False])}])

    assert soup["1.num_batches_tracked"].dtype == torch.int64
    assert soup["1.num_batches_tracked"] == 3
    assert flags["seen"].tolist() == [True, False]


def score_of(target):
    """Minus the distance of a state dict's weight from a point."""
    return lambda state: -float((state["weight"].double() - target).norm())


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("higher", [True, False])
def test_row_103_the_greedy_soup_scores_at_least_what_the_best_ingredient_scores(seed, higher):
    generator = torch.Generator().manual_seed(seed)
    states = [{"weight": torch.randn(5, generator=generator)} for _ in range(6)]
    target, sign = torch.randn(5, generator=generator, dtype=torch.float64), 1 if higher else -1

    def score(state):
        return sign * score_of(target)(state)

    found = greedy_soup(states, score, higher_is_better=higher)
    alone = [sign * score(state) for state in states]

    assert sign * found.score >= max(alone)
    assert found.score == score(found.state_dict)
    assert found.kept[0] == alone.index(max(alone))
    assert same(found.state_dict, uniform_soup([states[it] for it in found.kept]))


def by_hand(states, score):
    """Recipe 1 of the paper, line by line."""
    order = sorted(range(len(states)), key=lambda it: score(states[it]), reverse=True)
    ingredients = []
    for each in order:
        mean = {"weight": sum(states[it]["weight"].double() for it in [*ingredients, each]) / (len(ingredients) + 1)}
        old = {"weight": sum(states[it]["weight"].double() for it in ingredients) / max(1, len(ingredients))}
        if not ingredients or score(mean) >= score(old):
            ingredients.append(each)
    return ingredients


@pytest.mark.parametrize("seed", range(20))
def test_the_greedy_soup_is_recipe_1(seed):
    generator = torch.Generator().manual_seed(seed)
    states = [{"weight": torch.randn(3, generator=generator)} for _ in range(6)]
    score = score_of(torch.zeros(3, dtype=torch.float64))

    assert by_hand(states, score) == greedy_soup(states, score).kept


def test_what_falls_behind_is_left_out_and_what_is_level_is_kept():
    states = [{"weight": torch.tensor([value])} for value in (1.0, -1.0, 5.0, 1.0)]
    found = greedy_soup(states, score_of(torch.tensor([0.0], dtype=torch.float64)))

    # 1, then -1 makes 0, and with the other 1 it would be 1/3.
    assert found.kept == [0, 1]
    assert [position for position, _ in found.tried] == [0, 1, 3, 2]
    assert greedy_soup(states[::3], score_of(torch.zeros(1, dtype=torch.float64))).kept == [0, 1]


def test_an_ingredient_that_diverged_is_tried_last_and_left_out():
    states = [{"weight": torch.tensor([value])} for value in (math.nan, 1.0, 3.0)]
    scores = [math.nan, -1.0, -3.0]
    found = greedy_soup(states, score_of(torch.zeros(1, dtype=torch.float64)), scores)

    assert found.kept == [1]
    assert [position for position, _ in found.tried] == [1, 2, 0]
    with pytest.raises(ValueError, match=r"^greedy_soup: no state dict has a score that is a number; look at"):
        greedy_soup(states[:1], lambda state: math.nan)


def test_the_mean_is_torchs_average_of_models():
    torch.manual_seed(0)
    models = [nn.Linear(20, 10).double() for _ in range(5)]
    average = AveragedModel(models[0])
    for model in models:
        average.update_parameters(model)
    soup = uniform_soup([model.state_dict() for model in models])

    assert all(torch.allclose(value, average.module.state_dict()[name], atol=1e-15) for name, value in soup.items())


def test_weights_are_shares_and_none_leaves_out():
    states = [{"weight": torch.tensor([value, math.inf])} for value in (0.0, 4.0, math.nan)]

    assert uniform_soup(states, weights=[3, 1, 0])["weight"].tolist() == [1.0, math.inf]
    assert same(uniform_soup(states, weights=[0, 7, 0]), states[1])


def test_half_precision_neither_overflows_nor_drifts():
    large = [{"weight": torch.full((4,), 60000.0, dtype=torch.float16)} for _ in range(8)]
    steps = [{"weight": torch.tensor([1.0 + it / 1024], dtype=torch.float16)} for it in range(5)]

    assert uniform_soup(large)["weight"].tolist() == [60000.0] * 4
    assert uniform_soup(steps)["weight"].item() == 1.0 + 2 / 1024


def test_complex_weights_have_a_mean():
    states = [{"weight": torch.tensor([1 + 2j])}, {"weight": torch.tensor([3 - 4j])}]

    assert uniform_soup(states)["weight"].tolist() == [2 - 1j]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("1.bias"), "1.bias has the shape (4,) in the first and is missing in the second"),
        (
            lambda state: state.update({"1.bias": torch.zeros(5)}),
            "1.bias has the shape (4,) in the first and has the shape (5,) in the second",
        ),
        (
            lambda state: state.update({"6.weight": torch.zeros(2, 3)}),
            "6.weight is missing in the first and has the shape (2, 3) in the second",
        ),
    ],
)
def test_other_architectures_are_refused_with_both_names_and_the_first_difference(change, said):
    states = networks(3)
    change(states[2])
    sentence = f"a.ckpt and c.ckpt are of different architectures: {said}; merge checkpoints of one network."
    for soup in (uniform_soup, lambda states, labels: greedy_soup(states, len, labels=labels)):
        with pytest.raises(ValueError) as error:
            soup(states, labels=["a.ckpt", "b.ckpt", "c.ckpt"])

        assert str(error.value) == sentence


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [1.0, math.inf], [1.0, math.nan]])
def test_weights_that_make_no_mean_are_refused(weights):
    with pytest.raises(ValueError, match=r"^uniform_soup: weights are .* for 2 state dicts; give each a finite weight"):
        uniform_soup(networks(2), weights)


def test_nothing_makes_no_soup():
    for soup in (uniform_soup, lambda states: greedy_soup(states, len)):
        with pytest.raises(ValueError, match=r"^uniform_soup: there is no state dict; give at least one.$"):
            soup([])
    with pytest.raises(ValueError, match=r"^greedy_soup: there are 1 scores for 2 state dicts; give one each.$"):
        greedy_soup(networks(2), len, scores=[1.0])

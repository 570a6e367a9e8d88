"""The knapsack equals the best of all choices; what a wrong one would do is noticed."""

import itertools

import pytest
import torch

from lightning_vision.callbacks.pruning.knapsack import knapsack


def instances(count=200):
    """Values, costs and a budget of up to eleven items; every second time small integers, with ties and zeros."""
    random = torch.Generator().manual_seed(0)
    for number in range(count):
        size = int(torch.randint(1, 12, (1,), generator=random))
        if number % 2:
            values, costs = (torch.randint(0, 6, (size,), generator=random).double() for _ in range(2))
        else:
            values, costs = (torch.rand(size, generator=random, dtype=torch.float64) for _ in range(2))
        yield values, costs, float(costs.sum() * torch.rand(1, generator=random, dtype=torch.float64))


def best_value(values, costs, budget):
    """The largest value over all choices of items within the budget."""
    choices = torch.tensor(list(itertools.product([0.0, 1.0], repeat=len(values))), dtype=torch.float64)
    return float((choices @ values)[choices @ costs <= budget + 1e-12].max())


def test_row_167_dp_equals_brute_force_and_meets_the_budget():
    for values, costs, budget in instances():
        kept = knapsack(values, costs, budget)

        assert float(costs[kept].sum()) <= budget + 1e-12
        assert float(values[kept].sum()) == pytest.approx(best_value(values, costs, budget), abs=1e-12)


def test_a_greedy_choice_meets_the_budget_and_lacks_at_most_one_items_value():
    lacking = []
    for values, costs, budget in instances():
        kept = knapsack(values, costs, budget, "greedy")
        lacking.append(best_value(values, costs, budget) - float(values[kept].sum()))

        assert float(costs[kept].sum()) <= budget + 1e-12
        assert lacking[-1] <= float(values.max()) + 1e-12
    # It is no exact solver, which the comparison with all choices would have noticed.
    assert max(lacking) > 0.1


def test_the_textbooks_example_by_hand():
    """Ratios 6, 5 and 4: greedy keeps the first two for 16; the last two fit exactly and are worth 22."""
    assert knapsack([6, 10, 12], [1, 2, 3], 5, "greedy").tolist() == [True, True, False]
    assert knapsack([6, 10, 12], [1, 2, 3], 5).tolist() == [False, True, True]


def test_thousands_of_items_are_solved_at_least_as_well_as_greedily():
    random = torch.Generator().manual_seed(1)
    values = torch.rand(5000, generator=random, dtype=torch.float64) ** 4
    costs = torch.randint(1, 40, (5000,), generator=random).double() * 1000
    budget = float(costs.sum()) / 2
    exact, greedy = (knapsack(values, costs, budget, solver) for solver in ("dp", "greedy"))
    order = torch.argsort(values / costs, descending=True, stable=True)
    filled = costs[order].cumsum(0)
    whole = int((filled <= budget).sum())
    # Dantzig: the item that does not fit is broken.
    bound = values[order][:whole].sum() + values[order][whole] * (budget - filled[whole - 1]) / costs[order][whole]

    assert float(costs[exact].sum()) <= budget
    assert float(values[greedy].sum()) <= float(values[exact].sum()) <= float(bound) + 1e-9


def test_what_costs_nothing_is_kept_and_nothing_fits_into_no_budget():
    assert knapsack([1.0, 0.0, 5.0], [1.0, 0.0, 0.0], 0.0).tolist() == [False, True, True]
    assert knapsack([], [], 1.0).tolist() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ([1.0], [1.0, 2.0], 1.0),
            r"^knapsack: values of shape \(1,\), costs of \(2,\); give each item one of both\.$",
        ),
        (([1.0], [-1.0], 1.0), r"^knapsack: a value, a cost or the budget is negative or not finite; give numbers"),
        (([float("nan")], [1.0], 1.0), r"is negative or not finite"),
        (([1.0], [1.0], -1.0), r"is negative or not finite"),
        (([1.0], [1.0], 1.0, "exact"), r"^knapsack: solver is 'exact'; give 'dp' or 'greedy'\.$"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        knapsack(*arguments)

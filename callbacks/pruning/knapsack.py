"""The 0/1 knapsack: which items to keep so that their value is largest and their cost within a budget.

With values v, costs c and a budget B: maximise the sum of v_i over the items kept, subject to the sum of c_i being at
most B. Dantzig's bound, in which the last item may be broken, is reached by filling up in the order of v_i / c_i.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["knapsack"]

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


def knapsack(
    values: Tensor | Sequence[float],
    costs: Tensor | Sequence[float],
    budget: float,
    solver: Literal["dp", "greedy"] = "dp",
) -> Tensor:
    """Keep the items of largest total value whose total cost is within a budget.

    `dp` is exact, for costs of any kind: items that Dantzig's bound decides are decided, and over the few that are
    left a dynamic program keeps the states that no other one beats in cost and value, as long as their bound is above
    the best solution. `greedy` takes items in the order of value per cost, passing over what no longer fits; it lacks
    at most the value of one item.

    Args:
        values: Of each item `(N,)`, at least 0, finite.
        costs: Of each item `(N,)`, at least 0, finite; what costs nothing is kept.
        budget: The largest total cost, at least 0.
        solver: `dp` or `greedy`.

    Returns:
        Which items are kept, boolean `(N,)`.

    Raises:
        ValueError: values and costs are not of one length, or one is negative or not finite; the solver is unknown.

    Example:
        >>> from lightning_vision.callbacks.pruning.knapsack import knapsack
        >>> knapsack([6.0, 10.0, 12.0], [1.0, 2.0, 3.0], budget=5.0).tolist()
        [False, True, True]

    Reference: Aflalo et al. 2020, arXiv:2002.08258

    See also:
        `StructuredPruning`, whose items are channels.
    """
    value, cost = (torch.as_tensor(it, dtype=torch.float64).cpu().numpy() for it in (values, costs))
    if value.ndim != 1 or value.shape != cost.shape:
        raise ValueError(f"knapsack: values of shape {value.shape}, costs of {cost.shape}; give each item one of both.")
    if not (np.isfinite([*value, *cost, budget]).all() and min([*value, *cost, budget], default=0) >= 0):
        raise ValueError("knapsack: a value, a cost or the budget is negative or not finite; give numbers from 0 on.")
    if solver not in ("dp", "greedy"):
        raise ValueError(f"knapsack: solver is {solver!r}; give 'dp' or 'greedy'.")
    kept = cost == 0
    # By value per cost; equal ones in the order of the list.
    order = np.flatnonzero(~kept)
    order = order[np.argsort(-value[order] / cost[order], kind="stable")]
    taken = _greedy(cost[order], budget)
    if solver == "dp":
        taken = _exact(value[order], cost[order], budget, taken)
    kept[order[taken]] = True
    return torch.from_numpy(kept)


def _greedy(cost: Floats, budget: float) -> Flags:
    taken = np.cumsum(cost) <= budget
    left = budget - cost[taken].sum()
    for item in range(int(taken.sum()), len(cost)):
        if cost[item] <= left:
            taken[item] = True
            left -= cost[item]
    return taken


class _Bound:
    """Dantzig's bound of the items from `first` on, which are in the order of value per cost."""

    def __init__(self, value: Floats, cost: Floats, first: int = 0) -> None:
        self.value, self.cost = value[first:], cost[first:]
        self.costs = np.concatenate([[0.0], np.cumsum(self.cost)])
        self.values = np.concatenate([[0.0], np.cumsum(self.value)])

    def whole(self, budget: Floats) -> Floats:
        """Value of the items that are filled in before the first that does not fit."""
        filled: Floats = self.values[np.searchsorted(self.costs, budget, side="right") - 1]
        return filled

    def __call__(self, budget: Floats) -> Floats:
        if not len(self.cost):
            return np.zeros_like(budget)
        filled = np.searchsorted(self.costs, budget, side="right") - 1
        broken = np.minimum(filled, len(self.cost) - 1)
        ratio = np.where(filled < len(self.cost), self.value[broken] / self.cost[broken], 0)
        bound: Floats = self.values[filled] + (budget - self.costs[filled]) * ratio
        return bound


def _exact(value: Floats, cost: Floats, budget: float, greedy: Flags) -> Flags:
    """An optimal choice of items in the order of value per cost, given a feasible one."""
    bound, best = _Bound(value, cost), float(value[greedy].sum())
    # What the best solution without an item of the fill, or with one beyond it, can be worth at most.
    inside = np.cumsum(cost) <= budget
    otherwise = np.where(inside, bound(budget + cost) - value, -np.inf)
    fits = ~inside & (cost <= budget)
    otherwise[fits] = bound(budget - cost[fits]) + value[fits]
    # Sums in another order differ in the last digits.
    best_enough = best * (1 + 1e-12)
    core = np.flatnonzero(otherwise > best_enough)
    fixed = inside.copy()
    fixed[core] = False
    chosen = _states(value[core], cost[core], budget - cost[fixed].sum(), best_enough - value[fixed].sum())
    if chosen is None:
        return greedy
    fixed[core[chosen]] = True
    return fixed


def _states(value: Floats, cost: Floats, budget: float, best: float) -> list[int] | None:
    """The items of a choice that is worth more than `best`, the most of all, or None if none is."""
    spent, worth = np.zeros(1), np.zeros(1)
    steps: list[tuple[NDArray[np.int64], Flags]] = []  # for each item: the state before, whether it is taken
    found: tuple[float, int, int] | None = None  # its value, after how many items, which state
    for item in range(len(value)):
        parent = np.concatenate([np.arange(len(spent))] * 2)
        took = np.repeat([False, True], len(spent))
        spent, worth = np.concatenate([spent, spent + cost[item]]), np.concatenate([worth, worth + value[item]])
        rest = _Bound(value, cost, item + 1)
        alive = spent <= budget
        alive[alive] = worth[alive] + rest(budget - spent[alive]) > best
        order = np.flatnonzero(alive)
        order = order[np.lexsort((-worth[order], spent[order]))]
        # Of states that cost more only those that are worth more than all before.
        before = np.concatenate([[-1.0], np.maximum.accumulate(worth[order])[:-1]])
        order = order[worth[order] > before]
        spent, worth = spent[order], worth[order]
        steps.append((parent[order], took[order]))
        if not len(order):
            break
        top = int(worth.argmax())
        if worth[top] > best:
            best, found = float(worth[top]), (float(worth[top]), item, top)
    if found is None:
        return None
    _, item, state = found
    chosen = []
    while item >= 0:
        parent, took = steps[item]
        if took[state]:
            chosen.append(item)
        item, state = item - 1, int(parent[state])
    return chosen

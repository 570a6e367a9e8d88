"""Which channels stay: a knapsack of marginal costs, filled anew until the widths are those at which they hold."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ._channels import ChannelGroup
from ._costs import Costs, Flags, Floats
from .knapsack import knapsack

__all__ = ["channel_importance", "channels_to_cut"]

ROUNDS, HALVINGS = 6, 20
SHARES = (1.0, 0.9999, 0.999, 0.99)


def channel_importance(group: ChannelGroup, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> Tensor:
    """First-order Taylor importance of each channel of a group, `(size,)`: |sum of g w| over the weights that read it.

    The sum over the columns that read channel c is that of a dL/da over the channel's activations a: to first order how
    the loss changes without the channel, in all layers that read it together. The rows that make a channel would say
    nothing: batch norm undoes their scale, so their sum is zero.

    Args:
        group: The channels.
        weights: By parameter name, at least those of the readers.
        gradients: Likewise, of the loss; a reader without one has no say.
    """
    found = torch.zeros(group.size, dtype=torch.float64)
    for member in group.members:
        if member.role != "reads":
            continue
        for name, dim in member.tensors.items():
            if name not in gradients:
                continue
            product = weights[name].detach().double() * gradients[name].detach().double()
            along = product.movedim(dim, 0).flatten(1).sum(dim=1).cpu()
            found.index_add_(0, member.channel, along[member.position])
    return found.abs()


def channels_to_cut(
    groups: Sequence[ChannelGroup],
    importance: Sequence[Tensor],
    costs: Costs,
    budget: float,
    floor: float = 0.0,
    solver: Literal["dp", "greedy"] = "dp",
) -> dict[ChannelGroup, list[int]]:
    """The channels that go so that the rest costs at most `budget` and is as important as possible.

    Costs are products of widths. They are replaced by their slopes at the present widths, the knapsack's capacity is
    the largest at which what it keeps really costs no more than the budget, and the slopes are taken anew at the widths
    that were found. The best of all rounds is returned, filled exactly if `solver` says so.

    Args:
        groups: The groups.
        importance: Of each group, of its channels `(size,)`, at least 0.
        costs: Of the network.
        budget: Fraction of the whole network's cost, in (0, 1].
        floor: Fraction of each group's channels, in [0, 1], that stay in any case: the most important, one at least.
        solver: Of the knapsack.

    Raises:
        ValueError: the budget cannot be met with these floors and with what cannot be cut.
    """
    orders = [torch.argsort(it, descending=True, stable=True).tolist() for it in importance]
    least = np.array([max(1.0, np.ceil(floor * size - 1e-9)) for size in costs.sizes])
    whole = costs.total(costs.sizes)
    limit = budget * whole
    if (smallest := costs.total(least)) > limit:
        raise ValueError(
            f"a budget of {budget:g} cannot be met: with floor={floor:g} and all that cannot be cut, "
            f"{smallest / whole:.3f} of the whole is left; give a larger budget or a lower floor."
        )
    free = [(number, channel) for number, order in enumerate(orders) for channel in order[int(least[number]) :]]
    of_group = np.array([number for number, _ in free], dtype=np.int64)
    values = np.array([float(importance[number][channel]) for number, channel in free])
    widths, best, best_value = costs.sizes, np.zeros(len(free), dtype=bool), -1.0

    def tried(slopes: Floats, capacity: float, how: Literal["dp", "greedy"]) -> tuple[Flags, Floats, bool]:
        kept: Flags = knapsack(torch.from_numpy(values), torch.from_numpy(slopes), capacity, how).numpy()
        now: Floats = least + np.bincount(of_group[kept], minlength=len(least)).astype(np.float64)
        return kept, now, costs.total(now) <= limit

    for _ in range(ROUNDS):
        slopes = costs.marginal(widths)[of_group]
        low, high = 0.0, float(slopes.sum())
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if tried(slopes, middle, "greedy")[2] else (low, middle)
        kept, now, _ = tried(slopes, low, "greedy")
        if (value := float(values[kept].sum())) > best_value:
            best, best_value, at = kept, value, (slopes, low)
        if np.array_equal(now, widths):
            break
        widths = now
    if solver == "dp":
        slopes, low = at
        # An exact filling has other widths than a greedy one, and may need a little less room.
        for share in SHARES:
            kept, _, fits = tried(slopes, low * share, "dp")
            if fits and values[kept].sum() > best_value:
                best = kept
                break
    stays = {free[item] for item in np.flatnonzero(best)}
    return {
        group: sorted(channel for channel in order[int(least[number]) :] if (number, channel) not in stays)
        for number, (group, order) in enumerate(zip(groups, orders, strict=True))
    }

"""What a last layer that is connected in groups saves of a step, beside the dense one that computes the same."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Linear

from lightning_vision.callbacks import GroupedLinear

from .side_by_side import Row, take_turns, unprepared

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Forwards and backwards of 64 rows through verticals of 100 classes, 128 features each.

    Args:
        quick: One repetition, of few groups.
    """
    return [_row(groups, *(1, 0) if quick else (21, 1)) for groups in ((2, 3, 4) if quick else (5, 20, 50))]


def _row(groups: int, repetitions: int, warmup: int) -> Row:
    torch.manual_seed(0)
    grouped = GroupedLinear([list(range(100 * group, 100 * (group + 1))) for group in range(groups)], width=128)
    dense = Linear(128 * groups, 100 * groups)
    mask = (grouped.dense_weight() != 0).float()
    dense.load_state_dict({"weight": grouped.dense_weight(), "bias": grouped.bias})
    features = torch.randn(64, 128 * groups)

    def stepped(answer: Callable[[], Tensor], layer: nn.Module) -> Tensor:
        layer.zero_grad()
        logits = answer()
        logits.square().mean().backward()
        return logits

    sides = {
        "dense": lambda: stepped(lambda: F.linear(features, dense.weight * mask, dense.bias), dense),
        "grouped": lambda: stepped(lambda: grouped(features), grouped),
    }
    torch.testing.assert_close(sides["grouped"](), sides["dense"](), rtol=1e-4, atol=1e-5)
    times = take_turns({side: unprepared(run) for side, run in sides.items()}, repetitions, warmup)
    what, against = f"`GroupedLinear`, {groups} groups of 100 classes", "dense `Linear` under a block mask"
    return Row.slowdown(what, against, times["grouped"]["cpu"], times["dense"]["cpu"], "cpu", "<= 1.00")

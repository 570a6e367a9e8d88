"""What an average that no order changes costs: five ResNets beside torch's and beside a plain sum."""

from functools import reduce

import timm
import torch
from torch.optim.swa_utils import AveragedModel, get_swa_multi_avg_fn

from lightning_vision.merging import uniform_soup

from .side_by_side import Row, take_turns, unprepared

__all__ = ["rows"]

INGREDIENTS = 5


def rows(quick: bool) -> list[Row]:
    """Average networks with batch norm.

    Args:
        quick: One repetition of a smaller network.
    """
    name = "resnet10t" if quick else "resnet18"
    networks = [timm.create_model(name) for _ in range(INGREDIENTS)]
    states = [network.state_dict() for network in networks]

    def torchs() -> None:
        average = AveragedModel(networks[0], multi_avg_fn=get_swa_multi_avg_fn())
        for network in networks:
            average.update_parameters(network)

    def plain_sum() -> None:
        for key in states[0]:
            reduce(torch.add, (state[key] for state in states)) / INGREDIENTS

    sides = {"ours": lambda: uniform_soup(states), "torch": torchs, "sum": plain_sum}
    repetitions, warmup = (1, 0) if quick else (15, 1)
    times = take_turns({side: unprepared(run) for side, run in sides.items()}, repetitions, warmup)
    ours, torch_time, plain = (times[side]["cpu"] for side in sides)
    what = f"`uniform_soup` of {INGREDIENTS} {name}"
    return [
        Row.slowdown(what, "torch's `AveragedModel`, foreach", ours, torch_time, "cpu"),
        Row.slowdown(what, "a sum in float32", ours, plain, "cpu"),
        Row.slowdown("(torch's `AveragedModel`)", "a sum in float32", torch_time, plain, "cpu"),
    ]

"""States of optimizers in the form of a run without added parameters, and back.

In an optimizer's state dict parameters are numbered through its groups, so one that is added anywhere shifts the
others; a file with such numbers could not be resumed without the callback that added it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["added_states", "with_added", "without_added"]

States = Mapping[str, Mapping[str, Any]]


def added_states(optimizer: Optimizer, added: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """What the optimizer keeps of added parameters, by their names; tensors are copied to the CPU."""
    # `get`, for asking a defaultdict would make a state.
    states = {name: optimizer.state.get(it) for name, it in added.items()}
    return {name: {key: _copy(it) for key, it in state.items()} for name, state in states.items() if state}


def _copy(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value


def without_added(state: Mapping[str, Any], optimizer: Optimizer, added: Mapping[str, Tensor]) -> dict[str, Any]:
    """The optimizer's `state_dict` as if the added parameters were not in its groups."""
    own = {id(it) for it in added.values()}
    groups, numbers = [], dict[int, int]()
    for saved, group in zip(state["param_groups"], optimizer.param_groups, strict=True):
        kept = [place for place, it in enumerate(group["params"]) if id(it) not in own]
        for place in kept:
            numbers[saved["params"][place]] = len(numbers)
        groups.append({**saved, **_chosen(saved, kept), "params": [numbers[saved["params"][place]] for place in kept]})
    states = {numbers[number]: it for number, it in state["state"].items() if number in numbers}
    return {**state, "state": states, "param_groups": groups}


def _chosen(saved: Mapping[str, Any], kept: list[int]) -> dict[str, Any]:
    # The one entry of a group besides `params` that has an element for each parameter.
    names = saved.get("param_names")
    return {} if names is None else {"param_names": [names[place] for place in kept]}


def with_added(
    state: Mapping[str, Any], optimizer: Optimizer, added: Mapping[str, Tensor], kept: States
) -> dict[str, Any]:
    """The `state_dict` that this optimizer loads, from one without the added parameters and what it kept of those."""
    own = {id(it): name for name, it in added.items()}
    groups, states, number = [], dict[int, Any](), 0
    for saved, group in zip(state["param_groups"], optimizer.param_groups, strict=True):
        plain, numbers = iter(saved["params"]), []
        for parameter in group["params"]:
            name = own.get(id(parameter))
            found = kept.get(name) if name is not None else state["state"].get(next(plain, None))
            if found is not None:
                states[number] = dict(found)
            numbers.append(number)
            number += 1
        # Fewer or more plain parameters than the group has now: the optimizer itself says so.
        numbers += [number for _ in plain]
        names = {"param_names": group["param_names"]} if "param_names" in group else {}
        groups.append({**saved, **names, "params": numbers})
    return {**state, "state": states, "param_groups": groups}


def held(optimizers: list[Optimizer], parameter: torch.nn.Parameter) -> bool:
    """Whether one of the optimizers has the parameter."""
    return any(
        it is parameter for optimizer in optimizers for group in optimizer.param_groups for it in group["params"]
    )

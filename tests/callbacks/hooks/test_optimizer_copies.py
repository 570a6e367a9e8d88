"""Copies of optimizers step as they do, on the same parameters, and nobody hears of it."""

from typing import Any

import pytest
import torch
from timm.optim.lookahead import Lookahead
from torch import nn

from lightning_vision.callbacks.hooks._optimizer_copies import asks_for_closure, twin_of


class Pair(torch.optim.Optimizer):
    """Keeps others in a list, and a generator."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})
        self.others = [torch.optim.SGD(group["params"], lr=0.1, momentum=0.9) for group in self.param_groups]
        self.noise = torch.Generator().manual_seed(0)

    def step(self, closure: Any = None) -> None:
        for other in self.others:
            other.step()
        for weight in self.param_groups[0]["params"]:
            weight.data += torch.randn(weight.shape, generator=self.noise)


MAKERS = {
    "SGD": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9),
    "Adam": lambda weights: torch.optim.Adam(weights, lr=0.1),
    "Lookahead": lambda weights: Lookahead(torch.optim.Adam(weights, lr=0.1), k=2),
    "Pair": Pair,
}


def steps(optimizer: Any, weight: Any, count: int) -> list[torch.Tensor]:
    found = []
    for _ in range(count):
        optimizer.zero_grad()
        weight.square().sum().backward()
        optimizer.step()
        found.append(weight.detach().clone())
    return found


@pytest.mark.parametrize("name", MAKERS)
def test_a_twin_steps_as_the_optimizer_would_have(name: str) -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer, heard = MAKERS[name]([weight]), list[int]()  # type: ignore[no-untyped-call]
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    optimizer.register_step_post_hook(lambda *_: heard.append(1))
    steps(optimizer, weight, 3)
    own, count = weight.detach().clone(), len(heard)
    tried = steps(twin_of("it", optimizer, [weight]), weight, 3)
    assert len(heard) == count
    weight.data.copy_(own)

    assert all(map(torch.equal, steps(optimizer, weight, 3), tried))


def test_what_cannot_be_copied_is_refused() -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer: Any = torch.optim.SGD([weight], lr=0.1)
    optimizer.reads = (it for it in ())
    with pytest.raises(
        ValueError, match=r"^it: SGD cannot be copied for steps that leave no trace, for its reads cann"
    ):
        twin_of("it", optimizer, [weight])


def test_who_wants_a_closure_is_known_also_inside_another() -> None:
    def lbfgs() -> torch.optim.LBFGS:
        return torch.optim.LBFGS([nn.Parameter(torch.ones(1))])

    assert asks_for_closure(lbfgs())
    assert asks_for_closure(Lookahead(lbfgs()))
    assert not any(asks_for_closure(make([nn.Parameter(torch.ones(1))])) for make in MAKERS.values())  # type: ignore[no-untyped-call]

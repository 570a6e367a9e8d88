"""Lending tensors to a network, also to one that uses a layer twice or shares a weight."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from lightning_vision.callbacks.hooks._lent import call_with


class Twice(nn.Module):
    """One layer under two names, a third that shares its weight, and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.again = self.first
        self.tied = nn.Linear(3, 3)
        self.tied.weight = self.first.weight
        self.norm = nn.BatchNorm1d(3)

    def forward(self, values, factor=1.0):
        return self.norm(self.tied(self.again(self.first(values)))) * factor


def doubled(module):
    return {name: 2 * it.detach() for name, it in (*module.named_parameters(), *module.named_buffers())}


def objects(module):
    tensors = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return {name: id(it) for name, it in tensors}


def test_what_is_lent_reaches_every_layer_that_shares_it():
    module, values = Twice().eval(), torch.randn(4, 3)
    expected = Twice().eval()
    expected.load_state_dict({name: 2 * value for name, value in module.state_dict().items()})

    answer = call_with(module, doubled(module), (values,), {"factor": 3.0})

    assert torch.equal(expected(values, 3.0), answer)


def test_a_layer_with_two_names_gets_its_own_parameters_back():
    module = Twice().eval()
    before, values = objects(module), {name: it.clone() for name, it in module.state_dict().items()}

    call_with(module, doubled(module), (torch.randn(4, 3),))

    assert before == objects(module)
    assert all(torch.equal(values[name], it) for name, it in module.state_dict().items())


def test_an_answer_that_fails_leaves_the_layers_as_they_were():
    module = Twice().eval()
    before = objects(module)

    with pytest.raises(RuntimeError, match="shapes"):
        call_with(module, doubled(module), (torch.randn(4, 5),))

    assert before == objects(module)


def test_torchs_own_call_leaves_such_a_layer_with_what_was_lent():
    module = Twice().eval()
    before = objects(module)

    functional_call(module, doubled(module), (torch.randn(4, 3),))

    assert before != objects(module), "torch is mended: its own call does"

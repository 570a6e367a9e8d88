"""Added parameters are seen by optimizers and by nobody who reads or writes files."""

import torch
from torch import nn

from lightning_vision.callbacks.hooks._added import Added
from support.modules import small_network


def with_added():
    network = small_network()
    added = Added({"5": nn.Linear(2, 2), "a.b": nn.BatchNorm1d(3)})
    added.hang_on(network, "Toy[x]")
    return network, added


def test_parameters_have_them_under_a_reserved_name_and_state_dicts_have_not():
    network, _ = with_added()
    names = [name for name, _ in network.named_parameters()]

    assert names[-4:] == [f"added_Toy[x].{it}" for it in ("5.weight", "5.bias", "a-b.weight", "a-b.bias")]
    assert list(network.state_dict()) == list(small_network().state_dict())


def test_a_plain_state_is_loaded_strictly_and_what_else_is_missing_is_still_missing():
    network, _ = with_added()
    state = small_network().state_dict()
    whole = network.load_state_dict(state)
    del state["0.bias"]
    found = network.load_state_dict(state | {"odd": torch.zeros(1)}, strict=False)

    assert whole.missing_keys == whole.unexpected_keys == []
    assert (found.missing_keys, found.unexpected_keys) == (["0.bias"], ["odd"])


def test_values_are_copies_of_parameters_and_buffers():
    network, added = with_added()
    values = added.values()
    nn.init.zeros_(network.get_parameter("added_Toy[x].5.weight"))

    assert {"5.weight", "5.bias", "a-b.weight", "a-b.running_mean", "a-b.num_batches_tracked"} < values.keys()
    assert values["5.weight"].abs().min() > 0


def test_taken_off_nothing_is_left_and_twice_is_once():
    network, added = with_added()
    added.take_from(network, "Toy[x]")
    added.take_from(network, "Toy[x]")

    assert [name for name, _ in network.named_modules()] == [name for name, _ in small_network().named_modules()]

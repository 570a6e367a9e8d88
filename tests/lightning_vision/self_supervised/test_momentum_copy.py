import pytest
import torch
from torch import nn

from lightning_vision.self_supervised.momentum_copy import MomentumCopy


@pytest.fixture
def network():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU())
    network(torch.randn(8, 3))  # statistics that are not those of the start
    return network


def moved(network):
    """What an optimizer step and a batch leave changed."""
    with torch.no_grad():
        for param in network.parameters():
            param.add_(torch.randn_like(param))
    network(torch.randn(8, 3))


def test_it_moves_by_one_minus_tau_statistics_too(network):
    target = MomentumCopy(network)
    before = {name: value.clone() for name, value in target.copy.state_dict().items()}
    moved(network)

    target.follow(network, 0.9)

    for name, value in target.copy.state_dict().items():
        new = network.state_dict()[name]
        wanted = 0.9 * before[name] + 0.1 * new if new.is_floating_point() else new
        torch.testing.assert_close(value, wanted)


def test_it_shares_no_storage_and_gets_no_gradient(network):
    target = MomentumCopy(network)
    own = {value.untyped_storage().data_ptr() for value in target.state_dict().values()}

    assert own.isdisjoint(value.untyped_storage().data_ptr() for value in network.state_dict().values())
    assert not target(torch.randn(8, 3)).requires_grad
    assert not any(param.requires_grad for param in target.parameters())


def test_a_shared_object_is_noticed(network):
    """The mutant of the two tests above: a target that is the network itself does not lag behind."""
    target = MomentumCopy(network)
    target.copy = network
    before = network[0].weight.detach().clone()
    moved(network)
    target.follow(network, 0.9)

    assert not torch.allclose(target.copy[0].weight, 0.9 * before + 0.1 * network[0].weight)


def test_in_training_it_normalises_by_the_batch_and_keeps_its_statistics(network):
    target = MomentumCopy(network).train()
    mean = target.copy[1].running_mean.clone()
    batch = torch.randn(8, 3) + 5

    # The network sees another batch in its statistics, not in what it puts out.
    torch.testing.assert_close(target(batch), network(batch))
    assert torch.equal(target.copy[1].running_mean, mean)


@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_at_the_ends_it_is_the_network_or_stays(network, tau):
    target = MomentumCopy(network)
    before = target.copy[0].weight.clone()
    moved(network)
    target.follow(network, tau)

    assert torch.equal(target.copy[0].weight, before if tau else network[0].weight)

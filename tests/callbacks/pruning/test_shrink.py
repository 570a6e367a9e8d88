"""Groups of channels and cutting them: networks answer after the cut as they do with those channels at zero."""

import sys

import pytest
import timm
import torch
from torch import nn

import lightning_vision.backbones  # noqa: F401  (registers the networks)
from lightning_vision.callbacks.pruning._channels import ChannelGroup, Cut, zeroed
from lightning_vision.callbacks.pruning._groups import channel_groups
from lightning_vision.callbacks.pruning.shrink import shrink
from support.compare import distance

NETWORKS = {
    # Shortcuts that pad channels have a fixed width: only what lies inside of units can go.
    "resnet8_cifar": ((3, 16, 16), 3),
    "resnet20_cifar": ((3, 16, 16), 9),
    "resnet18": ((3, 32, 32), 12),
    "mobilenetv3_small_050": ((3, 32, 32), 26),
    "efficientnet_b0": ((3, 32, 32), 40),
    # Heads and the stream that layer norms average over stay; the hidden layers of its six blocks can go.
    "test_vit": ((3, 160, 160), 6),
}


def network(name, trained=True):
    """A network in evaluation mode whose norms have statistics and whose branches are not scaled by zero."""
    torch.manual_seed(0)
    made = timm.create_model(name, num_classes=10)
    if trained:
        with torch.no_grad():
            for part in made.modules():
                if isinstance(part, nn.BatchNorm2d):
                    part.weight.uniform_(0.5, 1.5)
                    part.bias.normal_(0, 0.1)
                    part.running_mean.normal_(0, 0.1)
    return made.eval()


def mask(model, gone):
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, kept in zeroed(parameters, gone).items():
            parameters[name].mul_(kept)


@pytest.mark.parametrize("name", NETWORKS)
def test_row_167_removing_zero_weight_channels_leaves_the_output_unchanged(name):
    shape, count = NETWORKS[name]
    model, images = network(name), torch.randn(3, *shape)
    groups = channel_groups(model, images)
    mask(model, {group: range(0, group.size, 2) for group in groups})
    parameters = sum(it.numel() for it in model.parameters())
    kinds = [type(part) for part in model.modules()]
    with torch.no_grad():
        expected = model(images)
        found = shrink(model, images)(images)

    assert len(groups) == count
    assert float((found - expected).abs().max()) <= 1e-6 * max(1.0, float(expected.abs().max()))
    assert sum(it.numel() for it in model.parameters()) < 0.8 * parameters
    assert [type(part) for part in model.modules()] == kinds
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_a_cut_that_takes_other_channels_than_are_zero_is_noticed():
    model, images = network("resnet8_cifar"), torch.randn(3, 3, 16, 16)
    groups = channel_groups(model, images)
    mask(model, {group: range(0, group.size, 2) for group in groups})
    expected = model(images)
    Cut(model, {group: range(1, group.size, 2) for group in groups})

    assert float((model(images) - expected).abs().max()) > 1e-3


def test_finding_groups_leaves_the_network_its_flags_and_the_global_stream_alone():
    model = network("mobilenetv3_small_050").train()
    model.conv_stem.weight.requires_grad_(False)
    model.blocks[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    objects = [id(it) for it in [*model.parameters(), *model.buffers()]]
    flags = [part.training for part in model.modules()], [it.requires_grad for it in model.parameters()]
    stream = torch.get_rng_state()
    channel_groups(model, torch.zeros(2, 3, 32, 32))

    assert distance(before, model.state_dict()) == 0.0
    assert [id(it) for it in [*model.parameters(), *model.buffers()]] == objects
    assert ([part.training for part in model.modules()], [it.requires_grad for it in model.parameters()]) == flags
    assert torch.equal(torch.get_rng_state(), stream)


def test_a_cut_that_is_undone_gives_the_same_objects_back_with_what_was_trained_meanwhile():
    model, images = network("resnet18"), torch.randn(2, 3, 32, 32)
    groups = channel_groups(model, images)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    objects = {name: id(it) for name, it in model.named_parameters()}
    cut = Cut(model, {group: range(group.size // 2) for group in groups})
    narrow = sum(it.numel() for it in model.parameters())
    with torch.no_grad():
        model.layer1[0].conv1.weight.add_(1)
    cut.undo()
    difference = model.layer1[0].conv1.weight - before["layer1.0.conv1.weight"]

    assert narrow < 0.3 * sum(it.numel() for it in model.parameters())
    assert {name: id(it) for name, it in model.named_parameters()} == objects
    assert difference[:32].abs().max() == difference[:, :32].abs().max() == 0
    assert torch.allclose(difference[32:, 32:], torch.ones(32, 32, 3, 3))
    model.layer1[0].conv1.weight.data.copy_(before["layer1.0.conv1.weight"])
    assert distance(before, model.state_dict()) == 0.0


def test_channels_that_nobody_reads_go_whatever_makes_them():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sigmoid(), nn.Conv2d(4, 2, 3)).requires_grad_(False)
    model[2].weight[:, 1:3] = 0
    images = torch.randn(2, 1, 8, 8)
    expected = model(images)

    assert torch.allclose(shrink(model, images)(images), expected, atol=1e-6)
    assert model[0].out_channels == model[2].in_channels == 2
    assert not any(it.requires_grad for it in model.parameters())


def test_a_channel_that_is_made_of_zeros_stays_where_zero_is_read_as_something():
    """A sigmoid makes one half of zero; a ReLU makes nothing of it."""
    images, widths = torch.randn(2, 1, 8, 8), {}
    for activation in (nn.Sigmoid(), nn.ReLU()):
        model = nn.Sequential(nn.Conv2d(1, 4, 3), activation, nn.Conv2d(4, 2, 3)).requires_grad_(False)
        model[0].weight[0] = 0
        model[0].bias[0] = 0
        expected = model(images)
        widths[type(activation).__name__] = shrink(model, images)[0].out_channels

        assert torch.allclose(model(images), expected, atol=1e-6)
    assert widths == {"Sigmoid": 4, "ReLU": 3}


def test_a_group_that_is_zero_as_a_whole_keeps_one_channel():
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).requires_grad_(False)
    model[2].weight.zero_()
    images = torch.randn(2, 3, 4, 8)

    assert torch.equal(shrink(model, images)(images), model[2].bias.expand(2, 3, 4, 2))
    assert model[0].out_features == 1


class Fixed(nn.Module):
    """Its channels are reshaped to a number that is written down."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 8, 3), nn.Linear(4, 2)

    def forward(self, image):
        return self.last(self.first(image).mean(dim=(2, 3)).reshape(-1, 2, 4)).sum(dim=1)


class Averaged(nn.Module):
    """A group norm averages over channels, and a weight is used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3, padding=1)
        self.third, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.third.weight = self.second.weight

    def forward(self, image):
        return self.last(self.third(self.second(self.norm(self.first(image)))))


@pytest.mark.parametrize("kind", [Fixed, Averaged])
def test_what_a_cut_would_change_is_left_alone(kind):
    assert channel_groups(kind(), torch.zeros(2, 1, 8, 8)) == []


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, image):
        return self.layer(image.flatten(1)).argmax(dim=1)


def test_what_cannot_be_traced_or_found_is_refused_in_a_sentence(monkeypatch):
    images = torch.zeros(2, 1, 8, 8)
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 3))

    with pytest.raises(
        ValueError, match=r"^the channels of Untraceable cannot be traced, by calling it on images .*\.$"
    ):
        channel_groups(Untraceable(), images)
    with pytest.raises(
        ValueError, match=r"^the channels of Sequential cannot be traced.* expected input\[2, 3, 8, 8\]"
    ):
        channel_groups(plain, torch.zeros(2, 3, 8, 8))
    with pytest.raises(
        ValueError, match=r"^ignore='layer4\.\*' matches no layer of Sequential; its layers begin 0, 1\.$"
    ):
        channel_groups(plain, images, ["layer4.*"])
    with pytest.raises(ValueError, match=r"^shrink: example_images are of shape \(8, 8\); give \(B, C, H, W\)\.$"):
        shrink(plain, torch.zeros(8, 8))
    with pytest.raises(ValueError, match=r"^Sequential has compiled parts, whose channels cannot be traced; cut it"):
        channel_groups(nn.Sequential(torch.compile(plain, backend="eager")), images)
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(
        ModuleNotFoundError, match=r'^cutting channels of Sequential needs torch-pruning; pip install "l'
    ):
        shrink(plain, images)


def test_ignored_layers_keep_their_channels():
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3), nn.Conv2d(6, 2, 3))
    groups = channel_groups(plain, torch.zeros(2, 1, 8, 8), ["0"])

    assert [(group.name, group.size) for group in groups] == [("1", 6)]


def test_a_group_says_where_each_channel_lies_in_each_layer():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2)).eval()
    (group,) = channel_groups(model, torch.zeros(2, 1, 4, 4))
    made, carried, read = group.members

    assert isinstance(group, ChannelGroup)
    assert (made.layer, made.role, made.tensors) == ("0", "makes", {"0.weight": 0, "0.bias": 0})
    assert (carried.layer, carried.role, carried.positions([2])) == ("1", "carries", [2])
    assert (read.layer, read.role, read.tensors) == ("3", "reads", {"3.weight": 1})
    assert read.positions([1]) == [4, 5, 6, 7]

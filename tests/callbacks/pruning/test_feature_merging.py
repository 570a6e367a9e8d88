"""Iterative feature merging: copies of channels are found and merged without a trace, other channels are left alone."""

import copy

import pytest
import timm
import torch
from torch import nn

import lightning_vision.backbones  # noqa: F401  (registers the networks)
from lightning_vision.callbacks.pruning._channels import Member
from lightning_vision.callbacks.pruning._groups import channel_groups
from lightning_vision.callbacks.pruning.feature_merging import feature_complexity, merge_features
from support.compare import distance, seeded

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def residual():
    """A residual network whose norms have scales and statistics."""
    made = timm.create_model("resnet18", num_classes=5, channels=(8, 8, 16, 16)).eval()
    return trained(made)


def plain():
    made = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.PReLU(6),
        nn.Conv2d(6, 4, 3, stride=3),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(64, 5),
    )
    return trained(made.eval())


def trained(model):
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            for it in (part.weight, part.bias, part.running_mean, part.running_var):
                nn.init.uniform_(it, 0.5, 1.5)
    return model


def split(model, groups, copies):
    """Each channel of these groups so often, what reads it divided among the copies; the outputs stay."""
    widened = {}
    for group in groups:
        for member in group.members:
            widen(model, member, group.size, copies, widened)


def widen(model: nn.Module, member: Member, size: int, copies: int, widened: dict) -> None:
    layer = model.get_submodule(member.layer)
    for full, dim in member.tensors.items():
        name = full.rpartition(".")[2]
        tensor = getattr(layer, name).detach()
        wide = torch.cat([tensor / copies if member.role == "reads" else tensor] * copies, dim=dim)
        setattr(layer, name, nn.Parameter(wide) if name in layer._parameters else wide)
    new = len(member.position) * copies
    if isinstance(layer, nn.Conv2d):
        if member.role == "carries":
            layer.groups = new
        if member.role != "makes":
            layer.in_channels = new
        if member.role != "reads":
            layer.out_channels = new
    elif isinstance(layer, nn.Linear):
        setattr(layer, "in_features" if member.role == "reads" else "out_features", new)
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = new
    else:
        layer.num_features = new


@pytest.mark.parametrize("copies", [2, 4])
@pytest.mark.parametrize("kind", [plain, residual])
def test_row_130_copies_of_channels_are_merged_back_to_the_original_size_with_identical_outputs(kind, copies):
    small = seeded(kind)
    wide = copy.deepcopy(small)
    split(wide, channel_groups(small, IMAGES), copies)
    expected = small(IMAGES)
    widened = wide(IMAGES)
    found = merge_features(wide, IMAGES, beta=0.0)

    assert torch.allclose(widened, expected, atol=1e-4)
    assert all(it.channels == copies * it.complexity for it in found.values())
    assert distance(small.state_dict(), wide.state_dict()) == 0.0
    assert torch.equal(wide(IMAGES), expected)


def test_three_copies_are_found_as_two_are():
    small = seeded(plain)
    wide = copy.deepcopy(small)
    split(wide, channel_groups(small, IMAGES), 3)
    merge_features(wide, IMAGES, beta=0.0)

    assert distance(small.state_dict(), wide.state_dict()) < 1e-6


def test_copies_that_are_read_differently_are_merged_where_outgoing_weights_are_not_looked_at():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).requires_grad_(False)
    model[0].weight[3], model[0].bias[3] = model[0].weight[1], model[0].bias[1]
    images = IMAGES[..., :3]
    expected = model(images)

    assert feature_complexity(model, images, 0.0)["0"].complexity == 4
    assert merge_features(model, images, 0.0, use_outgoing=False)["0"].clusters == ((0,), (1, 3), (2,))
    assert torch.allclose(model(images), expected, atol=1e-6)


@pytest.mark.parametrize("kind", [plain, residual])
def test_row_130_threshold_0_merges_nothing_of_generic_weights(kind):
    model = seeded(kind)
    before = {name: it.clone() for name, it in model.state_dict().items()}
    found = merge_features(model, IMAGES, beta=0.0)

    assert all(it.complexity == it.channels for it in found.values())
    assert distance(before, model.state_dict()) == 0.0


def test_row_130_widths_stay_consistent_across_the_readers_of_a_residual_network():
    model = seeded(residual)
    before = {name: tuple(it.shape) for name, it in model.named_parameters()}
    kinds = [type(part) for part in model.modules()]
    flags = [it.requires_grad for it in model.parameters()]
    counted = feature_complexity(model, IMAGES, beta=0.95, max_ratio=0.25)
    untouched = {name: tuple(it.shape) for name, it in model.named_parameters()}
    found = merge_features(model, IMAGES, beta=0.95, max_ratio=0.25)

    assert untouched == before
    assert counted == found
    assert any(it.complexity < it.channels for it in found.values())
    assert all(it.complexity >= 0.75 * it.channels for it in found.values())
    assert model(IMAGES).shape == (4, 5)
    tied = [*(block.conv2 for block in model.layer1), model.layer1[0].downsample[0]]
    assert (
        {it.out_channels for it in tied}
        == {model.layer2[0].conv1.in_channels}
        == {model.layer2[0].downsample[0].in_channels}
    )
    assert model.bn1.num_features == len(model.bn1.running_var) == found["conv1"].complexity
    assert [type(part) for part in model.modules()] == kinds
    assert [it.requires_grad for it in model.parameters()] == flags
    model.train()(IMAGES).sum().backward()


def test_row_130_permuting_channels_does_not_change_the_complexity():
    model = seeded(plain)
    found = feature_complexity(model, IMAGES, beta=0.6)
    shuffled = copy.deepcopy(model)
    with torch.no_grad():
        for group in channel_groups(model, IMAGES):
            order = torch.randperm(group.size, generator=torch.Generator().manual_seed(1))
            for member in group.members:
                for full, dim in member.tensors.items():
                    tensor = shuffled.get_submodule(member.layer)
                    tensor = getattr(tensor, full.rpartition(".")[2]).movedim(dim, 0)
                    each = member.position.view(group.size, -1)
                    tensor[each.flatten()] = tensor[each[order].flatten()].clone()
    again = feature_complexity(shuffled, IMAGES, beta=0.6)

    assert torch.allclose(shuffled(IMAGES), model(IMAGES), atol=1e-5)
    assert {name: it.complexity for name, it in again.items()} == {name: it.complexity for name, it in found.items()}
    assert sum(it.channels - it.complexity for it in found.values()) > 0


def by_hand(rows, beta):
    """One merge after the other, each distance computed anew from the rows that there are."""
    rows = [(row.clone(), 1) for row in rows]
    while len(rows) > 1:
        pairs = [(float((a[0] - b[0]).square().sum()), i, j) for i, a in enumerate(rows) for j, b in enumerate(rows)]
        nearest, first, second = min(it for it in pairs if it[1] < it[2])
        if nearest > beta * max(pairs)[0]:
            break
        (left, n), (right, m) = rows[first], rows.pop(second)
        rows[first] = (n * left + m * right) / (n + m), n + m
    return rows


@pytest.mark.parametrize("beta", [0.1, 0.3, 0.5, 1.0])
def test_merging_is_that_of_a_loop_that_computes_each_distance_anew(beta):
    """The rows: incoming weight, bias, and mean outgoing weight of each unit."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3)).double().requires_grad_(False)
    rows = torch.cat([model[0].weight, model[0].bias[:, None], model[2].weight.T], dim=1)
    expected = by_hand(rows, beta)
    merge_features(model, torch.randn(2, 1, 4, 5, dtype=torch.float64), beta)
    made = torch.cat([model[0].weight, model[0].bias[:, None]], dim=1)

    assert torch.allclose(made, torch.stack([row[:6] for row, _ in expected]), atol=1e-12)
    assert torch.allclose(model[2].weight.T, torch.stack([row[6:] * count for row, count in expected]), atol=1e-12)


def test_a_larger_threshold_leaves_fewer_features():
    model = seeded(plain)
    left = [sum(it.complexity for it in feature_complexity(model, IMAGES, beta).values()) for beta in (0, 0.5, 0.8, 1)]

    assert left == sorted(left, reverse=True)
    assert left[-1] == len(channel_groups(model, IMAGES)) < left[0]


def test_layers_that_are_ignored_and_weights_that_are_no_numbers_are_not_merged():
    model = seeded(plain)
    assert list(feature_complexity(model, IMAGES, 0.5, ignore=["0"])) == ["5"]
    with torch.no_grad():
        model[5].weight.fill_(float("nan"))
    assert all(it.complexity == it.channels for it in feature_complexity(model, IMAGES, 0.5).values())


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(768, 10)

    def forward(self, image):
        return self.layer(image.flatten(1)).argmax(dim=1)


def test_bad_input_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"^merge_features: beta is -0\.1; give a fraction from 0 to 1\.$"):
        merge_features(plain(), IMAGES, -0.1)
    with pytest.raises(ValueError, match=r"^feature_complexity: max_ratio is 1\.5; give a fraction from 0 to 1\.$"):
        feature_complexity(plain(), IMAGES, 0.1, max_ratio=1.5)
    with pytest.raises(ValueError, match=r"^merge_features: images are of shape \(3, 16\); give \(B, C, H, W\)\.$"):
        merge_features(plain(), IMAGES[0, :, 0], 0.1)
    with pytest.raises(ValueError, match=r"^ignore='head' matches no layer of Sequential"):
        merge_features(plain(), IMAGES, 0.1, ignore=["head"])
    with pytest.raises(ValueError, match=r"^the channels of Untraceable cannot be traced"):
        merge_features(Untraceable(), IMAGES, 0.1)

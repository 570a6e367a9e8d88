"""The grouped layer: equal to the dense one under a block mask, forwards, backwards and after a step."""

import pytest
import torch
import torch.nn.functional as F

from lightning_vision.callbacks.distillation.grouped_linear import GroupedLinear

GROUPS = {
    "in order": ([[0, 1, 2], [3, 4]], 3, 0),
    "mixed, three sizes": ([[4], [0, 5, 2, 6], [1, 3]], 2, 0),
    "shared features": ([[4, 1], [0, 2, 3]], 3, 2),
    "shared alone": ([[1, 0], [2]], 0, 4),
    "one group": ([[2, 0, 1]], 5, 0),
}


def block_mask(groups, width, shared):
    """Which inputs each output reads, entry by entry."""
    mask = torch.zeros(sum(map(len, groups)), shared + width * len(groups))
    for number, outputs in enumerate(groups):
        for output in outputs:
            mask[output, :shared] = 1
            mask[output, shared + number * width : shared + (number + 1) * width] = 1
    return mask


@pytest.mark.parametrize("case", GROUPS)
def test_row_69_the_grouped_layer_equals_the_dense_one_with_a_block_mask(case):
    torch.manual_seed(0)
    layer = GroupedLinear(*GROUPS[case]).double()
    mask = block_mask(*GROUPS[case]).double()
    dense = torch.nn.Linear(mask.shape[1], mask.shape[0]).double()
    dense.load_state_dict({"weight": layer.dense_weight() + 5 * (1 - mask), "bias": layer.bias})
    features = torch.randn(4, mask.shape[1], dtype=torch.float64)
    pull = torch.randn(4, mask.shape[0], dtype=torch.float64)

    for _ in range(2):
        ours = layer(features)
        theirs = F.linear(features, dense.weight * mask, dense.bias)
        assert torch.allclose(theirs, ours, rtol=1e-12)

        (ours * pull).sum().backward()
        (theirs * pull).sum().backward()
        torch.optim.SGD([*layer.parameters(), *dense.parameters()], lr=0.1).step()
        layer.zero_grad(), dense.zero_grad()
        assert torch.allclose(dense.weight * mask, layer.dense_weight(), rtol=1e-12)


def test_a_groups_outputs_do_not_move_with_the_features_of_another():
    layer = GroupedLinear([[0, 2], [1, 3]], width=4)
    features = torch.rand(5, 8)
    changed = torch.cat([features[:, :4], torch.rand(5, 4)], dim=1)

    assert torch.equal(layer(features)[:, [0, 2]], layer(changed)[:, [0, 2]])
    assert not torch.isclose(layer(features)[:, [1, 3]], layer(changed)[:, [1, 3]]).any()


def test_it_has_the_weights_of_its_blocks_alone_and_is_loaded_as_any_layer():
    layer = GroupedLinear([[0, 1, 2], [3, 4]], width=8, shared=2, bias=False)
    other = GroupedLinear([[0, 1, 2], [3, 4]], width=8, shared=2, bias=False)
    other.load_state_dict(layer.state_dict())

    assert sum(it.numel() for it in layer.parameters()) == 5 * 10
    assert torch.equal(layer.dense_weight(), other.dense_weight())


@pytest.mark.parametrize(
    ("groups", "width", "shared", "sentence"),
    [
        (
            [[0, 1], [1, 2]],
            3,
            0,
            "GroupedLinear: groups is [[0, 1], [1, 2]]; let each output from 0 on stand in exactly one group, and no "
            "group be empty.",
        ),
        (
            [[0, 1], []],
            3,
            0,
            "GroupedLinear: groups is [[0, 1], []]; let each output from 0 on stand in exactly one group, and no group "
            "be empty.",
        ),
        ([[0], [1]], 2.5, 0, "GroupedLinear: width is 2.5; give a whole number of at least 0."),
        ([[0], [1]], 3, -1, "GroupedLinear: shared is -1; give a whole number of at least 0."),
        (
            [["0"], [1.0]],
            3,
            0,
            "GroupedLinear: groups is [['0'], [1.0]]; let each output from 0 on stand in exactly one group, and no "
            "group be empty.",
        ),
        (
            [[0], [1]],
            0,
            0,
            "GroupedLinear: width and shared are 0; give at least one of them above.",
        ),
    ],
)
def test_groups_that_do_not_fit_are_refused(groups, width, shared, sentence):
    with pytest.raises(ValueError) as refusal:
        GroupedLinear(groups, width, shared)

    assert str(refusal.value) == sentence


def test_features_of_another_width_are_refused_as_a_dense_layer_does():
    for width in (9, 11):
        with pytest.raises(ValueError) as refusal:
            GroupedLinear([[0, 1], [2]], width=4, shared=2)(torch.rand(5, width))

        assert str(refusal.value) == (
            f"GroupedLinear: the features are (5, {width}), and 2 shared and 4 of each of 2 groups are 10; let the "
            "layer before it put out that many."
        )

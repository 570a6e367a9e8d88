"""Feature hints: the loss and its adapter by hand, for maps, tokens and vectors of two widths and sizes."""

import pytest
import torch
import torch.nn.functional as F

from lightning_vision.callbacks.distillation.feature_hints import HintAdapter, hint_loss


def features(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_loss_is_half_the_mean_square():
    student, teacher = features(2, 3, 4, 4), features(2, 3, 4, 4, seed=1)

    assert torch.allclose(((student - teacher) ** 2).sum() / 2 / student.numel(), hint_loss(student, teacher))


def test_of_two_sizes_the_larger_is_averaged_down():
    small, large = features(2, 3, 4, 4), features(2, 3, 8, 8, seed=1)
    wide, high = features(2, 3, 4, 8), features(2, 3, 8, 4, seed=1)

    assert torch.equal(F.mse_loss(small, F.avg_pool2d(large, 2)) / 2, hint_loss(small, large))
    assert torch.equal(F.mse_loss(F.avg_pool2d(large, 2), small) / 2, hint_loss(large, small))
    assert torch.equal(F.mse_loss(F.avg_pool2d(wide, (1, 2)), F.avg_pool2d(high, (2, 1))) / 2, hint_loss(wide, high))


def test_tokens_meet_maps_as_a_square_without_those_in_front():
    maps, teacher = features(2, 3, 4, 4), features(2, 3, 4, 4, seed=1)
    tokens = torch.cat([torch.full((2, 1, 3), 9.0), maps.flatten(2).transpose(1, 2)], dim=1)

    assert torch.equal(hint_loss(maps, teacher), hint_loss(tokens, teacher))
    assert torch.equal(hint_loss(maps, teacher), hint_loss(tokens, teacher.flatten(2).transpose(1, 2)))
    assert torch.allclose(tokens.square().mean() / 2, hint_loss(tokens, torch.zeros_like(tokens)))


SHAPES = {
    "maps": ((2, 5, 4, 4), (2, 7, 8, 8), (2, 7, 4, 4)),
    "tokens": ((2, 17, 5), (2, 17, 7), (2, 17, 7)),
    "tokens of two numbers": ((2, 17, 5), (2, 4, 7), (2, 7, 4, 4)),
    "tokens beside maps": ((2, 17, 5), (2, 7, 8, 8), (2, 7, 4, 4)),
    "maps beside tokens": ((2, 5, 8, 8), (2, 17, 7), (2, 7, 8, 8)),
    "vectors": ((2, 5), (2, 7), (2, 7)),
}


@pytest.mark.parametrize("case", SHAPES)
def test_an_adapter_brings_any_layout_to_the_teachers_width(case):
    student, teacher, expected = SHAPES[case]
    adapter = HintAdapter(torch.Size(student), torch.Size(teacher))
    adapted = adapter(features(*student))
    hint_loss(adapted, features(*teacher)).backward()

    assert expected == tuple(adapted.shape)
    assert adapter.layer.weight.grad.abs().sum() > 0


def test_how_many_images_there_are_does_not_matter_to_an_adapter():
    for student, teacher, _ in SHAPES.values():
        one, other = HintAdapter(student, teacher), HintAdapter(torch.Size([5, *student[1:]]), torch.Size(teacher))

        assert (type(one.layer), one.as_maps) == (type(other.layer), other.as_maps)


def test_maps_and_tokens_are_adapted_position_by_position():
    maps = features(2, 5, 3, 3)
    tokens = maps.flatten(2).transpose(1, 2)
    of_maps = HintAdapter(maps.shape, torch.Size([2, 7, 3, 3]))
    of_tokens = HintAdapter(tokens.shape, torch.Size([2, 9, 7]))
    of_tokens.layer.load_state_dict({"weight": of_maps.layer.weight[:, :, 0, 0], "bias": of_maps.layer.bias})

    assert torch.allclose(of_maps(maps).flatten(2).transpose(1, 2), of_tokens(tokens), atol=1e-6)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError) as of_widths:
        hint_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 4, 4))
    with pytest.raises(ValueError) as of_layouts:
        HintAdapter(torch.Size([2, 3]), torch.Size([2, 5, 4, 4]))

    assert str(of_widths.value) == (
        "hint_loss: the student's features are (2, 3, 4, 4) and the teacher's (2, 5, 4, 4); bring them to one width "
        "with HintAdapter."
    )
    assert str(of_layouts.value) == (
        "HintAdapter: a student's layer puts out (2, 3) and the teacher's (2, 5, 4, 4); name layers that both put out "
        "maps (B, C, H, W) or tokens (B, N, C), or both vectors (B, C)."
    )

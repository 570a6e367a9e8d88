"""Attention transfer: by hand, invariances, tokens beside maps and layers of two sizes."""

import pytest
import torch
import torch.nn.functional as F

from lightning_vision.callbacks.distillation.attention_transfer import attention_map, attention_transfer_loss


def maps(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + shape[1]), dtype=torch.float64)


@pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
def test_the_map_is_the_sum_of_powers_over_channels(power):
    features = maps(2, 3, 2, 4)
    by_hand = torch.zeros(2, 2, 4, dtype=torch.float64)
    for channel in range(3):
        by_hand += features[:, channel].abs() ** power

    assert torch.allclose(by_hand, attention_map(features, power))
    assert torch.allclose(by_hand.flatten(1), attention_map(features.flatten(2).transpose(1, 2), power))


def test_the_loss_by_hand():
    """Attention (1, 0) against (3, 4), which is (0.6, 0.8) at length 1: (0.16 + 0.64) / 2."""
    student = torch.tensor([[[[1.0, 0.0]]]])
    teacher = torch.tensor([[[[3.0**0.5, 2.0]]]])

    assert torch.allclose(torch.tensor(0.4), attention_transfer_loss(student, teacher))


def test_it_does_not_change_with_scale_order_or_signs_of_channels():
    student, teacher = maps(4, 3, 5, 5), maps(4, 6, 5, 5)
    order = torch.tensor([2, 0, 1])
    signs = torch.tensor([1.0, -1, -1]).view(3, 1, 1)

    assert torch.allclose(
        attention_transfer_loss(student, teacher), attention_transfer_loss(7 * signs * student[:, order], teacher)
    )
    assert attention_transfer_loss(student, teacher) > 1e-4


def test_of_two_sizes_the_larger_attention_is_averaged_down():
    small, large = maps(2, 3, 4, 4), maps(2, 6, 8, 8)
    down = F.normalize(F.avg_pool2d(attention_map(large), 2).flatten(1), dim=1)
    by_hand = F.mse_loss(F.normalize(attention_map(small).flatten(1), dim=1), down)

    assert torch.allclose(by_hand, attention_transfer_loss(small, large))
    assert torch.allclose(by_hand, attention_transfer_loss(large, small))


def test_tokens_meet_maps_as_a_square_without_those_in_front():
    features, teacher = maps(2, 3, 4, 4), maps(2, 5, 4, 4)
    tokens = torch.cat([torch.full((2, 1, 3), 9.0), features.flatten(2).transpose(1, 2)], dim=1)

    assert torch.allclose(attention_transfer_loss(features, teacher), attention_transfer_loss(tokens, teacher))
    assert attention_transfer_loss(tokens, 2 * tokens) < 1e-20


def test_the_sign_of_a_channel_has_a_finite_gradient_where_it_is_zero():
    features = torch.zeros(1, 2, 2, 2, requires_grad=True)
    attention_map(features, 1.0).sum().backward()
    with pytest.raises(ValueError) as refusal:
        attention_map(features, 0.5)

    assert features.grad.isfinite().all()
    assert str(refusal.value) == "attention_map: power is 0.5; give a finite number of at least 1."


def test_vectors_have_no_positions():
    with pytest.raises(ValueError) as refusal:
        attention_transfer_loss(torch.zeros(2, 3), torch.zeros(2, 3))

    assert str(refusal.value) == (
        "a layer puts out (2, 3), which has no positions; name one that puts out maps (B, C, H, W) or tokens (B, N, C)."
    )

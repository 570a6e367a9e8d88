"""What is held of activations: how exact, in how many bytes, whose; gradients are those of what is held.

How SlimFit uses it is proved in `test_slimfit.py`.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_vision.callbacks.finetuning._held_activations import Coded, HeldActivations, Top


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def holding(bits=8, keep=1.0, module=None):
    return HeldActivations("SlimFit", module or nn.Identity(), bits, keep)


@pytest.mark.parametrize(("bits", "limit"), [(8, 127), (4, 7)])
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 16)])
def test_a_row_is_exact_to_half_of_its_step(bits, limit, shape):
    tensor = numbers(*shape)
    step = tensor.abs().amax(dim=-1, keepdim=True) / limit
    error = (Coded(tensor, bits).read() - tensor).abs()

    assert (error <= step * 0.5001).all()
    assert error.max() > step.min() * 0.25


def test_codes_by_hand():
    """Steps of 1/127 and 1/7 of the largest, 1; a row of zeros stays so."""
    tensor = torch.tensor([[1.0, -1.0, 0.6, 0.0], [0.0, 0.0, 0.0, 0.0]])

    assert Coded(tensor, 8).codes.tolist() == [[254, 0, 203, 127], [127] * 4]
    assert Coded(tensor, 4).codes.tolist() == [14 * 16, 11 * 16 + 7, 7 * 16 + 7, 7 * 16 + 7]
    assert Coded(tensor, 4).read()[1].tolist() == [0.0] * 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_and_shapes_come_back_and_what_is_not_finite_stays_so(dtype):
    tensor = numbers(3, 5).to(dtype)
    tensor[1, 2] = float("nan")
    tensor[2, 0] = float("inf")
    for bits in (4, 8):
        read = Coded(tensor, bits).read()

        assert read.dtype == dtype
        assert read.shape == tensor.shape
        assert [bool(row.isfinite().all()) for row in read] == [True, False, False]


@pytest.mark.parametrize(("bits", "expected"), [(8, 6 * 10 + 6 * 4), (4, 6 * 5 + 6 * 4)])
def test_a_row_of_ten_floats_takes_its_codes_and_one_scale(bits, expected):
    assert Coded(numbers(2, 3, 10), bits).nbytes == expected


def test_the_top_of_each_row_is_kept_and_the_rest_is_zero():
    tensor = torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3]])
    top = Top(tensor, 0.5, 1)

    assert torch.equal(top.read(), torch.tensor([[0.0, 0.6, 0.3], [0.5, 0.0, 0.3]]))
    assert top.nbytes == 4 * 4 + 4
    assert torch.equal(Top(tensor, 0.5, 0).read(), torch.tensor([[0.0, 0.6, 0.3], [0.5, 0.0, 0.0]]))


def test_long_rows_have_wider_places():
    assert [Top(torch.rand(1, size), 0.01, 1).places.dtype for size in (256, 257, 40000)] == [
        torch.uint8,
        torch.int16,
        torch.int32,
    ]


def test_gelus_gradient_is_that_at_the_rounded_input():
    tensor = numbers(4, 6).requires_grad_()
    with holding():
        result = F.gelu(tensor)
    (ours,) = torch.autograd.grad(result.sum(), tensor)
    rounded = Coded(tensor.detach(), 8).read().requires_grad_()
    (expected,) = torch.autograd.grad(F.gelu(rounded).sum(), rounded)

    assert torch.equal(result, F.gelu(tensor))
    assert torch.equal(ours, expected)
    assert not torch.equal(ours, torch.autograd.grad(F.gelu(tensor).sum(), tensor)[0])


@pytest.mark.parametrize("product", [torch.matmul, lambda a, b: a @ b, lambda a, b: a.matmul(b), torch.bmm])
def test_both_factors_of_a_product_are_rounded(product):
    left, right = numbers(2, 3, 4).requires_grad_(), numbers(2, 4, 5, seed=1).requires_grad_()
    with holding() as held:
        result = product(left, right)
    ours = torch.autograd.grad(result.sum(), (left, right))
    wide = [Coded(it.detach(), 8).read() for it in (left, right)]
    ones = torch.ones(2, 3, 5)

    assert held.plain_bytes == 4 * (24 + 40)
    assert torch.allclose(ours[0], ones @ wide[1].mT)
    assert torch.allclose(ours[1], wide[0].mT @ ones)


def test_no_parameter_is_ever_packed_nor_a_view_of_one():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(numbers(4, 4))
            self.register_buffer("table", numbers(4, 4, seed=1))

    module, tensor = Own(), numbers(4, 4, seed=2).requires_grad_()
    with holding(module=module) as held:
        result = F.gelu(module.weight) @ module.weight.t() @ module.table[:, :] @ module.weight.detach()
        bytes_without = held.plain_bytes
        F.gelu(tensor)
    module.weight.grad = None
    result.sum().backward()
    plain = F.gelu(module.weight) @ module.weight.t() @ module.table @ module.weight.detach()

    # The result of GELU, for the gradient of what it is multiplied with; no later factor wants one.
    assert bytes_without == 64
    assert held.plain_bytes == 2 * 64
    assert torch.equal(result, plain)


def test_what_is_kept_twice_is_packed_once_unless_it_has_changed():
    tensor = numbers(4, 6).requires_grad_()
    with holding() as held:
        inner = tensor * 1.0
        F.gelu(inner)
        F.layer_norm(inner, (6,))
        once = held.plain_bytes
        with torch.no_grad():
            inner.mul_(2.0)
        F.gelu(inner)

    assert (once, held.plain_bytes) == (96, 192)


def test_an_address_that_is_used_again_is_not_taken_for_the_tensor_that_was_there():
    held, found = holding(), []
    with held:
        for seed in range(20):
            tensor = numbers(64, 64, seed=seed).requires_grad_()
            scaled = tensor * 2.0
            result = F.gelu(scaled)
            del scaled
            found.append((tensor, result))

    assert held.plain_bytes == 20 * 64 * 64 * 4
    for tensor, result in found:
        rounded = Coded(tensor.detach() * 2.0, 8).read().requires_grad_()
        expected = 2.0 * torch.autograd.grad(F.gelu(rounded).sum(), rounded)[0]
        assert torch.equal(torch.autograd.grad(result.sum(), tensor)[0], expected)


def attention(query, key, value):
    return (query @ key.transpose(-2, -1)).softmax(dim=-1) @ value


def test_a_softmax_is_held_once_for_itself_and_the_product_that_follows():
    query, key, value = (numbers(2, 3, 10, 4, seed=seed).requires_grad_() for seed in range(3))
    with holding(None, 0.2) as held:
        result = attention(query, key, value)
    result.sum().backward()
    weights = (query @ key.mT).softmax(dim=-1).detach()

    assert held.plain_bytes == 4 * 2 * 3 * 10 * 10
    assert held.held_bytes == 5 * 2 * 3 * 10 * 2
    assert torch.allclose(value.grad, Top(weights, 0.2, 3).read().mT @ torch.ones(2, 3, 10, 4))


def test_whole_fractions_hold_everything():
    query, key, value = (numbers(2, 3, 10, 4, seed=seed).requires_grad_() for seed in range(3))
    gradients = []
    for context in (holding(None, 1.0), torch.enable_grad()):
        with context:
            gradients.append(torch.autograd.grad(attention(query, key, value).square().sum(), (query, key, value)))

    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_fused_attention_and_torchs_own_hold_what_has_heads():
    query, key, value = (numbers(2, 3, 10, 4, seed=seed).requires_grad_() for seed in range(3))
    layer = nn.MultiheadAttention(12, 3, batch_first=True)
    with holding(module=layer) as fused:
        F.scaled_dot_product_attention(query, key, value)
    with holding(module=layer) as own:
        tokens = numbers(2, 10, 12).requires_grad_()
        layer(tokens, tokens, tokens, need_weights=False)

    assert fused.seen == own.seen == {"attention"}
    assert fused.plain_bytes == own.plain_bytes == 4 * 4 * 2 * 3 * 10 * 4


def test_without_gradients_nothing_is_held_and_others_keep_what_they_keep():
    tensor = numbers(4, 6).requires_grad_()
    with holding() as held:
        with torch.no_grad():
            F.gelu(tensor)
        F.gelu(tensor)
        before = held.plain_bytes
        torch.relu(tensor).exp().sum()
        F.linear(tensor, numbers(3, 6))

    assert before == held.plain_bytes == 96


def test_what_must_not_change_in_place_is_noticed_as_torch_does():
    weight, tensor = torch.ones(6, requires_grad=True), numbers(4, 6).requires_grad_()
    with holding():
        result = F.layer_norm(tensor, (6,), weight)
    with torch.no_grad():
        weight.mul_(2.0)

    with pytest.raises(RuntimeError, match=r"shape \(6,\) that the backward pass needs was changed in place"):
        result.sum().backward()


def test_half_precision_under_autocast():
    layer, tensor = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU()), numbers(4, 8).requires_grad_()
    gradients = []
    for context in (holding(module=layer), torch.enable_grad()):
        with context, torch.autocast("cpu", torch.bfloat16):
            loss = layer(tensor).float().square().sum()
        gradients.append(torch.autograd.grad(loss, tensor)[0])

    assert (gradients[0] - gradients[1]).norm() < 0.05 * gradients[1].norm()

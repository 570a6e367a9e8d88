"""Factorising: Eckart and Young, full rank, counts and ranks as the authors round them, what stays and why."""

import itertools

import pytest
import timm
import torch
from torch import nn

from lightning_vision.callbacks import factorise, low_rank_factors


def normal(*size, seed=0, dtype=torch.float64):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def vit(**options):
    torch.manual_seed(0)
    settings = {"img_size": 16, "patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 10}
    return timm.create_model("vit_tiny_patch16_224", **settings | options)


def parameters(model):
    return sum(it.numel() for it in model.parameters())


@pytest.mark.parametrize("shape", [(12, 7), (7, 12), (9, 9)])
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_row_105_the_error_is_the_norm_of_the_singular_values_left_out(shape, rank):
    weight = normal(*shape)
    up, down = low_rank_factors(weight, rank)
    values = torch.linalg.svdvals(weight)
    error = torch.linalg.matrix_norm(weight - up @ down)

    assert (up.shape, down.shape) == ((shape[0], rank), (rank, shape[1]))
    torch.testing.assert_close(error, values[rank:].square().sum().sqrt(), rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.linalg.matrix_norm(weight - up @ down, 2), values[rank], rtol=1e-12, atol=0)
    wrong_order = torch.linalg.svd(weight, full_matrices=False)
    smallest = wrong_order.U[:, -rank:] * wrong_order.S[-rank:] @ wrong_order.Vh[-rank:]
    assert torch.linalg.matrix_norm(weight - smallest) > 1.01 * error


def test_row_105_no_matrix_of_the_rank_is_nearer():
    weight = normal(8, 6)
    best = torch.linalg.matrix_norm(weight - torch.mul(*_padded(low_rank_factors(weight, 2))).sum(dim=-1))
    for seed in range(20):
        left = normal(8, 2, seed=seed)
        right = torch.linalg.lstsq(left, weight).solution
        assert torch.linalg.matrix_norm(weight - left @ right) > best


def _padded(factors):
    """Factors whose product is a sum over the last dimension."""
    return factors[0][:, None, :], factors[1].T[None, :, :]


def test_row_105_both_factors_have_the_root_of_the_singular_values():
    weight = normal(10, 6)
    up, down = low_rank_factors(weight, 4)
    values = torch.diag(torch.linalg.svdvals(weight)[:4])

    torch.testing.assert_close(up.T @ up, values, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(down @ down.T, values, rtol=1e-10, atol=1e-10)


def test_row_105_full_rank_reproduces_logits_and_a_lower_one_does_not():
    images, logits = normal(4, 3, 16, 16), {}
    for rank in (None, 48, 47):
        model = vit().double().eval()
        if rank:
            done = factorise(model, rank=rank)
            assert list(done.ranks.values()) == [rank] * 8
        logits[rank] = model(images).detach()

    torch.testing.assert_close(logits[48], logits[None], rtol=1e-12, atol=1e-12)
    assert (logits[47] - logits[None]).abs().max() > 1e-6


@pytest.mark.parametrize("ratio", [1.5, 2.0, 3.0])
def test_row_105_parameters_of_a_layer_and_the_whole_ratio_are_those_of_the_formula(ratio):
    model = vit(embed_dim=96)
    dense = {name: it for name, it in model.named_modules() if type(it) is nn.Linear}
    before = parameters(model)
    done = factorise(model, ratio)
    kept, all_numbers, slack = 0, 0, 0
    for name, rank in done.ranks.items():
        layer, pair = dense[name], model.get_submodule(name)
        n, m = layer.in_features, layer.out_features
        kept, all_numbers, slack = kept + rank * (n + m), all_numbers + n * m, slack + n + m

        assert rank == (n * m) // (ratio * (n + m))
        assert parameters(pair) == rank * (n + m) + m
        assert rank * (n + m) <= n * m / ratio < (rank + 1) * (n + m)
    assert list(done.left) == ["head"]
    assert (done.before, done.after) == (before, parameters(model)) == (before, before - all_numbers + kept)
    # A rank is rounded down by less than one.
    assert all_numbers / ratio - slack < kept <= all_numbers / ratio


def test_a_pair_is_two_plain_layers_with_the_very_bias_and_nothing_is_drawn():
    model = nn.Sequential(nn.Linear(20, 30, dtype=torch.float64), nn.Linear(30, 20, bias=False))
    bias = model[0].bias
    model[1].weight.requires_grad_(False)
    model.eval()
    before = torch.get_rng_state()
    factorise(model, 2.0)

    assert torch.equal(before, torch.get_rng_state())
    assert list(model.state_dict()) == ["0.0.weight", "0.1.weight", "0.1.bias", "1.0.weight", "1.1.weight"]
    assert [type(it) for it in (model[0], *model[0])] == [nn.Sequential, nn.Linear, nn.Linear]
    assert model[0][1].bias is bias
    assert {it.dtype for it in model[0].parameters()} == {torch.float64}
    assert [it.requires_grad for it in model.parameters()] == [True, True, True, False, False]
    assert not any(it.training for it in model.modules())
    assert (model[0][0].out_features, model[0][1].in_features) == (6, 6)


def test_a_weight_of_half_precision_is_decomposed_in_single_precision():
    weight = normal(12, 8, dtype=torch.float32)
    halves = low_rank_factors(weight.bfloat16(), 3)

    assert [it.dtype for it in halves] == [torch.bfloat16] * 2
    for half, whole in zip(halves, low_rank_factors(weight.bfloat16().float(), 3), strict=True):
        assert torch.equal(half, whole.bfloat16())


class Odd(nn.Module):
    """Layers that stay: by name, too small, tied, read by a fast path, subclasses, reached twice."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(40, 40)
        self.two = nn.Linear(40, 9)
        self.narrow = nn.Linear(1, 40)
        self.words = nn.Embedding(40, 40)
        self.tied = nn.Linear(40, 40)
        self.tied.weight = self.words.weight
        self.encoder = nn.TransformerEncoderLayer(40, 4, 40, batch_first=True)
        self.twice = nn.Linear(40, 40)
        self.again = self.twice
        self.weighed = nn.utils.parametrizations.weight_norm(nn.Linear(40, 40))
        self.old_weighed = nn.utils.spectral_norm(nn.Linear(40, 40))


def test_what_stays_is_told_with_the_reason_and_a_layer_with_two_names_is_one_pair():
    model = Odd()
    done = factorise(model, 2.0)

    assert done.ranks == {"twice": 10}
    assert model.twice is model.again
    assert isinstance(model.again, nn.Sequential)
    assert done.left == {
        "head": "its name is one that the authors leave out",
        "two": "it has fewer than 10 outputs",
        "narrow": "nothing of it would be left at this ratio",
        "tied": "its weight is computed, or something else reads it",
        "encoder.linear1": "its weight is computed, or something else reads it",
        "encoder.linear2": "its weight is computed, or something else reads it",
        "old_weighed": "its weight is computed, or something else reads it",
    }
    assert model.eval().encoder(torch.randn(2, 5, 40)).shape == (2, 5, 40)


def test_patterns_choose_and_skip_and_an_explicit_skip_frees_the_authors_names():
    chosen = factorise(vit(), layers=["blocks.0.*", "head"], skip="*.fc?")

    assert chosen.ranks == {"blocks.0.attn.qkv": 18, "blocks.0.attn.proj": 12, "head": 4}
    assert chosen.left == {"blocks.0.mlp.fc1": "it was to be skipped", "blocks.0.mlp.fc2": "it was to be skipped"}


def test_a_rank_above_the_smaller_side_is_told_and_what_saves_nothing_stays():
    model = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 40))

    assert factorise(model, rank=21).left == {"0": "its rank is 20 at most", "1": "its rank is 20 at most"}
    assert factorise(nn.Linear(3, 11), 1.01).left == {}
    assert factorise(nn.Sequential(nn.Linear(2, 10)), 1.0001).ranks == {"0": 1}


def test_pairs_stay_and_their_names_are_known():
    model = vit()
    ranks = factorise(model, 2.0).ranks
    state = {name: it.clone() for name, it in model.state_dict().items()}
    again = factorise(model, 3.0, layers="blocks.*", skip="blocks.0.mlp.fc1")

    assert (len(ranks), again.ranks, again.left, again.before) == (8, {}, {}, again.after)
    assert all(torch.equal(it, state[name]) for name, it in model.state_dict().items())


def test_a_factorised_files_weights_load_into_a_factorised_model():
    images, (one, other) = torch.randn(2, 3, 16, 16), (vit().eval() for _ in range(2))
    factorise(one, 1.5)
    for parameter in one.parameters():
        parameter.data.add_(0.01)

    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict(one.state_dict())
    factorise(other, 1.5)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(images), other(images))


def test_a_swin_transformer_runs_when_it_is_factorised():
    settings = {
        "img_size": 32,
        "patch_size": 2,
        "window_size": 4,
        "embed_dim": 24,
        "depths": (2, 2),
        "num_heads": (2, 4),
    }
    model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=10, **settings).eval()
    done = factorise(model, 3.0)

    assert (len(done.ranks), list(done.left)) == (16, ["layers.1.downsample.reduction", "head.fc"])
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": 0}, "factorise: ratio is 0; give a number above 1, such as 2.0 for half of the parameters."),
        ({"ratio": -2.0}, "factorise: ratio is -2.0; give a finite number of at least 0."),
        ({"ratio": 1.0}, "factorise: ratio is 1.0; give a number above 1, such as 2.0 for half of the parameters."),
        ({"ratio": float("nan")}, "factorise: ratio is nan; give a finite number of at least 0."),
        ({"rank": 0}, "factorise: rank is 0; give a whole number of at least 1."),
        ({"layers": "blcks.*"}, "factorise: layers 'blcks.*' matches none of the Linear layers; there are "),
        ({"skip": ["head", "fc"]}, "factorise: skip 'fc' matches none of the Linear layers; there are "),
        ({"layers": 3}, "factorise: layers is 3; give a pattern such as 'blocks.*.act', or a list of them."),
    ],
)
def test_bad_input_is_refused(settings, message):
    with pytest.raises(ValueError) as error:
        factorise(vit(), **settings)

    assert str(error.value).startswith(message)


def test_ranks_of_all_shapes_never_cost_more_than_the_layer():
    for n, m, ratio in itertools.product((1, 2, 5, 16), (10, 11, 64), (1.01, 1.5, 4.0)):
        model = nn.Sequential(nn.Linear(n, m))
        done = factorise(model, ratio)

        assert done.after < done.before if done.ranks else done.after == done.before

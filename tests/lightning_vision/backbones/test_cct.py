"""Compact transformers: published sizes, SeqPool and positions by hand, other image sizes, parity with vit-pytorch."""

import math
import re
from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn
from vit_pytorch import cct as reference

from lightning_vision.backbones.cct import CompactTransformer
from lightning_vision.backbones.cct_layers import CompactBlock, ConvTokenizer, SeqPool, seq_pool, sine_positions


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_row_283(fit_digits: Callable[..., tuple[float, float]]) -> None:
    assert round(count(timm.create_model("cct_7_3x1_32")) / 1e6, 2) == 3.76
    assert round(count(timm.create_model("cct_2_3x2_32")) / 1e6, 2) == 0.28

    pool = SeqPool(8)
    nn.init.zeros_(pool.score.weight)
    tokens = noise(3, 5, 8)
    torch.testing.assert_close(pool(tokens), tokens.mean(dim=1))

    free = timm.create_model("cct_2_3x2_32", pos_emb="none").eval()
    assert [free(noise(1, 3, size, size)).shape for size in (8, 32, 41)] == [(1, 10)] * 3

    theirs = reference.cct_2(
        img_size=32, n_conv_layers=2, kernel_size=3, num_classes=10, positional_embedding="learnable"
    )
    _assert_parity(timm.create_model("cct_2_3x2_32"), theirs)
    theirs = reference.cct_7(img_size=32, n_conv_layers=1, kernel_size=3, num_classes=10, positional_embedding="sine")
    _assert_parity(timm.create_model("cct_7_3x1_32", pos_emb="sine"), theirs)

    accuracy, _ = fit_digits(lambda: timm.create_model("cct_2_3x2_32", in_chans=1, img_size=8), epochs=8, lr=2e-3)
    assert accuracy > 0.9


# Theirs to ours, in order: their `norm1` follows attention.
RENAMED = (
    (r"^tokenizer\.conv_layers\.0\.0", "tokenizer.layers.0"),
    (r"^tokenizer\.conv_layers\.1\.0", "tokenizer.layers.3"),
    (r"^classifier\.", ""),
    (r"^positional_emb", "pos_embed"),
    (r"^attention_pool", "seq_pool.score"),
    (r"^fc", "head"),
    (r"\.norm1", ".norm2"),
    (r"\.pre_norm", ".norm1"),
    (r"\.self_attn", ".attn"),
    (r"\.linear", ".mlp.fc"),
)


def _assert_parity(ours: CompactTransformer, theirs: nn.Module) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, parameter in theirs.named_parameters():
            if "positional_emb" not in name:
                nn.init.normal_(parameter, std=0.2)
    state = {}
    for name, tensor in theirs.state_dict().items():
        for pattern, new in RENAMED:
            name = re.sub(pattern, new, name)
        state[name] = tensor
    if ours.pos_embed is None:
        del state["pos_embed"]
    ours.load_state_dict(state)
    x = noise(3, 3, 32, 32)
    with torch.no_grad():
        expected = theirs.eval()(x)

        assert expected.abs().max() > 0.1
        torch.testing.assert_close(ours.eval()(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("cct_2_3x2_32", 0.28),
        ("cct_4_3x2_32", 0.48),
        ("cct_7_3x1_32", 3.76),
        ("cct_7_3x2_32", 3.85),
        ("cct_14_7x2_224", 22.37),
        ("cvt_7_4_32", 3.72),
        ("vit_lite_7_4_32", 3.72),
        ("vit_lite_6_4_32", 3.19),
    ],
)
def test_parameters(name: str, published: float) -> None:
    with torch.device("meta"):
        network = timm.create_model(name)

    assert count(network) / 1e6 == pytest.approx(published, abs=0.0051)


def test_seq_pool_weighs_tokens_by_the_softmax_of_their_scores() -> None:
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 4.0]]])

    torch.testing.assert_close(seq_pool(tokens, torch.tensor([[math.log(3), 0.0]])), torch.tensor([[0.75, 1.0]]))
    torch.testing.assert_close(seq_pool(tokens, torch.tensor([[100.0, 0.0]])), tokens[:, 0])


def test_sine_positions_by_hand() -> None:
    expected = [[0, 1, 0, 1], [math.sin(1), math.cos(1), math.sin(0.01), math.cos(0.01)]]

    torch.testing.assert_close(sine_positions(2, 4), torch.tensor([expected]))
    assert sine_positions(9, 5).shape == (1, 9, 5)


def test_a_block_adds_its_second_branch_to_the_normalised_trunk() -> None:
    block = CompactBlock(4, num_heads=1)
    for branch in (block.attn, block.mlp):
        for parameter in branch.parameters():
            nn.init.zeros_(parameter)
    x = 3 + noise(2, 5, 4)

    assert block(x).equal(nn.functional.layer_norm(x, (4,)))


@pytest.mark.parametrize(
    ("settings", "size", "grid"),
    [
        ({"n_conv_layers": 1}, 32, (16, 16)),
        ({"n_conv_layers": 2}, 32, (8, 8)),
        ({"n_conv_layers": 2}, 28, (7, 7)),
        ({"n_conv_layers": 2}, 8, (2, 2)),
        ({"n_conv_layers": 2, "kernel_size": 7}, 224, (14, 14)),
        ({"patch_size": 4}, 32, (8, 8)),
        ({"patch_size": 4}, 30, (7, 7)),
    ],
)
def test_the_grid_is_what_the_tokenizer_makes(settings: dict[str, int], size: int, grid: tuple[int, int]) -> None:
    tokenizer = ConvTokenizer(1, 16, **settings)

    assert tokenizer.grid((size, size)) == grid
    assert tokenizer(noise(1, 1, size, size)).shape == (1, 16, *grid)


def test_learned_positions_are_resampled_for_another_size() -> None:
    network = timm.create_model("vit_lite_6_4_32", depth=1).eval()
    with torch.no_grad():
        network.pos_embed[:, 1:] = torch.arange(8.0).repeat(8)[None, :, None]
        network.tokenizer.layers[0].weight.zero_()
        network.tokenizer.layers[0].bias.zero_()
        tokens, size = network._embed(torch.zeros(1, 3, 16, 16))

    # A ramp over 8 columns, read at the middles of 4 columns twice as wide.
    assert size == [4, 4]
    torch.testing.assert_close(tokens[0, 1:, 0].reshape(4, 4), torch.tensor([0.5, 2.5, 4.5, 6.5]).expand(4, 4))
    assert tokens[0, 0].equal(network.pos_embed[0, 0])


def test_variants_differ_in_pooling_and_class_token() -> None:
    cct, cvt, vit = (timm.create_model(name) for name in ("cct_6_3x1_32", "cvt_6_4_32", "vit_lite_6_4_32"))

    assert [network.cls_token is not None for network in (cct, cvt, vit)] == [False, False, True]
    assert [network.seq_pool is not None for network in (cct, cvt, vit)] == [True, True, False]
    assert [network.pos_embed.shape[1] for network in (cct, cvt, vit)] == [256, 64, 65]


def test_the_pooling_can_be_changed() -> None:
    network = timm.create_model("cct_2_3x2_32").eval()
    x = noise(2, 3, 32, 32)
    tokens = network.forward_features(x)
    network.reset_classifier(0, "avg")
    averaged = network(x)
    network.reset_classifier(0, "")

    assert averaged.equal(tokens.mean(dim=1))
    assert network(x).equal(tokens)


def test_feature_maps_can_be_chosen_and_later_blocks_are_dropped() -> None:
    whole = timm.create_model("cvt_6_4_32").eval()
    _, maps = whole.forward_intermediates(noise(1, 3, 32, 32), indices=[0, -1])
    calls = []
    whole.blocks[2].register_forward_hook(lambda *_: calls.append(2))
    early = whole.forward_intermediates(noise(1, 3, 32, 32), [1], stop_early=True, intermediates_only=True)
    features = timm.create_model("cvt_6_4_32", features_only=True, out_indices=(0, 2))

    assert [level.shape for level in maps] == [(1, 256, 8, 8)] * 2
    assert len(early) == 1
    assert calls == []
    assert len(features.model.blocks) == 3
    assert [level.shape for level in features(noise(1, 3, 32, 32))] == [(1, 256, 8, 8)] * 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: CompactTransformer(pos_emb="rope"),
            "CompactTransformer: pos_emb must be learnable, sine or none, got 'rope'",
        ),
        (
            lambda: CompactTransformer(global_pool="max"),
            "CompactTransformer: global_pool must be seq, token, avg or empty, and a network built without SeqPool or "
            "class token has no use for it; got 'max'",
        ),
        (
            lambda: CompactTransformer(depth=1).reset_classifier(3, "token"),
            "CompactTransformer: global_pool must be seq, token, avg or empty, and a network built without SeqPool or "
            "class token has no use for it; got 'token'",
        ),
        (
            lambda: CompactTransformer(img_size=3, patch_size=4),
            "ConvTokenizer: an image of 3x3 pixels is too small for one token",
        ),
    ],
)
def test_refusals(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call()

"""MAE beside timm's forward, a naive loop and lightly's parts."""

import math
import warnings
from copy import deepcopy

import pytest
import timm
import torch
from torch import nn

from lightning_vision.self_supervised.mae import MAE, MAEDecoder, encode_visible, mae_loss, sine_positions
from lightning_vision.self_supervised.patches import normalise_patches, patchify

TINY = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
VIT = {"backbone": "vit_tiny_patch16_224", "image_size": 24, "in_channels": 1, "backbone_settings": TINY}


def mae(**options):
    torch.manual_seed(0)
    decoder = {"decoder_dim": 24, "decoder_depth": 2, "decoder_heads": 3}
    return MAE(**(VIT | decoder | options))


def batch(learner, images=3):
    random = torch.Generator().manual_seed(1)
    image = torch.randn(images, 1, 24, 24, generator=random)
    return image, learner.mask(torch.rand(images, learner.draws, generator=random))


def kept_of(mask):
    return torch.stack([(~row).nonzero()[:, 0] for row in mask])


VITS = {
    "class token": {},
    "average": {"global_pool": "avg", "class_token": False},
    "registers": {"reg_tokens": 2, "no_embed_class": True},
    "dynamic": {"dynamic_img_size": True, "pre_norm": True},
}


@pytest.mark.parametrize("settings", VITS.values(), ids=VITS)
def test_with_nothing_hidden_the_encoder_is_timms(settings):
    vit = timm.create_model("vit_tiny_patch16_224", img_size=24, in_chans=1, num_classes=0, **TINY, **settings).eval()
    image = torch.randn(3, 1, 24, 24)

    assert torch.equal(encode_visible(vit, image, torch.arange(36).expand(3, -1)), vit.forward_features(image))


def test_visible_tokens_do_not_depend_on_hidden_pixels_and_are_a_quarter():
    learner = mae().eval()
    image, mask = batch(learner)
    other = torch.randn_like(image).where(learner.hidden_pixels(mask), image)
    kept = kept_of(mask)

    first, second = (encode_visible(learner.backbone, it, kept) for it in (image, other))

    assert first.shape == (3, 1 + 9, 16)
    assert torch.equal(first, second)
    whole = learner.backbone.forward_features
    assert not torch.allclose(whole(image)[:, 0], whole(other)[:, 0])


def test_each_token_goes_back_to_its_place():
    """Without blocks and positions the prediction of a patch is a function of its own token."""
    decoder = MAEDecoder(6, 5, (2, 4), prefix=2, dim=8, depth=1, heads=2)
    decoder.blocks, decoder.positions.data = nn.Identity(), torch.zeros_like(decoder.positions)
    mask = torch.tensor([[True, False, True, True, False, False, True, False]] * 2)
    mask[1] = mask[1].flip(0)
    tokens, kept = torch.randn(2, 2 + 4, 6), kept_of(mask)

    found = decoder(tokens, kept)

    for image in range(2):
        assert torch.allclose(found[image, kept[image]], decoder.head(decoder.norm(decoder.embed(tokens[image, 2:]))))
        nothing = decoder.head(decoder.norm(decoder.mask_token[0]))
        assert torch.allclose(found[image, mask[image]], nothing.expand(4, -1))


def test_the_loss_is_that_of_hidden_patches_alone():
    learner = mae(norm_targets=False)
    image, mask = batch(learner)
    prediction, target = torch.randn(3, 36, 16), patchify(image, (4, 4))
    by_hand = torch.stack([(a - b).square().mean() for a, b in zip(prediction[mask], target[mask], strict=True)]).mean()

    loss = mae_loss(prediction, target, mask)

    torch.testing.assert_close(loss, by_hand)
    altered = prediction + 7 * (~mask)[:, :, None]
    assert mae_loss(altered, target, mask) == loss
    assert (altered - target).square().mean() > loss + 1  # a mean over all patches would notice


def test_nothing_predicted_of_normalised_patches_costs_their_variance():
    """The mean of a patch is the best guess of one who sees nothing: its loss is 1, less what a sample's variance is
    too large by."""
    target, _, _ = normalise_patches(0.02 * torch.randn(8, 36, 256))
    variance = 0.02**2
    mask = torch.rand(8, 36) < 0.75

    loss = mae_loss(torch.zeros_like(target), target, mask)

    assert loss.item() == pytest.approx(255 / 256 * variance / (variance + 1e-6), rel=1e-4)
    assert loss.item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("norm_targets", [True, False])
def test_a_step_is_that_of_a_loop_over_images(norm_targets):
    learner = mae(norm_targets=norm_targets)
    image, uniform = torch.randn(3, 1, 24, 24), torch.rand(3, 36)
    vit, decoder = learner.backbone, learner.network.decoder
    losses = []
    for own, draws in zip(image, uniform, strict=True):
        seen = sorted(draws.argsort()[27:].tolist())
        embedded = vit.patch_embed.proj(own[None]).flatten(2)[0].T + vit.pos_embed[0, 1:]
        tokens = torch.cat([vit.cls_token[0] + vit.pos_embed[0, :1], embedded[seen]])[None]
        for block in vit.blocks:
            tokens = block(tokens)
        tokens = decoder.embed(vit.norm(tokens))[0]
        rows = [tokens[1 + seen.index(place)] if place in seen else decoder.mask_token[0, 0] for place in range(36)]
        full = torch.stack([tokens[0], *rows]) + decoder.positions[0]
        prediction = decoder.head(decoder.norm(decoder.blocks(full[None])))[0, 1:]
        for place in set(range(36)) - set(seen):
            row, column = divmod(place, 6)
            patch = own[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten()
            if norm_targets:
                patch = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
            losses.append((prediction[place] - patch).square().mean())

    torch.testing.assert_close(learner.losses(image, uniform)["loss"], torch.stack(losses).mean())


def lightlys(learner):
    """lightly's encoder and decoder with the learner's weights."""
    from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM

    encoder = MaskedVisionTransformerTIMM(deepcopy(learner.backbone), weight_initialization="skip",
                                          pos_embed_initialization="skip")  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # to be removed in 1.7
        decoder = MAEDecoderTIMM(36, 4, 1, 16, 24, 2, 3, num_prefix_tokens=learner.backbone.num_prefix_tokens)
    ours = {"embed": "decoder_embed", "positions": "decoder_pos_embed", "blocks": "decoder_blocks",
            "norm": "decoder_norm", "head": "decoder_pred", "mask_token": "mask_token"}  # fmt: skip
    weights = {name.partition("."): value for name, value in learner.network.decoder.state_dict().items()}
    decoder.load_state_dict({ours[first] + dot + rest: value for (first, dot, rest), value in weights.items()})
    return encoder.eval(), decoder.eval()


def lightlys_loss(encoder, decoder, image, mask, norm):
    """MAE's step of their parts: tokens kept by index, mask tokens set by index, patches channel after channel."""
    from lightly.models import utils

    kept, hidden = kept_of(mask) + 1, kept_of(~mask) + 1
    kept = torch.cat([torch.zeros(len(image), 1, dtype=torch.int64), kept], 1)
    tokens = utils.repeat_token(decoder.mask_token, (len(image), 37))
    tokens = utils.set_at_index(tokens, kept, decoder.embed(encoder.encode(images=image, idx_keep=kept)))
    prediction = decoder.predict(utils.get_at_index(decoder.decode(tokens), hidden))
    target = utils.get_at_index(utils.patchify(image, 4), hidden - 1)
    if norm:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    return nn.functional.mse_loss(prediction, target)


@pytest.mark.parametrize("norm_targets", [True, False])
def test_loss_and_gradient_are_lightlys(norm_targets):
    learner = mae(norm_targets=norm_targets).eval()
    encoder, decoder = lightlys(learner)
    image, mask = batch(learner)

    ours, theirs = learner.error(image, mask), lightlys_loss(encoder, decoder, image, mask, norm_targets)
    ours.backward()
    theirs.backward()

    torch.testing.assert_close(ours, theirs)
    for own, other in (
        (learner.backbone.patch_embed.proj, encoder.vit.patch_embed.proj),
        (learner.network.decoder.head, decoder.decoder_pred),
    ):
        torch.testing.assert_close(own.weight.grad, other.weight.grad)
    # A mutant: targets not normalised, or normalised where they should not be.
    assert not torch.isclose(ours, lightlys_loss(encoder, decoder, image, mask, not norm_targets))


def test_embeddings_of_patches_start_as_a_linear_layer_does_in_either_order_of_memory():
    """Xavier's range is sqrt(6 / (48 + 16)) for patches of 3 x 4 x 4 numbers and 16 features."""
    for channels_last in (False, True):
        weight = mae(in_channels=3, channels_last=channels_last).backbone.patch_embed.proj.weight

        assert weight.std().item() == pytest.approx((6 / 64 / 3) ** 0.5, rel=0.05)


def test_positions_are_fixed_sines_or_learned():
    fixed, learned = mae(), mae(positions="learned")

    assert torch.equal(fixed.backbone.pos_embed, sine_positions((6, 6), 1, 16))
    for learner, moves in ((fixed, False), (learned, True)):
        assert learner.backbone.pos_embed.requires_grad is moves
        assert learner.network.decoder.positions.requires_grad is moves
    assert learned.backbone.pos_embed.std() < 0.05
    one = sine_positions((5, 7), 0, 8)[0]
    assert len(one.unique(dim=0)) == 35  # no two places share a position
    # Row 1, column 2: the first half is of rows, of frequencies 1 and 0.01.
    assert sorted(one[7 + 2].tolist()) == pytest.approx(
        sorted(f(place * band) for f in (math.sin, math.cos) for place in (1, 2) for band in (1, 0.01)), abs=1e-6
    )


def test_weights_that_are_given_stay(tmp_path):
    start = mae(seed=3).backbone
    torch.save(start.state_dict() | {"pos_embed": torch.randn_like(start.pos_embed)}, tmp_path / "start.pt")

    learner = mae(weights=str(tmp_path / "start.pt"))

    saved = torch.load(tmp_path / "start.pt")
    assert all(torch.equal(value, saved[name]) for name, value in learner.backbone.state_dict().items())
    assert not learner.backbone.pos_embed.requires_grad


def test_reconstructions_undo_the_normalisation_of_targets():
    learner = mae().eval()
    image, mask = batch(learner)
    _, mean, std = normalise_patches(patchify(image, (4, 4)))

    patches = patchify(learner.predicted(image, mask), (4, 4))

    torch.testing.assert_close((patches - mean) / std, learner._patches(image, mask), atol=1e-4, rtol=1e-4)


def test_what_mae_alone_cannot_do_is_refused_in_a_sentence():
    swin = {"backbone": "swin_tiny_patch4_window7_224", "image_size": 32}
    cases = [
        (swin | {"backbone_settings": {"embed_dim": 24}}, "the backbone is a SwinTransformer or drops patches itself"),
        (
            {"backbone_settings": TINY | {"patch_drop_rate": 0.5}},
            "drops patches itself; give a vit_ without",
        ),
        ({"decoder_dim": 26}, "decoder_dim=26, .* multiple of 4 and of decoder_heads"),
        ({"decoder_heads": 5}, "decoder_heads=5"),
        ({"decoder_depth": 0}, "decoder_depth=0"),
        ({"positions": "sines"}, "^MAE: positions is 'sines'; give 'sincos' or 'learned'$"),
        ({"backbone_settings": TINY | {"pos_embed": "none"}}, "no table of positions.* pass positions='learned'"),
    ]
    for options, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            mae(**options)

"""Row 139: what is hidden, what is predicted, what is paid for."""

import pytest
import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_images

from lightning_vision.self_supervised.patches import patchify
from lightning_vision.self_supervised.simmim import SimMIM, encode_masked, simmim_loss

VIT = {"backbone": "vit_tiny_patch16_224", "backbone_settings": {"patch_size": 4, "embed_dim": 24, "depth": 2}}
SWIN = {
    "backbone": "swin_tiny_patch4_window7_224",
    "backbone_settings": {
        "patch_size": 2,
        "embed_dim": 12,
        "depths": [2, 2],
        "num_heads": [2, 2],
        "window_size": 4,
        "drop_path_rate": 0.0,
    },
}
SMALL = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
OTHERS = [
    {"backbone": "beit_base_patch16_224", "backbone_settings": SMALL},
    {"backbone": "eva02_tiny_patch14_224", "backbone_settings": SMALL},
    {
        "backbone": "swinv2_tiny_window8_256",
        "backbone_settings": {
            "patch_size": 2,
            "embed_dim": 12,
            "depths": [1, 1],
            "num_heads": [1, 2],
            "window_size": 4,
        },
    },
]
ENCODERS = pytest.mark.parametrize("encoder", [VIT, SWIN], ids=["vit", "swin"])


def simmim(encoder=VIT, **options):
    torch.manual_seed(0)
    return SimMIM(**(encoder | {"image_size": 16, "mask_patch_size": 4} | options))


def batch(learner, images=3):
    random = torch.Generator().manual_seed(1)
    image = torch.randn(images, 3, 16, 16, generator=random)
    return image, learner.mask(torch.rand(images, learner.draws, generator=random))


@ENCODERS
def test_row_139_with_nothing_hidden_the_encoder_is_timms(encoder):
    learner = simmim(encoder).eval()
    image, mask = batch(learner)
    token = learner.network.head.mask_token
    whole = learner.backbone.forward_features(image)

    assert torch.equal(encode_masked(learner.backbone, image, torch.zeros_like(mask), token), whole)
    assert not torch.allclose(encode_masked(learner.backbone, image, mask, token), whole)
    # No trace is left: features see whole images.
    assert torch.equal(learner.backbone.forward_features(image), whole)


@pytest.mark.parametrize("encoder", [VIT, SWIN, *OTHERS], ids=lambda it: it["backbone"].partition("_")[0])
def test_row_139_hidden_pixels_have_no_part_in_the_prediction(encoder):
    learner = simmim(encoder).eval()
    image, mask = batch(learner)
    hidden = learner.hidden_pixels(mask)
    other = torch.randn_like(image).where(hidden, image)

    assert torch.equal(learner.predicted(image, mask), learner.predicted(other, mask))
    assert not torch.allclose(learner.predicted(image, ~mask), learner.predicted(other, ~mask))


@pytest.mark.parametrize("kind", ["l1", "l2", "smooth"])
def test_row_139_the_loss_is_a_mean_over_hidden_pixels_by_hand(kind):
    learner = simmim(loss=kind)
    image, mask = batch(learner)
    hidden, prediction = learner.hidden_pixels(mask), learner.predicted(image, mask).detach()
    total, count = 0.0, 0
    for own, guess, where in zip(image, prediction, hidden[:, 0], strict=True):
        for row, column in where.nonzero().tolist():
            for off in (own[:, row, column] - guess[:, row, column]).tolist():
                small = abs(off) < 1
                paid = {"l1": abs(off), "l2": off**2, "smooth": off**2 / 2 if small else abs(off) - 0.5}
                total, count = total + paid[kind], count + 1

    loss = learner.error(image, mask)

    assert count == 3 * 3 * 16 * 10  # images, channels, pixels of a square, squares: 0.6 of 16, rounded up
    assert loss.item() == pytest.approx(total / count, rel=1e-5)
    altered = image + 5 * (~hidden)
    assert simmim_loss(prediction, altered, hidden, kind) == simmim_loss(prediction, image, hidden, kind)
    # A mutant: over all pixels.
    assert abs(simmim_loss(prediction, altered, torch.ones_like(hidden), kind) - loss) > 0.1


@ENCODERS
def test_row_139_the_hidden_share_is_exact_and_in_squares(encoder):
    learner = simmim(encoder, mask_patch_size=8, mask_ratio=0.5)
    _, mask = batch(learner, images=20)
    squares = learner.hidden_pixels(mask).float().view(20, 2, 8, 2, 8).mean((2, 4))

    assert learner.hidden_pixels(mask).float().mean((1, 2, 3)).tolist() == [0.5] * 20
    assert set(squares.unique().tolist()) == {0.0, 1.0}


@ENCODERS
def test_row_139_the_output_has_the_inputs_shape(encoder):
    for options in ({}, {"head_depth": 2}, {"target_stride": 2}):
        learner = simmim(encoder, **options)
        image, mask = batch(learner)

        assert learner.predicted(image, mask).shape == learner.reconstruct(image, mask).shape == image.shape
        learner.error(image, mask).backward()
        assert learner.network.head.mask_token.grad.abs().sum() > 0


def test_the_head_puts_a_patchs_pixels_into_the_patch():
    learner = simmim().eval()
    image, mask = batch(learner)
    features = encode_masked(learner.backbone, image, mask, learner.network.head.mask_token)[:, 1:]
    layer = learner.network.head.layers[0]

    by_hand = F.linear(features, layer.weight.flatten(1), layer.bias)

    torch.testing.assert_close(patchify(learner.predicted(image, mask), (4, 4)), by_hand)


def test_a_coarse_target_is_the_mean_of_its_pixels():
    learner = simmim(target_stride=2).eval()
    image, mask = batch(learner)
    means = image.view(3, 3, 8, 2, 8, 2).mean((3, 5))
    hidden = mask.view(3, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    off = (learner._pixels(image, mask) - means).abs()

    torch.testing.assert_close(learner.error(image, mask), off[hidden.expand_as(off)].mean())


def test_the_mask_token_takes_the_place_of_the_embedding_before_positions():
    learner = simmim().eval()
    image, mask = batch(learner)
    vit = timm.create_model(VIT["backbone"], img_size=16, num_classes=0, **VIT["backbone_settings"]).eval()
    vit.load_state_dict(learner.backbone.state_dict())
    token = learner.network.head.mask_token
    tokens = vit.patch_embed(image)
    tokens[mask] = token.detach()
    by_hand = vit.norm(vit.blocks(torch.cat([vit.cls_token.expand(3, -1, -1), tokens], 1) + vit.pos_embed))

    torch.testing.assert_close(encode_masked(learner.backbone, image, mask, token), by_hand)


def photo_crops(count, seed, rows):
    """Crops of 16 pixels of scikit-learn's photographs, from some of their rows, mean 0 and deviation 1."""
    random = torch.Generator().manual_seed(seed)
    photos = [torch.from_numpy(it.copy()).permute(2, 0, 1).float() / 255 for it in load_sample_images().images]
    photos = [F.avg_pool2d(photo, 2)[:, rows] for photo in photos]
    crops = []
    for number in range(count):
        photo = photos[number % 2]
        top, left = (int(torch.randint(side - 15, (), generator=random)) for side in photo.shape[1:])
        crops.append(photo[:, top : top + 16, left : left + 16])
    return (torch.stack(crops) - 0.45) / 0.28


def on_photographs(encoder, steps):
    """Loss on crops of unseen parts of the photographs after a training, and that of the mean colour."""
    learner = simmim(encoder)
    crops, unseen = photo_crops(512, 0, slice(0, 150)), photo_crops(128, 1, slice(150, None))
    optimizer = torch.optim.AdamW(learner.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    random = torch.Generator().manual_seed(2)
    for _ in range(steps):
        image = crops[torch.randint(len(crops), (32,), generator=random)]
        loss = learner.losses(image, torch.rand(32, learner.draws, generator=random))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    learner.eval()
    mask = learner.mask(torch.rand(len(unseen), learner.draws, generator=random))
    mean = crops.mean((0, 2, 3), keepdim=True).expand_as(unseen)
    with torch.no_grad():
        return learner.error(unseen, mask), simmim_loss(mean, unseen, learner.hidden_pixels(mask))


def test_row_139_on_photographs_it_falls_below_the_mean_colour():
    own, mean = on_photographs(VIT, 100)

    assert own < 0.6 * mean


@pytest.mark.slow
def test_row_139_on_photographs_a_swin_falls_far_below_the_mean_colour():
    own, mean = on_photographs(SWIN, 300)

    assert own < 0.45 * mean


def test_what_simmim_alone_cannot_do_is_refused_in_a_sentence():
    cases = [
        ({"loss": "l3"}, "loss is 'l3'; give one of l1, l2, smooth"),
        ({"head_depth": 0}, "head_depth is 0; give at least 1 layer"),
        (
            {"target_stride": 3},
            "target_stride is 3; give a divisor of the backbone's stride 4 and of",
        ),
        (
            SWIN | {"image_size": 18, "mask_patch_size": 6},
            r"stride of \(4, 4\) pixels, which does not divide",
        ),
    ]
    for options, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            simmim(**options)

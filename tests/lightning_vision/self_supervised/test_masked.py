"""What MAE and SimMIM share: which patches are hidden, what the loss reads, which sizes fit."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from lightning_vision.callbacks import ExactResume
from lightning_vision.datamodules import PlacedDigits
from lightning_vision.self_supervised.mae import MAE
from lightning_vision.self_supervised.masked import hidden_count, masked_mean, random_mask
from lightning_vision.self_supervised.simmim import SimMIM
from support.joined_losses import alone, on_a_rank
from support.resuming import differences, newest, record
from support.trainers import quiet_trainer


class Pooled(nn.Flatten):
    """A ready network without patches."""

    num_features = 4


TINY = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
VIT = {"backbone": "vit_tiny_patch16_224", "image_size": 24, "in_channels": 1, "backbone_settings": TINY}
DECODER = {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}


def mae(**options):
    torch.manual_seed(0)
    return MAE(**(VIT | DECODER | options))


def simmim(**options):
    torch.manual_seed(0)
    return SimMIM(**(VIT | {"mask_patch_size": 4} | options))


BOTH = pytest.mark.parametrize("make", [mae, simmim])


@pytest.mark.parametrize(("units", "ratio", "hidden"), [(196, 0.75, 147), (36, 0.6, 22), (100, 0.07, 7), (4, 0.01, 1)])
def test_parts_of_a_unit_are_rounded_up_and_roundoff_is_none(units, ratio, hidden):
    assert hidden_count(units, ratio) == hidden


def test_the_share_is_exact_in_each_row_and_a_row_is_a_function_of_its_own_draws():
    uniform = torch.rand(50, 36)
    uniform[0] = 0.5  # ties hide no more and no fewer

    mask = random_mask(uniform, 22)

    assert mask.sum(1).tolist() == [22] * 50
    assert torch.equal(random_mask(uniform[7:9], 22), mask[7:9])
    assert not torch.equal(mask[7], mask[8])


def test_each_unit_is_hidden_as_often_as_the_others():
    often = random_mask(torch.rand(20_000, 6, generator=torch.Generator().manual_seed(0)), 2).float().mean(0)

    torch.testing.assert_close(often, torch.full((6,), 1 / 3), atol=0.015, rtol=0)


def test_two_ranks_with_unequal_rows_are_one_process(two_ranks):
    def joined(views):
        hidden = torch.arange(views.shape[2]) < 2
        return masked_mean(views[0].square(), hidden.expand(views.shape[1:]))

    def of_each(views):
        return views[0, :, :2].square().mean()

    value, gradient = alone(joined, 1, 4)
    ranks = two_ranks(on_a_rank, joined, 1, 4)

    for found, moved in ranks:
        torch.testing.assert_close(found, value)
        torch.testing.assert_close(moved, gradient)
    assert (two_ranks(on_a_rank, of_each, 1, 4)[0][1] - gradient).abs().max() > 1e-3


def test_the_mean_is_that_of_what_is_hidden_by_hand():
    error = torch.tensor([[1.0, 2.0, float("nan")], [4.0, 8.0, 16.0]], requires_grad=True)
    hidden = torch.tensor([[True, True, False], [False, False, True]])

    mean = masked_mean(error, hidden)
    mean.backward()

    assert mean.item() == pytest.approx(19 / 3)
    assert torch.equal(error.grad, hidden.float() / 3)
    assert masked_mean(torch.ones(2, 3, 4), torch.tensor([[[True]], [[False]]])) == 1


@BOTH
def test_units_of_several_patches_are_hidden_whole(make):
    learner = make(mask_patch_size=8, mask_ratio=0.5)

    mask = learner.mask(torch.rand(10, 9)).view(10, 3, 2, 3, 2)
    whole = mask.float().mean((2, 4))

    assert learner.draws == 9
    assert set(whole.unique().tolist()) == {0.0, 1.0}
    assert whole.sum((1, 2)).tolist() == [5.0] * 10


@BOTH
def test_an_images_loss_does_not_depend_on_its_neighbours(make):
    learner = make().eval()
    image, uniform = torch.randn(4, 1, 24, 24), torch.rand(4, learner.draws)
    alone = torch.stack([learner.losses(image[i : i + 1], uniform[i : i + 1])["loss"] for i in range(4)])

    torch.testing.assert_close(learner.losses(image, uniform)["loss"], alone.mean())


@BOTH
def test_all_that_trains_has_a_part_in_the_loss(make):
    """Otherwise DDP waits for gradients that never come; an average pool's norm stands behind the patches."""
    learner = make(backbone_settings=TINY | {"global_pool": "avg"})
    learner.losses(torch.randn(2, 1, 24, 24), torch.rand(2, learner.draws))["loss"].backward()

    assert [name for name, it in learner.named_parameters() if it.requires_grad and it.grad is None] == []
    assert not learner.backbone.fc_norm.weight.requires_grad


@BOTH
def test_what_timm_lists_and_tokens_are_spared_from_weight_decay(make):
    learner = make()
    groups = learner.configure_optimizers().param_groups
    spared = {id(it) for group in groups if group["weight_decay"] == 0 for it in group["params"]}
    (token,) = (it for name, it in learner.named_parameters() if name.endswith("mask_token"))

    assert {id(learner.backbone.cls_token), id(token)} <= spared
    assert id(learner.backbone.patch_embed.proj.weight) not in spared


@BOTH
def test_features_are_those_of_whole_images(make):
    learner = make().eval()
    image = torch.randn(3, 1, 24, 24)

    assert torch.equal(learner.features(image), learner.backbone(image))
    assert torch.equal(learner.features(image), learner.backbone.forward_features(image)[:, 0])
    pooled = make(backbone_settings=TINY | {"global_pool": "avg", "fc_norm": False}).eval()
    torch.testing.assert_close(pooled.features(image), pooled.backbone.forward_features(image)[:, 1:].mean(1))


@BOTH
def test_visible_pixels_of_a_reconstruction_are_the_images_own(make):
    learner = make().eval()
    image, mask = torch.randn(3, 1, 24, 24), learner.mask(torch.rand(3, learner.draws))
    hidden = learner.hidden_pixels(mask)

    found = learner.reconstruct(image, mask)

    assert hidden.shape == image.shape and hidden.float().mean() == mask.float().mean()
    assert torch.equal(found[~hidden], image[~hidden])
    assert (found != image)[hidden].float().mean() > 0.99


@BOTH
def test_a_view_is_hidden_not_the_image(make):
    learner = make(views=[{"size": 24, "crop": None, "flip": 1.0, "jitter": 0.0, "grey": 0.0}]).eval()
    image, uniform = torch.randn(3, 1, 24, 24), torch.rand(3, learner.draws)
    plain = make().eval()

    flipped = plain.losses(image.flip(3), uniform[:, : plain.draws])["loss"]

    assert learner.draws > plain.draws
    torch.testing.assert_close(learner.losses(image, uniform)["loss"], flipped)


def test_a_view_of_another_size_is_what_the_network_is_built_for():
    learner = mae(image_size=32, views=[{"size": 24, "jitter": 0.0, "grey": 0.0}])

    assert learner.backbone.patch_embed.img_size == (24, 24)
    assert learner.losses(torch.randn(2, 1, 32, 32), torch.rand(2, learner.draws))["loss"] > 0


@BOTH
def test_a_resumed_run_hides_what_the_straight_run_does(make, tmp_path):
    def run(folder, **options):
        keeper = ModelCheckpoint(tmp_path / folder, every_n_train_steps=3, save_top_k=-1)
        data = PlacedDigits(batch_size=256)
        return record(make(), None, [keeper, ExactResume()], max_epochs=2, datamodule=data, **options)

    straight, killed = run("straight"), run("killed", kill_at=3)
    resumed = run("resumed", ckpt_path=newest(tmp_path / "killed"))

    assert differences(straight, killed, resumed, lost_rows=1) == []


@BOTH
def test_it_rebuilds_from_its_checkpoint(make, tmp_path):
    learner = make(mask_ratio=0.5)
    trainer = quiet_trainer(max_steps=1, limit_val_batches=0)
    trainer.fit(learner, PlacedDigits(batch_size=8))
    trainer.save_checkpoint(tmp_path / "last.ckpt")

    rebuilt = type(learner).load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)

    assert rebuilt.hidden == 18 and rebuilt.image_size == (24, 24)
    assert all(torch.equal(value, learner.state_dict()[name]) for name, value in rebuilt.state_dict().items())


@BOTH
def test_networks_and_sizes_that_do_not_fit_are_refused_in_a_sentence(make):
    cases = [
        (
            {"backbone": "resnet18", "backbone_settings": None},
            "ResNet does not begin with plain patches; give a",
        ),
        ({"backbone": "mobilenetv3_small_050", "backbone_settings": None}, "MobileNetV3 does not begin with plain"),
        (
            {"backbone": Pooled(), "backbone_settings": None, "image_size": None},
            "this Pooled does not begin with plain patches; give a vision transformer",
        ),
        ({"backbone_settings": None}, "patches of 16 pixels do not divide 24; choose image_size, or patch_size in"),
        ({"backbone_settings": TINY | {"img_size": 32}}, "built for 32 x 32 pixels and would see 24 x 24; make img_"),
        ({"mask_patch_size": 6}, "mask_patch_size is 6; give a multiple of the backbone's patches of 4 pixels that"),
        ({"mask_patch_size": 16}, "mask_patch_size is 16; .* divides the image's 24"),
        ({"mask_patch_size": 0}, "mask_patch_size is 0"),
        ({"mask_ratio": 0.0}, "mask_ratio is 0.0 of 36 units; give a share above 0 that leaves one"),
        ({"mask_ratio": 0.99}, "mask_ratio is 0.99 of 36 units"),
        ({"views": "simclr"}, "predicts parts of one view and `views` gives several"),
    ]
    for options, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            make(**options)


def test_a_datamodule_of_another_size_is_refused_at_set_up_and_a_tensor_at_the_first_batch():
    learner = mae(image_size=32)

    with pytest.raises(ValueError, match=r"MAE sees image_size=\(32, 32\) and PlacedDigits has \(24, 24\); make them"):
        quiet_trainer(max_steps=1).fit(learner, PlacedDigits())
    with pytest.raises(ValueError, match="MAE sees 32 x 32 pixels and got 24 x 24; set image_size"):
        learner.losses(torch.randn(2, 1, 24, 24), torch.rand(2, learner.draws))


@BOTH
def test_a_ready_transformer_says_its_size_itself(make):
    vit = VisionTransformer(img_size=16, in_chans=1, num_classes=0, **TINY)
    weights = {name: value.clone() for name, value in vit.state_dict().items()}

    learner = make(backbone=vit, backbone_settings=None, image_size=None)

    assert learner.image_size == (16, 16) and learner.grid == (4, 4)
    assert all(torch.equal(value, weights[name]) for name, value in learner.backbone.state_dict().items())

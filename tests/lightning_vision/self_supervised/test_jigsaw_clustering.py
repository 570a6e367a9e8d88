"""Both losses of Jigsaw Clustering, its one forward pass, and what it refuses."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_vision.datamodules import PlacedDigits
from lightning_vision.self_supervised.jigsaw_clustering import JigsawClustering, clustering_loss
from lightning_vision.self_supervised.montages import dismantled
from support.joined_losses import alone, on_a_rank
from support.learners import resumed, tiny
from support.trainers import quiet_trainer


def jigsaw(**options):
    return tiny(JigsawClustering, **({"patch_size": 8} | options))


def uniform_for(learner, rows):
    return torch.rand(rows, learner.draws, generator=torch.Generator().manual_seed(0))


def by_hand(embeddings, patches, temperature):
    """The double loop of equation 1, and the mutant whose positives are the patches of one place."""
    rows = F.normalize(embeddings, dim=1)
    right, wrong = [], []
    for i, one in enumerate(rows):
        others = [math.exp(one @ other / temperature) for k, other in enumerate(rows) if k != i]
        terms = [-math.log(math.exp(one @ other / temperature) / sum(others)) for other in rows]
        right += [term for j, term in enumerate(terms) if j != i and j // patches == i // patches]
        wrong += [term for j, term in enumerate(terms) if j != i and j % patches == i % patches]
    return sum(right) / len(right), sum(wrong) / len(wrong)


@pytest.mark.parametrize(("patches", "temperature"), [(4, 0.3), (2, 1.0)])
def test_row_179_the_contrastive_loss_is_the_naive_double_loop(patches, temperature):
    embeddings = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    right, wrong = by_hand(embeddings, patches, temperature)

    assert clustering_loss(embeddings, patches, temperature).item() == pytest.approx(right)
    assert abs(right - wrong) > 1e-2


def test_equal_answers_cost_the_logarithm_of_all_others():
    assert clustering_loss(torch.ones(12, 5), 4, 0.3).item() == pytest.approx(math.log(11))


def test_images_apart_cost_the_logarithm_of_the_other_patches_of_one():
    embeddings = torch.eye(3).repeat_interleave(4, 0)

    assert clustering_loss(embeddings, 4, 0.01).item() == pytest.approx(math.log(3), abs=1e-4)


def test_two_ranks_with_unequal_rows_are_one_process(two_ranks):
    """A row becomes the four patches of an image."""

    def joined(views):
        return clustering_loss(views.movedim(0, 1).flatten(0, 1), 4, 0.3)

    def apart(views):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lightning_vision.self_supervised.jigsaw_clustering.gather", lambda rows: rows)
            return joined(views)

    expected = alone(joined, 4, 4)
    for found in two_ranks(on_a_rank, joined, 4, 4):
        torch.testing.assert_close(found, expected)
    assert (two_ranks(on_a_rank, apart, 4, 4)[0][1] - expected[1]).abs().max() > 1e-2


def test_row_179_the_backbone_sees_a_batch_of_montages_once():
    learner = jigsaw()
    seen = []
    first = next(part for part in learner.backbone.modules() if isinstance(part, nn.Conv2d))
    first.register_forward_hook(lambda _part, inputs, _output: seen.append(inputs[0].shape))
    learner.losses(torch.randn(6, 1, 16, 16), uniform_for(learner, 6))

    assert seen == [(6, 1, 16, 16)]


def test_row_179_the_location_branch_begins_at_chance():
    learner = jigsaw()
    terms = learner.losses(torch.randn(8, 1, 16, 16), uniform_for(learner, 8))
    for parameter in learner.network.get_submodule("locator").parameters():
        nn.init.zeros_(parameter)
    level = learner.losses(torch.randn(8, 1, 16, 16), uniform_for(learner, 8))

    assert abs(terms["location"].item() - math.log(4)) < 0.3
    assert level["location"].item() == pytest.approx(math.log(4))


def test_features_of_a_patch_are_those_of_its_part_of_the_map():
    """A network that looks at single pixels sees the same in a montage as in the patch alone."""

    class Pixels(nn.Module):
        num_features = 3

        def forward_features(self, image):
            return image.repeat(1, 3, 1, 1) * torch.arange(1.0, 4).view(1, 3, 1, 1)

        def forward(self, image):
            return self.forward_features(image).mean((2, 3))

    own = JigsawClustering(backbone=Pixels(), in_channels=1, views="digits", patch_size=4, overlap=0.25)
    image, uniform = torch.randn(5, 1, 8, 8), uniform_for(own, 5)
    patches = own.patches(image, uniform[:, 4:])
    seen = []
    own.network.get_submodule("locator").register_forward_hook(lambda _part, inputs, _output: seen.append(inputs[0]))
    own.losses(image, uniform)

    torch.testing.assert_close(seen[0], own.backbone(patches))


def test_patches_lie_where_they_were_cut():
    plain = [{"crop": None, "flip": 0.0, "grey": 0.0}]
    learner = jigsaw(views=plain, overlap=0.0)
    image = torch.randn(3, 1, 16, 16)
    patches = learner.patches(image, uniform_for(learner, 3)[:, 4:]).unflatten(0, (3, 4))

    torch.testing.assert_close(patches[:, 1], image[:, :, :8, 8:])
    torch.testing.assert_close(patches[:, 2], image[:, :, 8:, :8])


def test_the_location_branch_is_told_where_a_patch_was():
    """Images whose quarters are 0, 1, 2 and 3, and a branch that reads the number."""
    plain = [{"crop": None, "flip": 0.0, "jitter": 0.0, "grey": 0.0}]
    learner = jigsaw(views=plain, overlap=0.0).eval()
    image = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).repeat_interleave(8, 0).repeat_interleave(8, 1).expand(5, 1, 16, 16)

    class Reads(torch.nn.Module):
        def forward(self, features):
            return 9 * torch.nn.functional.one_hot(features[:, 0].round().long(), 4).float()

    learner._parts = lambda montage: dismantled(montage, 2).mean((2, 3))
    learner.network.locator, learner.network.projector = Reads(), torch.nn.Linear(1, 2)
    terms = learner.losses(image, uniform_for(learner, 5))

    assert terms["acc"] == 1
    assert terms["location"] < 1e-3


def test_the_whole_loss_weighs_its_branches():
    learner = jigsaw(alpha=2.0, beta=0.5)
    terms = learner.losses(torch.randn(4, 1, 16, 16), uniform_for(learner, 4))

    torch.testing.assert_close(terms["loss"], 2 * terms["clustering"] + 0.5 * terms["location"])


@pytest.mark.parametrize(
    ("backbone", "settings"),
    [
        ("vit_tiny_patch16_224", {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}),
        ("swin_tiny_patch4_window7_224", {"img_size": 16, "patch_size": 2, "window_size": 2, "embed_dim": 8,
         "depths": [1], "num_heads": [1]}),
    ],
)  # fmt: skip
def test_transformers_have_maps_too(backbone, settings):
    learner = JigsawClustering(
        backbone=backbone, in_channels=1, backbone_settings=settings, views="digits", patch_size=8
    )

    assert learner.losses(torch.randn(3, 1, 16, 16), uniform_for(learner, 3))["loss"].isfinite()


def test_a_resumed_run_is_the_straight_one(tmp_path):
    assert resumed(jigsaw, tmp_path) == []


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="the _Flat given as backbone has no `forward_features`"):
        JigsawClustering(backbone=_Flat())
    with pytest.raises(ValueError, match=r"grid is 1 and overlap 0.3; give at least 2"):
        jigsaw(grid=1)
    with pytest.raises(ValueError, match=r"temperature is 0, alpha 1.0 and beta 1.0; give one above 0, and 0 or more"):
        jigsaw(temperature=0)
    with pytest.raises(ValueError, match="a batch has 1 image and JigsawClustering needs 2"):
        quiet_trainer(max_steps=1).fit(jigsaw(), PlacedDigits(batch_size=1))


def test_maps_that_the_grid_does_not_divide_are_refused_at_set_up():
    """A quarter of 24 pixels."""
    learner = JigsawClustering(backbone="resnet8_cifar", in_channels=1, views="digits", grid=4, patch_size=6)

    with pytest.raises(ValueError, match="the backbone's map of a montage is 6 x 6 and cannot be cut into 4 x 4 parts"):
        quiet_trainer(max_steps=1).fit(learner, PlacedDigits())


class _Flat(nn.Flatten):
    num_features = 4


def neighbours_found(learner, data):
    """How often the nearest of the training images, by cosine of features, is of a test image's class."""
    learner.eval()
    sets = []
    for loader in (data.train_dataloader(), data.test_dataloader()):
        batches = [data.on_after_batch_transfer(batch, 0) for batch in loader]
        with torch.no_grad():
            rows = torch.cat([F.normalize(learner.features(batch[0]), dim=1) for batch in batches])
        sets.append((rows, torch.cat([batch[1] for batch in batches])))
    (bank, labels), (asked, truth) = sets
    return (labels[(asked @ bank.T).argmax(1)] == truth).float().mean().item()


@pytest.mark.slow
def test_row_179_neighbours_are_of_one_class_more_often_than_before():
    torch.manual_seed(0)
    learner = JigsawClustering(
        backbone="resnet8_cifar", in_channels=1, views="digits", optimizer=partial(torch.optim.AdamW, lr=0.003)
    )
    data = PlacedDigits(batch_size=128)
    trainer = quiet_trainer(max_epochs=20, limit_val_batches=0)
    trainer.fit(learner, data)
    torch.manual_seed(0)
    untrained = JigsawClustering(backbone="resnet8_cifar", in_channels=1, views="digits")
    untrained.preprocessing = learner.preprocessing
    before = neighbours_found(untrained, data)

    assert neighbours_found(learner, data) > before + 0.05

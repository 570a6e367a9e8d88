"""Faster, Cascade and Mask R-CNN on levels: torchvision's shapes, sizes that follow the image, what is refused."""

import copy
import pickle
from collections import OrderedDict
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn, maskrcnn_resnet50_fpn

from lightning_vision.datamodules import DigitScenes
from lightning_vision.detection.cascade_rcnn import cascade_rcnn
from lightning_vision.detection.detector import ObjectDetector
from lightning_vision.detection.network import DetectionNetwork
from lightning_vision.detection.pyramid import ModuleLevels, TimmLevels
from lightning_vision.detection.settings import DetectorSettings
from lightning_vision.detection.two_stage import PooledPyramid, box_pool, faster_rcnn, mask_rcnn
from support.trainers import quiet_trainer

BUILDERS = {"faster_rcnn": faster_rcnn, "cascade_rcnn": cascade_rcnn, "mask_rcnn": mask_rcnn}
EVERY = pytest.mark.parametrize("architecture", BUILDERS)


class Patches(nn.Module):
    """A network of no depth: the mean colour of patches of several sides."""

    def __init__(self, sides: tuple[int, ...]) -> None:
        super().__init__()
        self.sides = sides

    def forward(self, images: Tensor) -> list[Tensor]:
        return [F.avg_pool2d(images, side) for side in self.sides]


def _levels(strides: tuple[int, ...] = (4, 8, 16, 32, 64)) -> TimmLevels:
    return TimmLevels("test_resnet", strides)


def _small(architecture: str, **options: Any) -> DetectionNetwork:
    torch.manual_seed(0)
    settings = DetectorSettings(3, (64, 64), (0.1, 0.6), 16)
    return BUILDERS[architecture](_levels((8, 16, 32)), settings, boxes_per_image=32, **options)


def _targets(*counts: int, side: int = 64) -> list[dict[str, Tensor]]:
    """Targets with this many objects, all of which are the image's upper left quarter."""
    return [
        {
            "boxes": torch.tensor([[0.0, 0.0, side / 2, side / 2]]).repeat(count, 1),
            "labels": torch.ones(count, dtype=torch.int64),
            "masks": torch.ones(count, side, side, dtype=torch.uint8),
        }
        for count in counts
    ]


@pytest.mark.parametrize(
    ("builder", "theirs"), [(faster_rcnn, fasterrcnn_resnet50_fpn), (mask_rcnn, maskrcnn_resnet50_fpn)]
)
def test_with_256_channels_all_but_the_backbone_has_torchvisions_names_and_shapes(builder: Any, theirs: Any) -> None:
    ours = builder(_levels(), DetectorSettings(90, (800, 800))).model
    with torch.device("meta"):
        model = theirs(weights=None, weights_backbone=None, num_classes=91)
    expected, found = (
        {name: it.shape for name, it in network.state_dict().items() if name.split(".")[0] in ("rpn", "roi_heads")}
        for network in (model, ours)
    )

    assert expected == found
    assert len(expected) > 10


def test_anchors_and_pooling_of_an_image_of_800_pixels_begin_where_the_published_ones_do() -> None:
    settings = DetectorSettings(90, (800, 1333))
    model = faster_rcnn(_levels(), settings).model

    assert [sizes[0] for sizes in model.rpn.anchor_generator.sizes][:: len(model.backbone.strides) - 1] == [32.0, 800.0]
    assert model.roi_heads.box_roi_pool.canonical_scale == 224
    assert box_pool(_levels((8, 16, 32)), settings, 7).canonical_scale == 112
    assert box_pool(_levels(), DetectorSettings(90, (1600, 1600)), 7).canonical_scale == 448


@pytest.mark.parametrize(("side", "place"), [(10, 0), (55, 0), (58, 1), (110, 1), (114, 2)])
def test_a_small_images_box_is_pooled_from_the_map_on_which_it_has_seven_places(side: int, place: int) -> None:
    pool = box_pool(_levels((4, 8, 16, 32)), DetectorSettings(3, (128, 128)), 7)
    maps = OrderedDict(
        (str(number), torch.full((1, 1, 128 // stride, 128 // stride), float(number)))
        for number, stride in enumerate((4, 8, 16, 32))
    )
    pooled = pool(maps, [torch.tensor([[0.0, 0.0, side, side]])], [(128, 128)])

    torch.testing.assert_close(pooled, torch.full((1, 1, 7, 7), float(place)))


@pytest.mark.parametrize(("strides", "side"), [((8, 16), 33), ((8, 16), 64), ((14,), 56)])
def test_a_box_is_pooled_from_where_it_is_whatever_images_came_first(strides: tuple[int, ...], side: int) -> None:
    levels = ModuleLevels(Patches(strides), strides, 3, (112, 112))
    pool = box_pool(levels, DetectorSettings(3, (112, 112)), 7)
    padded = -(-side // strides[-1]) * strides[-1]
    # Each place says how far from the left it is, in pixels; torchvision's pooling counts from its left edge.
    maps = {
        str(place): (1.0 * stride * torch.arange(padded // stride)).expand(1, 1, padded // stride, -1)
        for place, stride in enumerate(strides)
    }
    box = torch.tensor([[10.0, 10.0, 30.0, 30.0]])

    assert pool(maps, [box], [(side, side)]).mean().item() == pytest.approx(20.0, abs=1e-3)


def test_sizes_of_anchors_leave_no_gap_however_few_maps_there_are() -> None:
    for strides, sizes in (
        ((8,), (0.1, 0.4)),
        ((8, 16), (0.1, 0.4)),
        ((8, 16), (0.04, 1.0)),
        ((8, 16, 32), (0.1, 0.4)),
    ):
        generator = faster_rcnn(_levels(strides), DetectorSettings(3, (128, 128), sizes)).model.rpn.anchor_generator
        sides = [side for of_map in generator.sizes for side in of_map]

        assert (sides[0], sides[-1]) == pytest.approx((128 * sizes[0], 128 * sizes[1]))
        assert max(coarser / finer for finer, coarser in pairwise(sides)) <= 2.5


def test_a_pyramid_goes_on_by_every_second_place_of_its_last_map() -> None:
    pyramid = PooledPyramid(_levels(), 16)
    maps = pyramid(torch.randn(1, 3, 128, 128))

    assert list(maps) == ["0", "1", "2", "3", "4"]
    assert torch.equal(maps["3"][:, :, ::2, ::2], maps["4"])
    assert [tuple(maps[name].shape[2:]) for name in ("0", "4")] == [(32, 32), (2, 2)]


@EVERY
def test_images_without_objects_give_finite_losses(architecture: str) -> None:
    network = _small(architecture)
    images = torch.randn(2, 3, 64, 64)
    for targets in (_targets(0, 0), _targets(0, 2)):
        losses = network.losses(images, targets)
        network.zero_grad()
        torch.stack(list(losses.values())).sum().backward()

        assert all(bool(loss.isfinite()) for loss in losses.values())
        # Under DDP a parameter without a gradient is an error.
        assert all(it.grad is not None and bool(it.grad.isfinite().all()) for it in network.parameters())
    found = network.eval().detect(torch.randn(1, 3, 64, 64))[0]

    assert ({"masks"} if architecture == "mask_rcnn" else set()) | {"boxes", "labels", "scores"} == found.keys()


@EVERY
def test_a_batch_with_no_positive_but_the_objects_gives_finite_losses(architecture: str) -> None:
    network = _small(architecture)
    targets = _targets(1, 1)
    for target in targets:
        target["boxes"] = torch.tensor([[10.0, 10.0, 10.5, 10.5]])
    losses = network.losses(torch.randn(2, 3, 64, 64), targets)

    assert all(bool(loss.isfinite()) for loss in losses.values())


@EVERY
def test_half_precision_keeps_boxes_in_full_precision(architecture: str) -> None:
    network = _small(architecture)
    moves: list[Tensor] = []
    network.model.rpn.head.register_forward_hook(lambda _, given, output: moves.extend(output[1]))
    with torch.autocast("cpu", torch.bfloat16):
        network.losses(torch.randn(2, 3, 64, 64), _targets(1, 1))
        found = network.eval().detect(torch.randn(1, 3, 64, 64))

    # From moves in half precision torchvision makes centres in half precision, a grid of half a pixel at 100.
    assert {it.dtype for it in [*moves, *(it["boxes"] for it in found)]} == {torch.float32}


@EVERY
def test_copies_and_pickles_find_what_the_network_finds(architecture: str) -> None:
    network = _small(architecture).eval()
    images = torch.randn(1, 3, 64, 64)
    expected = network(images)[0]

    assert len(expected["boxes"]) > 0
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert all(torch.equal(value, other(images)[0][name]) for name, value in expected.items())


@EVERY
def test_images_of_several_sizes_have_detections_inside_them(architecture: str) -> None:
    images = [torch.randn(3, 50, 64), torch.randn(3, 64, 40)]
    found = _small(architecture).eval()(images)

    for image, detections in zip(images, found, strict=True):
        assert len(detections["boxes"]) > 0
        assert bool((detections["boxes"][:, [0, 2]] <= image.shape[2]).all())
        assert bool((detections["boxes"][:, [1, 3]] <= image.shape[1]).all())


def test_masks_are_probabilities_of_the_images_pixels() -> None:
    found = _small("mask_rcnn").eval()(torch.randn(1, 3, 64, 48))[0]

    assert (len(found["boxes"]), 1, 64, 48) == found["masks"].shape
    assert 0 <= found["masks"].min() < found["masks"].max() <= 1


def test_targets_without_masks_are_refused_in_a_sentence() -> None:
    network = _small("mask_rcnn")
    targets = _targets(1, 1)
    del targets[1]["masks"]

    with pytest.raises(ValueError, match="target 1 of the batch has none; give a datamodule with masks=True"):
        network.losses(torch.randn(2, 3, 64, 64), targets)


def test_a_datamodule_without_masks_is_refused_before_training() -> None:
    module = ObjectDetector("mask_rcnn", "test_resnet", 10, image_size=64, strides=[8, 16], pyramid_channels=8)

    with pytest.raises(ValueError, match="DigitScenes gives none; pass it masks=True, or take faster_rcnn"):
        quiet_trainer(max_steps=1).fit(module, DigitScenes(train_images=2, val_images=2, batch_size=2))


@EVERY
def test_strides_that_do_not_double_are_refused(architecture: str) -> None:
    with pytest.raises(ValueError, match=r"strides that double, as \[4, 8\], not \[4, 16\]"):
        BUILDERS[architecture](_levels((4, 16)), DetectorSettings(3, (64, 64)))


@EVERY
@pytest.mark.parametrize(("name", "value"), [("proposals", 0), ("boxes_per_image", 0), ("positive_fraction", 0.0)])
def test_numbers_of_boxes_that_are_none_are_refused(architecture: str, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}={value}"):
        BUILDERS[architecture](_levels((8, 16)), DetectorSettings(3, (64, 64)), **{name: value})


@EVERY
def test_no_more_is_proposed_than_was_asked_for_and_twice_that_while_training(architecture: str) -> None:
    network = _small(architecture, proposals=9)
    counts = []
    network.model.roi_heads.register_forward_pre_hook(lambda _, given: counts.append(len(given[1][0])))
    network.losses(torch.randn(1, 3, 64, 64), _targets(1))
    network.eval()(torch.randn(1, 3, 64, 64))

    assert counts == [18, 9]

"""FCOS: which place learns what."""

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator

from lightning_vision.detection.fcos import RangedFCOS, assign_points, fcos
from lightning_vision.detection.pyramid import TimmLevels
from lightning_vision.detection.settings import DetectorSettings
from support.shapes import shapes

POINTS = torch.tensor([[4.0, 4.0], [12.0, 12.0], [40.0, 40.0]])
STRIDES = torch.full((3,), 8.0)
EVERYTHING = torch.zeros(3), torch.full((3,), torch.inf)


def test_a_place_learns_the_smallest_object_around_it() -> None:
    boxes = torch.tensor([[0.0, 0.0, 20.0, 20.0], [6.0, 6.0, 17.0, 17.0]])

    assert assign_points(POINTS, STRIDES, EVERYTHING, boxes, 1.5).tolist() == [0, 1, -1]


def test_a_place_far_from_the_centre_or_out_of_range_learns_the_background() -> None:
    boxes = torch.tensor([[0.0, 0.0, 20.0, 20.0]])
    near = torch.zeros(3), torch.full((3,), 14.0)

    assert assign_points(POINTS, STRIDES, EVERYTHING, boxes, 0.5).tolist() == [-1, 0, -1]
    # The farthest side is 16 pixels from the first place and 12 from the second.
    assert assign_points(POINTS, STRIDES, near, boxes, 1.5).tolist() == [-1, 0, -1]
    assert assign_points(POINTS, STRIDES, EVERYTHING, boxes[:0], 1.5).tolist() == [-1, -1, -1]


def network(side: int = 64) -> RangedFCOS:
    settings = DetectorSettings(2, (side, side), pyramid_channels=32)
    model = fcos(TimmLevels("test_byobnet", [8, 16, 32]), settings).train().model
    assert isinstance(model, RangedFCOS)
    return model


def losses(model: FCOS, images: Tensor, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    found: dict[str, Tensor] = model(images, targets)
    return found


@pytest.mark.parametrize(("bounds", "same"), [([64.0, 128.0], True), ([10.0, 20.0], False)])
def test_at_torchvisions_bounds_the_losses_are_torchvisions(bounds: list[float], same: bool) -> None:
    ours = network()
    theirs = FCOS(
        ours.backbone, 3, anchor_generator=AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3), head=ours.head
    )
    theirs.transform = ours.transform
    ours.bounds = bounds
    images, targets = shapes(3)
    # Both see the batch alike: statistics of batch norms are not kept in this order of calls, only used.
    first, second = losses(ours, images, targets), losses(theirs.train(), images, targets)

    assert all(torch.equal(first[name], second[name]) for name in first) is same


def test_bounds_lie_between_the_sizes_of_neighbouring_maps() -> None:
    model = network(800)

    assert model.bounds == pytest.approx([32 * 25 ** (2.5 / 8), 32 * 25 ** (5.5 / 8)], rel=1e-5)


def test_channels_that_the_groups_do_not_divide_are_refused() -> None:
    with pytest.raises(
        ValueError, match="pyramid_channels=48 is no multiple of the 32 groups of the head's norms; take"
    ):
        fcos(TimmLevels("test_byobnet", [8]), DetectorSettings(2, (64, 64), pyramid_channels=48))

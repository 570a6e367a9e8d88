"""Packed objects: the same as dictionaries image by image, whole after they were moved, copied or thinned out."""

from dataclasses import replace

import torch

from lightning_vision.datamodules.detection.annotations import Annotations


def packed() -> Annotations:
    """Three images with two, no and one object."""
    return Annotations(
        boxes=torch.arange(12.0).view(3, 4),
        labels=torch.tensor([3, 1, 2]),
        sample=torch.tensor([0, 0, 2]),
        crowd=torch.tensor([False, True, False]),
        area=torch.tensor([16.0, 15.0, 14.0]),
        image_id=torch.tensor([70, 80, 90]),
        placement=torch.tensor([[1.0, 1.0, 0.0, 0.0]]).repeat(3, 1),
        size=torch.tensor([[8, 9]] * 3),
        masks=torch.arange(3, dtype=torch.uint8)[:, None, None].repeat(1, 8, 9),
    )


def test_each_image_has_its_own_objects() -> None:
    first, second, third = packed().targets()

    assert first["boxes"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert third["boxes"].tolist() == [[8, 9, 10, 11]]
    assert tuple(it["labels"].tolist() for it in (first, second, third)) == ([3, 1], [], [2])
    assert tuple(it["iscrowd"].tolist() for it in (first, second, third)) == ([0, 1], [], [0])
    assert torch.int64 == first["iscrowd"].dtype
    assert [int(it["image_id"]) for it in (first, second, third)] == [70, 80, 90]
    assert tuple(second["boxes"].shape) == (0, 4)
    assert tuple(second["masks"].shape) == (0, 8, 9)
    assert third["masks"].unique().tolist() == [2]


def test_images_after_the_last_object_are_images_too() -> None:
    found = packed().keep(torch.tensor([True, False, False]))

    assert [len(it["boxes"]) for it in found] == [1, 0, 0]
    assert len(found) == 3


def test_what_is_kept_keeps_all_that_belongs_to_it() -> None:
    found = packed().keep(torch.tensor([False, True, True]))
    first, _, third = found.targets()

    assert tuple(first[name].tolist() for name in ("labels", "area", "iscrowd")) == ([1], [15.0], [1])
    assert tuple(third[name].tolist() for name in ("labels", "area", "iscrowd")) == ([2], [14.0], [0])
    assert found.masks is not None
    assert found.masks[:, 0, 0].tolist() == [1, 2]
    assert found.image_id.tolist() == [70, 80, 90]


def test_all_tensors_move_to_a_device() -> None:
    # All that there can be, so that a part that is added is moved too.
    whole = replace(packed(), verified=torch.ones(3, 2))
    moved = whole.to("meta")

    assert {"meta"} == {value.device.type for value in vars(moved).values()}
    assert {"masks", "verified"}.isdisjoint(replace(whole, masks=None, verified=None).to("cpu").targets()[0])

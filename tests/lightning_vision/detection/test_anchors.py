"""Sizes of anchors follow the image and its objects; so do the maps that are looked at."""

import pytest

from lightning_vision.detection.anchors import spread_sizes
from lightning_vision.detection.architectures import default_strides
from lightning_vision.detection.settings import DetectorSettings


def test_for_images_of_800_pixels_sizes_are_nearly_retinanets() -> None:
    found = spread_sizes(DetectorSettings(1, (800, 1333)), 5, 3)
    published = [tuple(base * 2 ** (octave / 3) for octave in range(3)) for base in (32, 64, 128, 256, 512)]

    assert [len(sides) for sides in found] == [3] * 5
    for ours, theirs in zip(found, published, strict=True):
        assert ours == pytest.approx(theirs, rel=0.02)


def test_sizes_grow_with_the_image_and_end_where_objects_end() -> None:
    for side in (100, 200):
        found = spread_sizes(DetectorSettings(1, (side, 2 * side), object_sizes=(0.1, 0.8)), 4)

        assert found == [(pytest.approx(0.1 * side * 2**level),) for level in range(4)]
    assert spread_sizes(DetectorSettings(1, (100, 100), object_sizes=(0.1, 0.8)), 1) == [(10.0,)]


@pytest.mark.parametrize(
    ("architecture", "side", "strides"),
    [
        ("fcos", 800, [8, 16, 32, 64, 128]),
        ("retinanet", 128, [8, 16]),
        ("faster_rcnn", 512, [4, 8, 16, 32, 64]),
        ("fcos", 32, [8]),
        ("ssd", 300, [8, 16, 32, 64, 128, 256]),
        ("ssdlite", 320, [16, 32, 64, 128, 256]),
    ],
)
def test_maps_that_are_too_coarse_for_the_image_are_left_out(architecture: str, side: int, strides: list[int]) -> None:
    assert default_strides(architecture, (side, side + 10)) == strides

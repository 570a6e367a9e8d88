"""Maps are colours by value, over their images or alone."""

import numpy as np
import pytest

from lightning_vision.callbacks.explain.sheet import overlay, signed_picture


def plain(height, width, value):
    return np.full((height, width, 3), value, dtype=np.uint8)


def test_a_map_is_red_at_its_maximum_and_blue_where_it_is_zero():
    image, heat = plain(2, 2, 128), np.array([[0.0, -3.0], [2.0, 4.0]])
    picture = overlay(image, heat, alpha=1.0).astype(int)

    assert picture[0, 0].tolist() == picture[0, 1].tolist()
    assert picture[0, 0].argmax() == 2
    assert picture[1, 1].argmax() == 0
    assert np.array_equal(overlay(image, heat, alpha=0.0), image)
    assert np.array_equal(overlay(image, heat * 1e-6), overlay(image, heat))


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_map_without_a_maximum_is_drawn_without_a_warning(value, recwarn):
    picture = overlay(plain(3, 3, 100), np.full((3, 3), value))

    assert picture.shape == (3, 3, 3)
    assert list(recwarn) == []


def test_signs_are_colours():
    values = np.zeros((20, 20))
    values[0], values[1], values[2, 0] = 1.0, -1.0, 1000.0
    picture = signed_picture(values)

    assert picture[0, 5].tolist() == [255, 0, 0]
    assert picture[1, 5].tolist() == [0, 0, 255]
    assert picture[9, 9].min() >= 254
    assert picture[2, 0].tolist() == [255, 0, 0]


def test_a_map_of_nothing_shows_the_image_and_a_maximum_is_bright_on_black():
    image = plain(3, 3, 100)
    peak = overlay(plain(3, 3, 0), np.eye(3), alpha=0.5).astype(int)

    assert np.array_equal(overlay(image, np.zeros((3, 3))), image)
    assert peak[1, 1].max() > 100
    assert peak[1, 1, 0] > 2 * peak[1, 1, 1:].max()

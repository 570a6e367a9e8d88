"""Sheets show what they are given: colours by value, pictures in their places, text that fits."""

import numpy as np
import pytest

from lightning_vision.callbacks.explain.sheet import GAP, LINE, contact_sheet, overlay, signed_picture


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


def test_pictures_stand_side_by_side_above_their_text():
    left, right = plain(100, 120, 10), plain(100, 120, 200)
    sheet = contact_sheet([([left, right], "one\ntwo")] * 3, columns=2)
    width, height = 242, 100 + 2 * LINE + GAP

    assert sheet.shape == (GAP + 2 * (height + GAP), GAP + 2 * (width + 2 * GAP), 3)
    for row, column in ((0, 0), (0, 1), (1, 0)):
        cell = sheet[GAP + row * (height + GAP) :, GAP + column * (width + 2 * GAP) :][:height, :width]

        assert np.array_equal(cell[:100, :120], left)
        assert np.array_equal(cell[:100, 122:], right)
        assert (cell[100:] < 128).any()
    assert (sheet[GAP + height + GAP :, GAP + width + 2 * GAP :] == 255).all()


@pytest.mark.parametrize(("side", "shown"), [(8, 112), (32, 128), (100, 100), (224, 224), (1000, 320)])
def test_small_pictures_are_enlarged_by_whole_factors_and_large_ones_reduced(side, shown):
    picture = plain(side, side, 255)
    picture[: side // 2] = 0
    sheet = contact_sheet([([picture], "")])

    assert sheet.shape[1] == shown + 3 * GAP
    assert (sheet[GAP : GAP + shown // 2 - 1, GAP : GAP + shown] < 5).all()
    assert (sheet[GAP + shown // 2 + 1 : GAP + shown, GAP : GAP + shown] > 250).all()


def test_text_that_does_not_fit_is_cut_and_other_alphabets_are_drawn():
    sheets = [contact_sheet([([plain(112, 112, 0)], text)]) for text in ("w" * 200, "w" * 300, "собака", "κύων", "")]

    assert np.array_equal(sheets[0], sheets[1])
    assert all(it.shape == sheets[0].shape for it in sheets)
    assert all((sheets[index] != sheets[-1]).any() for index in range(4))
    assert (sheets[2] != sheets[3]).any()


def test_pictures_of_many_sizes_share_a_sheet():
    sheet = contact_sheet([([plain(120, 200, 0)] * 2, "a"), ([plain(200, 120, 0)], "b")])

    assert sheet.shape == (GAP + 200 + LINE + GAP + GAP, GAP + 2 * (402 + 2 * GAP), 3)

"""Sheets show what they are given: pictures in their places, text that fits, in any alphabet."""

import numpy as np
import pytest
import torch

from lightning_vision.callbacks.evaluation._scatter import scatter_picture
from lightning_vision.callbacks.evaluation._sheets import confusion_sheet
from lightning_vision.callbacks.hooks._sheet import GAP, LINE, contact_sheet


def plain(height, width, value):
    return np.full((height, width, 3), value, dtype=np.uint8)


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


@pytest.mark.parametrize(("side", "shown"), [(8, 96), (32, 96), (100, 100), (224, 224), (1000, 320)])
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


def matrix(*names):
    counts = torch.full((2, 3), 2)
    return confusion_sheet({"names": list(names), "counts": counts, "confusions": torch.tensor([[0, 1, 1]])})


def points(*names):
    return scatter_picture(np.eye(2), [0, 1], names, "")


@pytest.mark.parametrize("drawn", [matrix, points])
def test_names_of_classes_in_other_alphabets_are_no_boxes(drawn):
    """A letter that a font has not is drawn as the same box as every other such letter."""
    first, second, third = drawn("ж", "и"), drawn("и", "ж"), drawn("ψ", "ω")

    assert first.shape != second.shape or not np.array_equal(first, second)
    assert first.shape != third.shape or not np.array_equal(first, third)

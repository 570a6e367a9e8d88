"""The pointing game: hits by hand, tolerance, ties, and quantus."""

import pytest
import quantus
import torch

from lightning_vision.explain import box_masks, pointing_game


def peak_at(*places):
    maps = torch.zeros(len(places), 10, 12)
    for index, (row, column) in enumerate(places):
        maps[index, row, column] = 1
    return maps


BOX = torch.tensor([[3, 2, 7, 5]])  # columns 3 to 6, rows 2 to 4


@pytest.mark.parametrize(
    ("place", "hit"), [((2, 3), 1), ((4, 6), 1), ((5, 6), 0), ((4, 7), 0), ((1, 3), 0), ((2, 2), 0)]
)
def test_row_53_a_peak_in_the_box_hits_and_one_beside_it_misses(place, hit):
    assert pointing_game(peak_at(place), box_masks(BOX, (10, 12))).tolist() == [hit]


def test_a_miss_within_the_tolerance_hits():
    masks = box_masks(BOX, (10, 12))
    # Three rows below and four columns beside the corner (4, 6).
    maps = peak_at((7, 10))

    assert pointing_game(maps, masks, tolerance=4).item() == 0
    assert pointing_game(maps, masks, tolerance=5).item() == 1


def test_a_constant_map_scores_as_chance():
    masks = box_masks(BOX, (10, 12))

    assert pointing_game(torch.ones(1, 10, 12), masks).item() == pytest.approx(12 / 120)


def test_it_equals_quantus():
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(20, 10, 12, generator=generator)
    masks = box_masks(torch.tensor([[2, 1, 9, 8]]).expand(20, -1), (10, 12))
    game = quantus.PointingGame(abs=False, normalise=False, disable_warnings=True, display_progressbar=False)
    theirs = game(
        model=None,
        x_batch=maps[:, None].numpy(),
        y_batch=torch.zeros(20).long().numpy(),
        a_batch=maps[:, None].numpy(),
        s_batch=masks[:, None].numpy(),
        channel_first=True,
    )

    ours = pointing_game(maps, masks)
    assert ours.bool().tolist() == [bool(it) for it in theirs]
    assert 0 < ours.mean() < 1


@pytest.mark.parametrize(
    ("objects", "tolerance", "message"),
    [
        (torch.ones(1, 10, 12), 0, r"objects are torch.float32 \(1, 10, 12\) for maps \(1, 10, 12\); give bool masks"),
        (torch.ones(1, 4).bool(), 0, "give bool masks of the same shape, as box_masks makes them of boxes"),
        (torch.zeros(1, 10, 12).bool(), 0, "a mask has no pixel of an object"),
        (torch.ones(1, 10, 12).bool(), -1, "tolerance is -1; give pixels"),
    ],
)
def test_what_does_not_fit_is_refused(objects, tolerance, message):
    with pytest.raises(ValueError, match=message):
        pointing_game(torch.rand(1, 10, 12), objects, tolerance)

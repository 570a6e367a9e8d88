"""Patches cut out, shuffled into montages and put back; everything is exact."""

import pytest
import torch

from lightning_vision.self_supervised.montages import dismantled, montages, patch_boxes, shuffle, unshuffled


def test_without_overlap_patches_are_cells_row_by_row():
    assert patch_boxes(4, 6, 2, 0.0) == [(0, 0, 2, 3), (0, 3, 2, 6), (2, 0, 4, 3), (2, 3, 4, 6)]


def test_with_overlap_they_reach_into_the_next_cells_and_not_out_of_the_image():
    assert patch_boxes(10, 10, 2, 0.3) == [(0, 0, 8, 8), (0, 2, 8, 10), (2, 0, 10, 8), (2, 2, 10, 10)]
    assert patch_boxes(9, 9, 3, 0.12)[4] == (2, 2, 7, 7)
    assert len(patch_boxes(9, 9, 3, 0.12)) == 9


def test_by_hand_two_images_are_a_montage_each():
    patches = torch.arange(8.0).view(8, 1, 1, 1)
    order = torch.tensor([7, 0, 1, 2, 3, 4, 5, 6])

    assert montages(patches, order, 2)[:, 0].tolist() == [[[7, 0], [1, 2]], [[3, 4], [5, 6]]]


@pytest.mark.parametrize(("grid", "size"), [(2, (3, 5)), (3, (4, 4))])
def test_row_179_unshuffling_the_montages_restores_all_patches_exactly(grid, size):
    patches = torch.randn(5 * grid**2, 3, *size)
    order = shuffle(torch.rand(5, grid**2))
    mixed = montages(patches, order, grid)

    assert mixed.shape == (5, 3, grid * size[0], grid * size[1])
    assert torch.equal(unshuffled(dismantled(mixed, grid), order), patches)
    assert torch.equal(dismantled(mixed, grid), patches[order])
    # The mutant that shuffles once more instead of back.
    assert not torch.equal(dismantled(mixed, grid)[order], patches)


def test_row_179_there_are_as_many_montages_as_images():
    assert len(montages(torch.randn(7 * 4, 1, 2, 2), torch.randperm(28), 2)) == 7


def test_every_patch_comes_to_every_place_equally_often():
    random = torch.Generator().manual_seed(0)
    places = torch.stack([shuffle(torch.rand(2, 4, generator=random)).argsort() for _ in range(4000)])
    often = torch.stack([(places == place).float().mean(0) for place in range(8)])

    torch.testing.assert_close(often, torch.full((8, 8), 1 / 8), atol=0.02, rtol=0)


def test_maps_that_the_grid_does_not_divide_are_refused():
    with pytest.raises(ValueError, match="the backbone's map of a montage is 3 x 3 and cannot be cut into 2 x 2 parts"):
        dismantled(torch.zeros(1, 4, 3, 3), 2)

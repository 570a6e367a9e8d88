"""Layers laid out alike: which are aligned, positions as a square, and the embedding of an image."""

import pytest
import torch

from lightning_vision.callbacks.distillation._layouts import is_aligned, pooled, positions


def test_the_embedding_of_an_image_is_the_mean_over_positions_whatever_the_layout():
    maps = torch.randn(3, 5, 4, 2, generator=torch.Generator().manual_seed(0))
    by_hand = sum(maps[:, :, row, column] for row in range(4) for column in range(2)) / 8

    assert torch.allclose(by_hand, pooled(maps))
    assert torch.allclose(by_hand, pooled(maps.flatten(2).transpose(1, 2)))
    assert torch.equal(by_hand, pooled(by_hand))
    assert torch.equal(maps[:, :, :, None].flatten(1), pooled(maps[:, :, :, None]))


def test_half_precision_is_widened_before_the_mean():
    maps = torch.full((1, 1, 300, 300), 1.001).half()

    assert pooled(maps).dtype == torch.float32
    assert torch.allclose(maps[0, 0, 0, 0].float(), pooled(maps), rtol=1e-6)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        ((2, 17, 5), (4, 17, 7), True),
        ((2, 17, 5), (2, 16, 7), False),
        ((2, 5, 4, 4), (2, 7, 8, 8), True),
        ((2, 5), (2, 7), True),
        ((2, 5), (2, 5, 1), False),
        ((2, 5, 1), (2, 5), False),
        ((2, 1, 5, 4, 4), (2, 1, 5, 4, 4), False),
    ],
)
def test_layers_are_aligned_if_only_widths_and_sizes_of_maps_differ(student, teacher, expected):
    assert is_aligned(torch.Size(student), torch.Size(teacher)) is expected


def test_tokens_become_rows_from_the_top_left():
    tokens = torch.arange(7.0).view(1, 7, 1)

    assert positions(tokens)[0, 0].tolist() == [[3.0, 4.0], [5.0, 6.0]]

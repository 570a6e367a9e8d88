"""AttentiveCutMix: cells by hand, the row's clauses, training equal to a loop over cells, and extractors of each kind.

Resume, processes, precisions, undo and the neutral run are proved in `tests/conformance`, which losses are mixed in
`tests/callbacks/hooks`.
"""

from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_vision.backbones import create
from lightning_vision.callbacks.hooks._attention_maps import AttentionMaps
from lightning_vision.callbacks.hooks.targets import Mix
from lightning_vision.callbacks.mixing.attentive_cutmix import (
    AttentiveCutMix,
    AttentiveCutMixDraw,
    cell_edges,
    paste_cells,
    top_cells,
)
from lightning_vision.callbacks.mixing.random_mix import RandomMix
from support.compare import distance
from support.data import labelled_images, plain_loader
from support.modules import Plain
from support.teachers import teacher_file


class Brightness(nn.Module):
    """Looks where images are bright, in maps of 4x4, with batch norm and dropout that must not notice."""

    def __init__(self, cells: int = 4) -> None:
        super().__init__()
        self.cells, self.norm, self.dropout = cells, nn.BatchNorm2d(1), nn.Dropout(0.5)
        self.dtypes: set[torch.dtype] = set()

    def forward(self, images: Tensor) -> Tensor:
        self.dtypes.add((images[0, 0] @ images[0, 0].mT).dtype)
        return self.dropout(self.norm(F.adaptive_avg_pool2d(images, self.cells)))


def by_brute_force(attention: Tensor, top_n: int) -> Tensor:
    """Repeatedly the highest cell that is left, row by row."""
    chosen = torch.zeros_like(attention, dtype=torch.bool)
    for sample, cells in enumerate(attention):
        for _ in range(top_n):
            left = [(-float(cells[i, j]), i, j) for i, j in np.ndindex(*cells.shape) if not chosen[sample, i, j]]
            _, row, column = min(left)
            chosen[sample, row, column] = True
    return chosen


EDGES = {
    "divided": (4, 8, [0, 2, 4, 6, 8]),
    "three of eight": (3, 8, [0, 3, 5, 8]),
    "seven of ten": (7, 10, [0, 1, 3, 4, 6, 7, 9, 10]),
    "one": (1, 5, [0, 5]),
    "a pixel each": (3, 3, [0, 1, 2, 3]),
}


@pytest.mark.parametrize(("cells", "pixels", "edges"), EDGES.values(), ids=EDGES)
def test_edges_are_those_by_hand(cells: int, pixels: int, edges: list[int]) -> None:
    assert cell_edges(cells, pixels).tolist() == edges


def test_cells_tile_any_side_and_differ_by_at_most_a_pixel() -> None:
    for pixels in range(1, 40):
        for cells in range(1, pixels + 1):
            edges = cell_edges(cells, pixels)
            lengths = edges.diff()

            assert (edges[0], edges[-1]) == (0, pixels)
            assert lengths.min() >= 1 and lengths.max() - lengths.min() <= 1
            assert edges.tolist() == [int(i * pixels / cells + 0.5) for i in range(cells + 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("size", [(8, 8), (9, 11), (7, 30)], ids=str)
def test_row_256_pasted_cells_are_the_partners_pixels_and_all_others_the_own(
    dtype: torch.dtype, size: tuple[int, int], numbered: Callable[..., Tensor]
) -> None:
    images, partner = numbered(6, *size, dtype), torch.tensor([3, 0, 1, 5, 2, 4])
    cells = top_cells(torch.rand(6, 4, 5, generator=torch.Generator().manual_seed(0)), 7)
    before, mixed = images.clone(), paste_cells(images, partner, cells)
    rows, columns = cell_edges(4, size[0]).tolist(), cell_edges(5, size[1]).tolist()
    for sample, row, column in np.ndindex(6, 4, 5):
        found = mixed[sample, :, rows[row] : rows[row + 1], columns[column] : columns[column + 1]]

        assert (found == (partner[sample] if cells[sample, row, column] else sample)).all()
    assert torch.equal(images, before)
    assert (mixed.dtype, mixed.stride()) == (images.dtype, images.stride())


def test_the_mask_of_accelerators_pastes_what_slices_paste() -> None:
    images, cells = torch.rand(6, 3, 9, 11), torch.rand(6, 4, 5) < 0.3
    partner = torch.tensor([3, 0, 1, 5, 2, 4])
    masked = paste_cells(images.clone().requires_grad_(), partner, cells)  # images with gradients go by the mask, too

    assert torch.equal(masked, paste_cells(images, partner, cells))


@pytest.mark.parametrize("top_n", [0, 1, 6, 48, 49])
def test_row_256_chosen_cells_are_those_of_brute_force(top_n: int) -> None:
    generator = torch.Generator().manual_seed(0)
    # Rounded, so that many are equal.
    attention = (torch.rand(5, 7, 7, generator=generator) * 8).round()

    assert torch.equal(top_cells(attention, top_n), by_brute_force(attention, top_n))


@pytest.mark.parametrize(("top_n", "cells", "size"), [(6, 7, 28), (6, 7, 32), (2, 4, 8), (3, 3, 8), (49, 7, 28)])
def test_row_256_the_labels_share_is_exactly_that_of_cells(top_n: int, cells: int, size: int) -> None:
    images, attention = torch.rand(4, 1, size, size), torch.rand(4, cells, cells)
    draw = AttentiveCutMixDraw(torch.tensor([1, 0, 3, 2]), attention)
    mix = AttentiveCutMix(top_n=top_n).mix(images, draw)
    pasted = (mix.images != images)[:, 0].flatten(1).double().mean(1)

    assert mix.lam == (cells**2 - top_n) / cells**2
    if size % cells == 0:
        assert pasted.tolist() == [top_n / cells**2] * 4


def test_row_256_no_cells_are_the_identity(fit: Callable[..., Any]) -> None:
    images, attention = torch.rand(4, 1, 8, 8), torch.rand(4, 4, 4)
    mix = AttentiveCutMix(top_n=0).mix(images, AttentiveCutMixDraw(torch.tensor([1, 0, 3, 2]), attention))
    off, none = Plain(), Plain()
    none.load_state_dict(off.state_dict())
    for module, callbacks in ((off, [AttentiveCutMix(top_n=0)]), (none, [])):
        torch.manual_seed(0)
        fit(module, callbacks, plain_loader(12), max_epochs=1)

    assert torch.equal(mix.images, images)
    assert mix.lam == 1
    assert distance(off.state_dict(), none.state_dict()) == 0.0


@pytest.mark.parametrize("network", [Brightness(), create("resnet8_cifar", num_classes=10, in_channels=1)])
@pytest.mark.parametrize("place", [(0, 0), (8, 4), (12, 12), (4, 8)], ids=str)
def test_row_256_top_cells_fall_on_a_bright_square(network: nn.Module, place: tuple[int, int]) -> None:
    """A square of one cell, white on black; an untrained network, which sees contrast, may choose cells beside it."""
    top, left = place
    images = torch.zeros(1, 1, 16, 16)
    images[:, :, top : top + 4, left : left + 4] = 1
    attention = AttentionMaps("it", deepcopy(network), None, None, None, nullcontext)(images)
    untrained = not isinstance(network, Brightness)
    ((_, row, column),) = top_cells(attention, 1).nonzero().tolist()

    assert attention.shape == (1, 4, 4)
    assert abs(row - top // 4) <= untrained
    assert abs(column - left // 4) <= untrained


def test_draws_are_a_function_of_their_stream() -> None:
    method = AttentiveCutMix()
    first, again, other = (method.draw(torch.Size((7, 3, 8, 8)), np.random.default_rng(seed)) for seed in (0, 0, 1))

    assert first.partner.tolist() == again.partner.tolist() != other.partner.tolist()
    assert sorted(first.partner.tolist()) == list(range(7))


def cell_by_cell(network: nn.Module, image: Tensor, target: Tensor, random: np.random.Generator) -> Tensor:
    partner = random.permutation(len(image)).tolist()
    mixed = image.clone()
    for i, j in enumerate(partner):
        means = F.avg_pool2d(image[j], 2)[0]
        for place in by_brute_force(means[None], 5)[0].nonzero().tolist():
            rows, columns = (slice(2 * it, 2 * it + 2) for it in place)
            mixed[i, :, rows, columns] = image[j, :, rows, columns]
    logits = network(mixed)
    return 11 / 16 * F.cross_entropy(logits, target) + (1 - 11 / 16) * F.cross_entropy(logits, target[partner])


def bright(kind: type[AttentiveCutMix] = AttentiveCutMix, **others: Any) -> AttentiveCutMix:
    return kind(top_n=5, feature_extractor=Brightness(), extractor_size=None, **others)


def test_training_equals_a_loop_over_cells(apart: Callable[..., float]) -> None:
    assert apart(bright(), cell_by_cell) == 0.0


class OwnCells(AttentiveCutMix):
    def mix(self, images: Tensor, draw: AttentiveCutMixDraw) -> Mix:
        back = draw.partner.argsort()
        return super().mix(images, replace(draw, attention=self.attention(images)[back]))


class DullCells(AttentiveCutMix):
    def attention(self, images: Tensor) -> Tensor:
        return -super().attention(images)


class CellsTransposed(AttentiveCutMix):
    def attention(self, images: Tensor) -> Tensor:
        return super().attention(images).mT


class SharesSwapped(AttentiveCutMix):
    def mix(self, images: Tensor, draw: AttentiveCutMixDraw) -> Mix:
        mix = super().mix(images, draw)
        return replace(mix, lam=1 - mix.lam)


@pytest.mark.parametrize("mutant", [OwnCells, DullCells, CellsTransposed, SharesSwapped])
def test_a_wrong_attentive_cutmix_is_noticed(mutant: type[AttentiveCutMix], apart: Callable[..., float]) -> None:
    assert apart(bright(mutant), cell_by_cell) > 1e-3


def test_a_ready_extractor_is_left_as_it_was(fit: Callable[..., Any]) -> None:
    method = bright()
    network = method.feature_extractor
    assert isinstance(network, Brightness)
    network.norm.eval()
    before = deepcopy(network.state_dict())
    fit(Plain(), [method], plain_loader(12), max_epochs=1)

    assert distance(network.state_dict(), before) == 0.0
    assert [part.training for part in network.modules()] == [True, False, True]
    assert all(it.requires_grad and it.grad is None for it in network.parameters())
    with pytest.raises(ValueError, match="AttentiveCutMix: outside of a fit there is no extractor; hand in the attent"):
        method.attention(torch.rand(2, 1, 8, 8))


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_the_extractor_computes_under_the_runs_precision(
    precision: str, dtype: torch.dtype, fit: Callable[..., Any]
) -> None:
    method = bright()
    fit(Plain(), [method], plain_loader(12), max_epochs=1, precision=precision)

    assert isinstance(method.feature_extractor, Brightness)
    assert method.feature_extractor.dtypes == {dtype}


class Keeping(Plain):
    def loss(self, image: Tensor, target: Any) -> Tensor:
        seen.append(image)
        return super().loss(image, target)


seen: list[Tensor] = []


def batches_with(fit: Callable[..., Any], method: Any) -> Tensor:
    seen.clear()
    torch.manual_seed(0)
    fit(Keeping(dropout=0.0), [method], plain_loader(12), max_epochs=1)
    return torch.cat(seen)


GIVEN: dict[str, Callable[[], dict[str, Any]]] = {
    "a name": lambda: {"feature_extractor": "resnet8_cifar", "extractor_weights": "random", "extractor_size": 16},
    "tokens": lambda: {"feature_extractor": "cct_2_3x2_32", "extractor_weights": "random", "extractor_size": 32},
    "a checkpoint": lambda: {"feature_extractor": str(teacher_file()), "extractor_size": 16},
    "pooled": lambda: {"feature_extractor": Brightness(8), "extractor_size": None, "grid": 4},
}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_extractors_are_names_files_and_networks(given: Callable[[], dict[str, Any]], fit: Callable[..., Any]) -> None:
    plain = torch.cat([image for image, _ in plain_loader(12)])
    first, again = (batches_with(fit, AttentiveCutMix(top_n=2, **given())) for _ in range(2))
    changed = (first != plain).flatten(1).double().mean(1)

    # An extractor of random weights is drawn from the seed, alike each time.
    assert torch.equal(first, again)
    assert 0 < changed.max() <= 2 / 16


def test_an_extractor_with_statistics_of_its_own_gets_images_normalised_by_them() -> None:
    pixels, taken = torch.rand(2, 1, 8, 8), ([0.2], [0.5])

    def ask(images: Tensor, normalised: Any) -> Tensor:
        return AttentionMaps("it", nn.Identity(), None, normalised, taken, nullcontext)(images)

    expected = ((pixels - 0.2) / 0.5)[:, 0]
    bytes_of = (pixels * 255).round().to(torch.uint8)

    torch.testing.assert_close(ask((pixels - 0.1) / 0.3, ([0.1], [0.3])), expected)
    torch.testing.assert_close(ask(bytes_of, ([0.1], [0.3])), ((bytes_of / 255 - 0.2) / 0.5)[:, 0])
    assert torch.equal(ask(pixels, None), pixels[:, 0])


def test_images_are_scaled_for_the_extractor_alone() -> None:
    maps = AttentionMaps("it", nn.Identity(), 16, None, None, nullcontext)

    assert maps(torch.rand(2, 3, 8, 12)).shape == (2, 16, 16)


def test_random_mix_makes_it_ready_and_frees_it(fit: Callable[..., Any]) -> None:
    alone, child = bright(), bright()
    found = [batches_with(fit, it) for it in (alone, RandomMix([child]))]

    assert torch.equal(*found)
    assert child._maps is None
    assert isinstance(child.feature_extractor, Brightness) and child.feature_extractor.training


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no cells": ({"top_n": -1}, "top_n is -1; give a whole number of at least 0."),
    "no grid": ({"grid": 0}, "grid is 0; give a whole number of at least 1."),
    "no size": ({"extractor_size": 0.5}, "extractor_size is 0.5; give a whole number of at least 1."),
    "no network": (
        {"feature_extractor": 3},
        "feature_extractor is 3; give a name of timm's, a checkpoint's path (*.ckpt), or a network.",
    ),
}


@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED)
def test_a_setting_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        AttentiveCutMix(**settings)

    assert str(refusal.value) == f"AttentiveCutMix: {message}"


class Vector(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((1, 2, 3))


AT_SET_UP: dict[str, tuple[dict[str, Any], str]] = {
    "a finer grid": (
        {"feature_extractor": Brightness(), "grid": 5},
        "grid=5 is finer than the extractor's maps of 4x4; give a larger extractor_size, or a coarser grid.",
    ),
    "too many cells": (
        {"feature_extractor": Brightness(), "top_n": 17},
        "top_n=17 of 4x4 cells is more than there are; give fewer, or a larger extractor_size.",
    ),
    "more cells than pixels": (
        {"feature_extractor": nn.Identity(), "extractor_size": 16},
        "16 cells do not fit along 8 pixels; pool the attention with grid=, or give a smaller extractor_size.",
    ),
    "no maps": (
        {"feature_extractor": Vector()},
        "the extractor (Vector) answered (2,) to 2 images; give a network of timm's, or one that answers with maps "
        "(B, C, h, w).",
    ),
    "other images": (
        {"feature_extractor": nn.Conv2d(3, 4, 3)},
        "the extractor (Conv2d) does not take images (1, 8, 8) (Given groups=1, weight of size [4, 3, 3, 3], expected "
        "input[2, 1, 8, 8] to have 3 channels, but got 1 channels instead); give one that does, or scale them with "
        "extractor_size=.",
    ),
    "an unknown name": (
        {"feature_extractor": "nothing like it", "extractor_weights": "random"},
        "feature_extractor 'nothing like it': unknown backbone 'nothing like it'.",
    ),
}


@pytest.mark.parametrize(("settings", "message"), AT_SET_UP.values(), ids=AT_SET_UP)
def test_an_extractor_that_does_not_fit_is_refused_at_set_up(
    settings: dict[str, Any], message: str, fit: Callable[..., Any]
) -> None:
    with pytest.raises(ValueError) as refusal:
        fit(Plain(), [AttentiveCutMix(**{"extractor_size": None} | settings)], plain_loader(12), max_epochs=1)

    assert str(refusal.value) == f"AttentiveCutMix: {message}"


@pytest.mark.parametrize(
    ("settings", "size", "message"),
    [
        ({"top_n": 5}, 4, "top_n=5 of 2x2 cells is more than there are; give fewer, or a larger extractor_size."),
        (
            {"top_n": 1, "grid": 4},
            6,
            "grid=4 is finer than the extractor's maps of 3x3; give a larger extractor_size, or a coarser grid.",
        ),
    ],
)
def test_a_later_batch_of_too_few_cells_is_refused(
    settings: dict[str, Any], size: int, message: str, fit: Callable[..., Any]
) -> None:
    images, target = labelled_images(6).tensors
    smaller = F.interpolate(images, (size, size))
    method = AttentiveCutMix(feature_extractor=nn.AvgPool2d(2), extractor_size=None, **settings)
    module = Plain()
    module.network = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4, 10))
    with pytest.raises(ValueError) as refusal:
        fit(module, [method], DataLoader([(images, target), (smaller, target)], batch_size=None), max_epochs=1)

    assert str(refusal.value) == f"AttentiveCutMix: {message}"


def test_an_extractor_that_trains_is_refused(fit: Callable[..., Any]) -> None:
    module = Plain()
    method = AttentiveCutMix(feature_extractor=module.network[:2], extractor_size=None)
    with pytest.raises(ValueError, match=r"AttentiveCutMix: the network of the features .* shares weights with Plain"):
        fit(module, [method], plain_loader(12), max_epochs=1)

"""CutMix: boxes and areas by hand, its draws, and training equal to a loop written from Eq. 1.

Resume, processes, precisions, undo and the neutral run are proved in `tests/conformance`, equality with torchvision and
timm for equal draws in `tests/parity/test_mixing.py`, which losses are mixed in `tests/callbacks/hooks`.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_vision.callbacks.hooks.targets import Mix
from lightning_vision.callbacks.mixing.cutmix import CutMix, CutMixDraw, cutmix_box, cutmix_images, cutmix_lam

BOXES = {
    "centre": ((8, 8), 0.75, (4, 4), [2, 6, 2, 6], 48 / 64),
    "corner": ((8, 8), 0.75, (0, 0), [0, 2, 0, 2], 60 / 64),
    "far corner": ((8, 8), 0.75, (7, 7), [5, 8, 5, 8], 55 / 64),
    "odd": ((7, 5), 0.5, (3, 2), [1, 5, 1, 3], 27 / 35),
    "empty": ((8, 8), 1.0, (4, 4), [4, 4, 4, 4], 1.0),
    "everything": ((8, 8), 0.0, (4, 4), [0, 8, 0, 8], 0.0),
}


@pytest.mark.parametrize(("size", "lam", "centre", "box", "kept"), BOXES.values(), ids=BOXES)
def test_a_box_and_what_it_leaves_are_those_by_hand(
    size: tuple[int, int], lam: float, centre: tuple[int, int], box: list[int], kept: float
) -> None:
    found = cutmix_box(torch.tensor([lam]).double(), torch.tensor([centre]), size)

    assert found.tolist() == [box]
    assert cutmix_lam(found, size).tolist() == [kept]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("per_sample", [False, True])
def test_cutmix_lam_counts_own_pixels(
    dtype: torch.dtype, memory_format: torch.memory_format, per_sample: bool, numbered: Callable[..., Tensor]
) -> None:
    images = numbered(9, 7, 10, dtype).to(memory_format=memory_format)
    before = images.clone()
    for seed in range(10):
        draw = CutMix(per_sample=per_sample).draw(images.shape, np.random.default_rng(seed))
        mixed = cutmix_images(images, draw.partner, draw.box)
        own = (mixed == images).sum(dim=(1, 2, 3)) // 2
        kept = (draw.lam * 70).round().long().expand(9)
        partners = torch.where(mixed == images, images, images[draw.partner])

        assert torch.equal(own[draw.partner != torch.arange(9)], kept[draw.partner != torch.arange(9)])
        assert torch.equal(mixed, partners)
    assert torch.equal(images, before)
    assert (mixed.dtype, mixed.stride()) == (images.dtype, images.stride())


@pytest.mark.parametrize("per_sample", [False, True])
def test_the_mask_of_accelerators_pastes_what_slices_paste(per_sample: bool) -> None:
    images = torch.rand(9, 3, 7, 10)
    draw = CutMix(per_sample=per_sample).draw(images.shape, np.random.default_rng(0))
    masked = cutmix_images(
        images.clone().requires_grad_(), draw.partner, draw.box
    )  # images with gradients go by the mask too

    assert torch.equal(masked, cutmix_images(images, draw.partner, draw.box))


def test_images_with_gaps_between_their_pixels_are_pasted_too() -> None:
    images = torch.rand(6, 3, 9, 16)[:, :, 1:, ::2]
    box, partner = torch.tensor([[1, 4, 2, 7]]), torch.tensor([1, 2, 3, 4, 5, 0])

    assert torch.equal(cutmix_images(images, partner, box), cutmix_images(images.contiguous(), partner, box))


def mean_kept(side: int) -> float:
    """Mean kept fraction with alpha = 1 on images `side` wide and high, exactly.

    With S the side and lambda uniform, half a box's side, floor(S sqrt(1 - lambda) / 2), is at least k with probability
    1 - (2k/S)^2. Its clipped length for k depends on the centre alone, row and column alike and independently.
    """
    kept = 1.0
    for k in range(side // 2):
        probability = (2 * (k + 1) / side) ** 2 - (2 * k / side) ** 2
        lengths = [min(centre + k, side) - max(centre - k, 0) for centre in range(side)]
        kept -= probability * (sum(lengths) / side**2) ** 2
    return kept


@pytest.mark.parametrize(("side", "printed"), [(8, 0.77), (32, 0.70), (224, 0.68)])
def test_kept_fractions_that_the_card_names(side: int, printed: float) -> None:
    draws = CutMix(alpha=1.0, per_sample=True).draw(torch.Size((100_000, 1, side, side)), np.random.default_rng(0))
    error = float(draws.lam.std()) / math.sqrt(100_000)

    assert round(mean_kept(side), 2) == printed
    assert abs(float(draws.lam.mean()) - mean_kept(side)) < 4 * error


def test_the_mean_kept_fraction_tends_to_163_over_240() -> None:
    """A side of r = sqrt(1 - lambda) around a centre uniform in [0, 1] loses r/2 - c at a border c < r/2 away, r^2/8 on
    average at each of two, so r - r^2/4 are seen. The two axes are independent, so the box covers (r - r^2/4)^2 =
    r^2 - r^3/2 + r^4/16. With alpha = 1 is r^2 uniform, E r^2 = 1/2, E r^3 = 2/5, E r^4 = 1/3, and 1/2 - 1/5 + 1/48 =
    77/240 are covered.
    """
    count = 100_000
    draws = CutMix(alpha=1.0, per_sample=True).draw(torch.Size((count, 1, 2**20, 2**20)), np.random.default_rng(0))

    assert abs(float(draws.lam.mean()) - 163 / 240) < 4 * float(draws.lam.std()) / math.sqrt(count)


@pytest.mark.parametrize("per_sample", [False, True])
def test_draws_are_a_function_of_their_stream(per_sample: bool) -> None:
    cutmix = CutMix(per_sample=per_sample)
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    first, again, other = (cutmix.draw(torch.Size((7, 3, 8, 8)), np.random.default_rng(seed)) for seed in (0, 0, 1))

    assert [it.tolist() for it in vars(first).values()] == [it.tolist() for it in vars(again).values()]
    assert first.partner.tolist() != other.partner.tolist()
    assert sorted(first.partner.tolist()) == list(range(7))
    assert len(first.box) == len(first.lam) == (7 if per_sample else 1)
    assert torch.equal(torch.get_rng_state(), torch_before) and np.random.get_state()[1].tolist() == numpy_before


def by_hand(per_sample: bool) -> Callable[..., Tensor]:
    def loss(network: nn.Module, image: Tensor, target: Tensor, random: np.random.Generator) -> Tensor:
        draw = CutMix(per_sample=per_sample).draw(image.shape, random)
        mixed = image.clone()
        shares = []
        for i, j in enumerate(draw.partner.tolist()):
            top, bottom, left, right = draw.box[i if per_sample else 0].tolist()
            mixed[i, :, top:bottom, left:right] = image[j, :, top:bottom, left:right]
            shares.append(1 - (bottom - top) * (right - left) / 64)
        logits = network(mixed)
        if not per_sample:
            own, other = F.cross_entropy(logits, target), F.cross_entropy(logits, target[draw.partner])
            return shares[0] * own + (1 - shares[0]) * other
        lam = torch.tensor(shares)
        own = F.cross_entropy(logits, target, reduction="none")
        other = F.cross_entropy(logits, target[draw.partner], reduction="none")
        return (lam * own + (1 - lam) * other).mean()

    return loss


@pytest.mark.parametrize("per_sample", [False, True])
def test_training_equals_a_loop_written_from_equation_1(per_sample: bool, apart: Callable[..., float]) -> None:
    assert apart(CutMix(per_sample=per_sample), by_hand(per_sample)) == 0.0


class LambdaAsDrawn(CutMix):
    def draw(self, shape: torch.Size, random: np.random.Generator) -> CutMixDraw:
        again = deepcopy(random)
        again.permutation(shape[0])
        return replace(super().draw(shape, random), lam=torch.from_numpy(again.beta(1, 1, 1)))


class LabelsSwapped(CutMix):
    def mix(self, images: Tensor, draw: CutMixDraw) -> Mix:
        mix = super().mix(images, draw)
        return replace(mix, lam=1 - mix.lam)


class PartnerOffByOne(CutMix):
    def mix(self, images: Tensor, draw: CutMixDraw) -> Mix:
        return replace(super().mix(images, draw), partner=draw.partner.roll(1))


class BoxTransposed(CutMix):
    def mix(self, images: Tensor, draw: CutMixDraw) -> Mix:
        return super().mix(images, replace(draw, box=draw.box[:, [2, 3, 0, 1]]))


@pytest.mark.parametrize("mutant", [LambdaAsDrawn, LabelsSwapped, PartnerOffByOne, BoxTransposed])
def test_a_wrong_cutmix_is_noticed(mutant: type[CutMix], apart: Callable[..., float]) -> None:
    assert apart(mutant(), by_hand(per_sample=False)) > 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -1.0}, "CutMix: alpha is -1.0; give a finite number of at least 0."),
        ({"alpha": math.inf}, "CutMix: alpha is inf; give a finite number of at least 0."),
        ({"alpha": math.nan}, "CutMix: alpha is nan; give a finite number of at least 0."),
        ({"per_sample": "no"}, "CutMix: per_sample is 'no'; give True or False."),
        ({"prob": 1.5}, "CutMix: prob is 1.5; give a number from 0 to 1."),
    ],
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        CutMix(**settings)

    assert str(refusal.value) == message

"""MixUp: mixtures by hand, its draws, and training equal to a loop written from Eq. 1.

Resume, processes, precisions, undo and the neutral run are proved in `tests/conformance`, equality with torchvision,
timm and kornia for equal draws in `tests/parity/test_mixing.py`, which losses are mixed in `tests/callbacks/hooks`.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_vision.callbacks.hooks.targets import Mix
from lightning_vision.callbacks.mixing.mixup import MixUp, MixUpDraw, mixup_images


@pytest.mark.parametrize(
    ("lam", "expected"),
    [
        (1.0, [0.0, 1.0, 2.0]),
        (0.75, [0.5, 0.75, 1.75]),
        (0.0, [2.0, 0.0, 1.0]),
        (torch.tensor([1.0, 0.5, 0.0]), [0.0, 0.5, 1.0]),
    ],
    ids=["all own", "three quarters own", "all the partner's", "a share a sample"],
)
def test_mixtures_are_those_by_hand(
    lam: float | Tensor, expected: list[float], numbered: Callable[..., Tensor]
) -> None:
    mixed = mixup_images(numbered(3, 4, 5), torch.tensor([2, 0, 1]), lam)

    assert torch.equal(mixed, torch.tensor(expected).view(3, 1, 1, 1).expand(3, 2, 4, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("count", [3, 100])
def test_images_keep_their_form_and_the_source_is_left_alone(
    dtype: torch.dtype, memory_format: torch.memory_format, count: int
) -> None:
    # 100 of these images are more than one piece of what is mixed at a time.
    images = torch.rand(count, 3, 64, 48).to(dtype).to(memory_format=memory_format)
    before = images.clone()
    draw = MixUp(per_sample=True).draw(images.shape, np.random.default_rng(0))
    shares = draw.lam.to(dtype)
    mixed = mixup_images(images, draw.partner, shares)
    limit = torch.finfo(dtype).eps

    assert torch.equal(mixed, torch.lerp(images[draw.partner], images, shares.view(-1, 1, 1, 1)))
    assert torch.equal(images, before)
    assert (mixed.dtype, mixed.stride()) == (images.dtype, images.stride())
    equation = shares.double().view(-1, 1, 1, 1)
    exact = equation * images.double() + (1 - equation) * images[draw.partner].double()
    assert (mixed.double() - exact).abs().max() <= 2 * limit


def test_an_image_mixed_with_itself_is_itself_bit_for_bit() -> None:
    images = torch.rand(50, 3, 8, 8)

    assert torch.equal(mixup_images(images, torch.arange(50), torch.rand(50)), images)


def test_images_that_need_gradients_get_them() -> None:
    images = torch.rand(2, 1, 1, 1, requires_grad=True)
    mixup_images(images, torch.tensor([1, 0]), 0.75)[0].sum().backward()

    assert images.grad is not None
    assert images.grad.flatten().tolist() == [0.75, 0.25]


def test_images_with_gaps_between_their_pixels_are_mixed_too() -> None:
    images = torch.rand(6, 3, 9, 16)[:, :, 1:, ::2]
    partner = torch.tensor([1, 2, 3, 4, 5, 0])

    assert torch.equal(mixup_images(images, partner, 0.3), mixup_images(images.contiguous(), partner, 0.3))


def test_images_and_labels_in_half_precision_are_mixed_in_the_same_shares() -> None:
    mixup = MixUp(alpha=1.0, per_sample=True)
    images = torch.arange(2).view(2, 1, 1, 1).bfloat16()
    mix = mixup.mix(images, MixUpDraw(torch.tensor([1, 0]), torch.tensor([0.3, 1 / 3]).double()))

    assert isinstance(mix.lam, Tensor)
    assert (mix.lam.dtype, mix.lam.tolist()) == (torch.float32, mix.lam.bfloat16().tolist())
    assert mix.images.flatten().tolist()[1] == mix.lam[1]


@pytest.mark.parametrize("per_sample", [False, True])
def test_draws_are_a_function_of_their_stream(per_sample: bool) -> None:
    mixup = MixUp(per_sample=per_sample)
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    first, again, other = (mixup.draw(torch.Size((7, 3, 8, 8)), np.random.default_rng(seed)) for seed in (0, 0, 1))

    assert [it.tolist() for it in vars(first).values()] == [it.tolist() for it in vars(again).values()]
    assert first.partner.tolist() != other.partner.tolist()
    assert sorted(first.partner.tolist()) == list(range(7))
    assert len(first.lam) == (7 if per_sample else 1)
    assert torch.equal(torch.get_rng_state(), torch_before) and np.random.get_state()[1].tolist() == numpy_before


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_lambda_has_the_moments_of_its_distribution(alpha: float) -> None:
    """Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1)); the bounds are four standard errors. (lam - 1/2)^2 lies
    between 0 and 1/4, so its standard deviation is at most 1/8.
    """
    lam = MixUp(alpha=alpha, per_sample=True).draw(torch.Size((10_000, 1, 1, 1)), np.random.default_rng(0)).lam
    variance = 1 / (4 * (2 * alpha + 1))

    assert abs(float(lam.mean()) - 0.5) < 4 * math.sqrt(variance / 10_000)
    assert abs(float((lam - 0.5).square().mean()) - variance) < 4 * 1 / 8 / math.sqrt(10_000)


def test_with_the_default_alpha_most_draws_mix_less_than_a_tenth() -> None:
    lam = MixUp(per_sample=True).draw(torch.Size((10_000, 1, 1, 1)), np.random.default_rng(0)).lam
    little = float((torch.minimum(lam, 1 - lam) < 0.1).double().mean())

    assert little > 0.5 + 4 * 0.5 / math.sqrt(10_000)


def by_hand(per_sample: bool) -> Callable[..., Tensor]:
    def loss(network: nn.Module, image: Tensor, target: Tensor, random: np.random.Generator) -> Tensor:
        partner = torch.from_numpy(random.permutation(len(image)))
        if not per_sample:
            lam = float(random.beta(1.0, 1.0))
            logits = network(torch.lerp(image[partner], image, lam))
            return lam * F.cross_entropy(logits, target) + (1 - lam) * F.cross_entropy(logits, target[partner])
        shares = torch.from_numpy(random.beta(1.0, 1.0, len(image))).float()
        mixed = torch.stack([torch.lerp(image[j], image[i], shares[i]) for i, j in enumerate(partner.tolist())])
        logits = network(mixed)
        own = F.cross_entropy(logits, target, reduction="none")
        other = F.cross_entropy(logits, target[partner], reduction="none")
        return (shares * own + (1 - shares) * other).mean()

    return loss


@pytest.mark.parametrize("per_sample", [False, True])
def test_training_equals_a_loop_written_from_equation_1(per_sample: bool, apart: Callable[..., float]) -> None:
    assert apart(MixUp(alpha=1.0, per_sample=per_sample), by_hand(per_sample)) == 0.0


class LabelsSwapped(MixUp):
    def mix(self, images: Tensor, draw: MixUpDraw) -> Mix:
        mix = super().mix(images, draw)
        return replace(mix, lam=1 - mix.lam)


class PartnerOffByOne(MixUp):
    def mix(self, images: Tensor, draw: MixUpDraw) -> Mix:
        return replace(super().mix(images, draw), partner=draw.partner.roll(1))


class LambdaTheLarger(MixUp):
    def draw(self, shape: torch.Size, random: np.random.Generator) -> MixUpDraw:
        draw = super().draw(shape, random)
        return replace(draw, lam=draw.lam.maximum(1 - draw.lam))


class LabelsUnmixed(MixUp):
    def mix(self, images: Tensor, draw: MixUpDraw) -> Mix:
        return replace(super().mix(images, draw), lam=1.0)


@pytest.mark.parametrize("mutant", [LabelsSwapped, PartnerOffByOne, LambdaTheLarger, LabelsUnmixed])
def test_a_wrong_mixup_is_noticed(mutant: type[MixUp], apart: Callable[..., float]) -> None:
    assert apart(mutant(alpha=1.0), by_hand(per_sample=False)) > 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -1.0}, "MixUp: alpha is -1.0; give a finite number of at least 0."),
        ({"alpha": math.inf}, "MixUp: alpha is inf; give a finite number of at least 0."),
        ({"alpha": math.nan}, "MixUp: alpha is nan; give a finite number of at least 0."),
        ({"per_sample": "no"}, "MixUp: per_sample is 'no'; give True or False."),
        ({"prob": -0.1}, "MixUp: prob is -0.1; give a number from 0 to 1."),
    ],
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        MixUp(**settings)

    assert str(refusal.value) == message


def test_images_that_cannot_hold_a_mixture_are_refused() -> None:
    with pytest.raises(ValueError) as refusal:
        mixup_images(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([1, 0]), 0.5)

    assert str(refusal.value) == (
        "MixUp: the images are torch.uint8, which cannot hold a mixture; convert them to floats before (in the dataset "
        "or in `on_after_batch_transfer`), or use CutMix."
    )

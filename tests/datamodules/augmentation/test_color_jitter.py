"""Colour jitter: pixels equal to torchvision's on every path, factors and orders drawn as it draws them."""

import re

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from lightning_vision.datamodules.augmentation import ColorJitter
from lightning_vision.datamodules.augmentation.color_jitter import jitter_by_batch, jitter_by_image
from support.draws import apart

CHANGES = (
    reference.adjust_brightness,
    reference.adjust_contrast,
    reference.adjust_saturation,
    reference.adjust_hue,
)
FORMS = pytest.mark.parametrize("form", [(3, 64, 48), (3, 5, 7), (1, 33, 17), (3, 31, 33), (3, 1, 1)], ids=str)


def random_batch(form: tuple[int, int, int], count: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, *form), dtype=torch.uint8, generator=generator)
    return images, torch.rand(count, ColorJitter.draws, generator=generator)


def torchvisions(images: Tensor, factors: Tensor, order: Tensor, hue: bool) -> Tensor:
    results = []
    for image, own, steps in zip(images, factors.tolist(), order.tolist(), strict=True):
        for step in steps:
            if step < 3 or hue:
                image = CHANGES[step](image, own[step])
        results.append(image)
    return torch.stack(results)


@FORMS
def test_pixels_are_torchvisions(form: tuple[int, int, int]) -> None:
    """Bit for bit, for one image after the other and for a whole batch; factors from 0.1 to 1.9 clamp at both ends."""
    images, uniform = random_batch(form)
    jitter = ColorJitter(0.9, 0.9, 0.9)
    factors, order = jitter.factors(uniform, form[0])
    expected = torchvisions(images, factors, order, hue=False)

    assert torch.equal(expected, jitter.apply(images, uniform))
    assert torch.equal(expected, jitter_by_image(images, factors, order))
    assert torch.equal(expected, jitter_by_batch(images, factors, order))


@FORMS
def test_hue_is_torchvisions(form: tuple[int, int, int]) -> None:
    images, uniform = random_batch(form)
    jitter = ColorJitter(0.5, 0.5, 0.5, 0.5)
    factors, order = jitter.factors(uniform, form[0])

    assert torch.equal(torchvisions(images, factors, order, hue=True), jitter.apply(images, uniform))


@pytest.mark.parametrize("step", [0, 1, 2], ids=["brightness", "contrast", "saturation"])
def test_each_change_is_torchvisions_for_all_bytes(step: int) -> None:
    """All 256 greys and many colours against factors from 0 to 2, the neutral 1 among them."""
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, 16, 16)
    colours = torch.randint(256, (3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = torch.cat([ramp, colours], 2)
    factor = torch.linspace(0, 2, 81, dtype=torch.float64)
    factors = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64).repeat(81, 1)
    factors[:, step] = factor
    images, order = image.repeat(81, 1, 1, 1), torch.arange(4).repeat(81, 1)
    expected = torch.stack([CHANGES[step](image, own) for own in factor.tolist()])

    assert torch.equal(expected, jitter_by_image(images, factors, order))
    assert torch.equal(expected, jitter_by_batch(images, factors, order))


@pytest.mark.parametrize("jitter", [jitter_by_image, jitter_by_batch])
def test_large_images_are_torchvisions_to_one_level(jitter: object) -> None:
    """Above 65,793 pixels torchvision adds up the mean of the contrast with rounding, ours is exact."""
    images, uniform = random_batch((3, 300, 300), 4)
    factors, order = ColorJitter(contrast=0.9).factors(uniform, 3)
    expected = torchvisions(images, factors, order, hue=False)
    result = jitter(images, factors, order)

    assert (expected.int() - result.int()).abs().max() <= 1
    assert (expected != result).float().mean() < 0.01


def test_factors_and_orders_are_drawn_as_by_torchvision() -> None:
    """Factors and the places of the four changes: means, squares and products within four standard errors."""
    settings = (0.4, 1.5, (0.5, 0.9), 0.1)
    uniform = torch.rand(30_000, ColorJitter.draws, generator=torch.Generator().manual_seed(0))
    factors, order = ColorJitter(*settings).factors(uniform, 3)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        jitter = v2.ColorJitter(*settings)
        drawn = [jitter.make_params([]) for _ in range(6_000)]
    names = [f"{what}_factor" for what in ("brightness", "contrast", "saturation", "hue")]
    theirs = torch.tensor([[params[name] for name in names] for params in drawn], dtype=torch.float64)
    orders = torch.stack([params["fn_idx"] for params in drawn])

    assert apart(torch.cat([factors, order.argsort(1)], 1), torch.cat([theirs, orders.argsort(1)], 1)) < 4
    assert apart(torch.cat([factors, order], 1), torch.cat([theirs, orders.flip(1).sort(1).values], 1)) > 4


def test_every_order_is_drawn() -> None:
    uniform = torch.zeros(24, ColorJitter.draws)
    uniform[:, 4] = (torch.arange(24) + 0.5) / 24
    _, order = ColorJitter().factors(uniform, 3)

    assert order.unique(dim=0).shape == (24, 4)
    assert torch.equal(order.sort(1).values, torch.arange(4).expand(24, 4))


def test_order_matters_and_is_the_images_own() -> None:
    """Brightness 2 before contrast 0 clamps before the mean is taken, after it doubles the mean."""
    images = torch.tensor([0, 200], dtype=torch.uint8).view(1, 1, 1, 2).repeat(2, 1, 1, 1)
    factors = torch.tensor([2.0, 0.0, 1.0, 0.0], dtype=torch.float64).repeat(2, 1)
    order = torch.tensor([[0, 1, 2, 3], [1, 0, 2, 3]])

    for jitter in (jitter_by_image, jitter_by_batch):
        assert jitter(images, factors, order).flatten(1).tolist() == [[127, 127], [200, 200]]


def test_zeros_leave_the_images_as_they_are() -> None:
    images, uniform = random_batch((3, 9, 9))
    result = ColorJitter().apply(images, uniform)

    assert torch.equal(images, result)
    assert result.data_ptr() != images.data_ptr()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"brightness": -0.1}, "ColorJitter: brightness is -0.1; give at least 0."),
        ({"contrast": (1.2, 0.8)}, "ColorJitter: contrast is [1.2, 0.8]; give two numbers in order, from 0 to inf."),
        ({"saturation": (-1, 1)}, "ColorJitter: saturation is [-1, 1]; give two numbers in order, from 0 to inf."),
        ({"hue": 0.6}, "ColorJitter: hue is [-0.6, 0.6]; give two numbers in order, from -0.5 to 0.5."),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ColorJitter(**settings)

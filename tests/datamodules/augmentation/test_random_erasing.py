"""Random erasing: boxes drawn as torchvision draws them, the same pixels on every path, noise that repeats."""

import re

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import RandomErasing as Torchvisions
from torchvision.transforms.v2 import functional as reference

from lightning_vision.datamodules.augmentation import RandomErasing
from lightning_vision.datamodules.augmentation.random_erasing import erase_by_mask, erase_by_slices
from support.draws import apart

WHITE = torch.full((200, 3, 30, 41), 255, dtype=torch.uint8)


def numbers(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, RandomErasing.draws, generator=torch.Generator().manual_seed(seed))


def test_pixels_are_torchvisions() -> None:
    erasing, uniform = RandomErasing(prob=0.7), numbers(200)
    black = torch.zeros(3, 1, 1, dtype=torch.uint8)
    boxes = erasing.boxes(uniform, (30, 41)).tolist()
    expected = torch.stack([reference.erase(image, *box, black) for image, box in zip(WHITE, boxes, strict=True)])

    assert torch.equal(expected, erasing.apply(WHITE, uniform))


@pytest.mark.parametrize("form", [(3, 30, 41), (1, 7, 5), (3, 1, 9)], ids=str)
def test_slices_and_mask_erase_the_same(form: tuple[int, int, int]) -> None:
    uniform = numbers(64)
    images = torch.randint(256, (64, *form), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    boxes = RandomErasing(prob=0.7).boxes(uniform, form[1:])

    for noise in (None, torch.randint(-(2**62), 2**62, (64,), generator=torch.Generator().manual_seed(2))):
        assert torch.equal(erase_by_slices(images, boxes, noise), erase_by_mask(images, boxes, noise))


@pytest.mark.parametrize(
    ("size", "settings"),
    [((32, 32), {}), ((20, 60), {}), ((6, 9), {"scale": (0.0, 0.9)})],
    ids=["square", "wide", "often none fits or nothing is left"],
)
def test_boxes_are_drawn_as_by_torchvision(size: tuple[int, int], settings: dict[str, tuple[float, float]]) -> None:
    """Means, squares and products of row, column, height and width within four standard errors; no box is zeros."""
    ours = RandomErasing(prob=1.0, **settings).boxes(numbers(30_000), size)
    theirs = torchvisions(size, settings)

    assert apart(ours, theirs) < 4


def test_the_comparison_of_draws_notices_the_inverse_shape() -> None:
    """Height over width, not width over height."""
    ours = RandomErasing(prob=1.0, ratio=(1 / 2.5, 1 / 0.3)).boxes(numbers(30_000), (32, 32))

    assert apart(ours, torchvisions((32, 32), {"ratio": (0.3, 2.5)})) > 4


def torchvisions(size: tuple[int, int], settings: dict[str, tuple[float, float]]) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        erasing, image = Torchvisions(p=1.0, **settings), torch.empty(1, *size)
        drawn = [erasing.make_params([image]) for _ in range(6_000)]
    return torch.tensor([[0] * 4 if box["v"] is None else [box[side] for side in "ijhw"] for box in drawn])


def test_prob_is_the_share_of_images_that_lose_a_box() -> None:
    """0.012 are four standard errors of a quarter in 20,000 draws; one box in 25 of 8 x 8 pixels may not fit."""
    erased = RandomErasing(prob=0.25, scale=(0.1, 0.2)).boxes(numbers(20_000), (64, 64))[:, 2] > 0

    assert erased.float().mean().item() == pytest.approx(0.25, abs=0.013)
    assert not RandomErasing(prob=0.0).boxes(numbers(1_000), (64, 64)).any()


def test_noise_is_a_function_of_the_images_own_numbers() -> None:
    """The same numbers give the same noise at any place of any batch; other numbers give other noise."""
    erasing = RandomErasing(prob=1.0, value="noise")
    uniform = numbers(200)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(3))
    result = erasing.apply(WHITE, uniform)
    same_box = uniform[:1].repeat(2, 1)
    same_box[1, -1] += 2**-24
    first, second = erasing.apply(WHITE[:2], same_box)

    assert torch.equal(result[order], erasing.apply(WHITE[order], uniform[order]))
    assert torch.equal(first, result[0])
    assert (first != second).float().mean() > 0.9 * (first != 255).float().mean()


def test_noise_is_uniform_over_bytes_and_channels_differ() -> None:
    """A byte's mean is 127.5 and its standard deviation 73.9; four standard errors of 3 x 199 x 199 bytes are 0.86."""
    white = torch.full((1, 3, 200, 200), 255, dtype=torch.uint8)
    noise = erase_by_slices(white, torch.tensor([[0, 0, 199, 199]]), torch.tensor([12345]))[0, :, :199, :199].double()

    assert noise.mean().item() == pytest.approx(127.5, abs=0.86)
    assert noise.std().item() == pytest.approx(73.9, abs=0.5)
    assert noise.unique().tolist() == list(range(256))
    assert torch.corrcoef(noise.flatten(1)).triu(1).abs().max() < 4 / 199


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prob": 1.5}, "RandomErasing: prob is 1.5; give a fraction from 0 to 1."),
        ({"value": 128}, 'RandomErasing: value is 128; give 0 or "noise".'),
        ({"scale": (0.5, 0.1)}, "RandomErasing: scale is [0.5, 0.1]; give two numbers in order, from 0 to 1."),
        ({"ratio": (0.0, 1.0)}, "RandomErasing: ratio is [0.0, 1.0]; give two numbers in order, from 0.001 to 1000."),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        RandomErasing(**settings)

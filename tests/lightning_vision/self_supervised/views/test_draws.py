"""What is drawn has torchvision's distributions: boxes, factors, orders, widths of blurs."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from lightning_vision.self_supervised.views import View
from lightning_vision.self_supervised.views._draws import DRAWS, draw_boxes, draw_view
from support.draws import apart

COLOURS: dict[str, Any] = {"brightness": 0.4, "contrast": 1.5, "saturation": 0.2, "hue": 0.1, "jitter": 1.0}


def uniform(count: int) -> np.ndarray:
    return torch.rand(count, DRAWS, generator=torch.Generator().manual_seed(0)).double().numpy()


def drawn_by_torchvision(transform: v2.Transform, image: Tensor, count: int) -> list[dict[str, Any]]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return [transform.make_params([image]) for _ in range(count)]


@pytest.mark.parametrize(
    ("height", "width", "area", "ratio"),
    [
        (32, 32, (0.08, 1.0), (3 / 4, 4 / 3)),
        (40, 90, (0.08, 1.0), (3 / 4, 4 / 3)),
        (90, 30, (0.3, 0.9), (3 / 4, 4 / 3)),
        (20, 25, (0.5, 1.0), (0.5, 1.5)),
    ],
    ids=["square", "wide", "often none fits", "coarse"],
)
def test_boxes_are_drawn_as_by_torchvision(
    height: int, width: int, area: tuple[float, float], ratio: tuple[float, float]
) -> None:
    """Means, squares and products of row, column, height and width within four standard errors."""
    crop = v2.RandomResizedCrop(8, scale=area, ratio=ratio)
    drawn = drawn_by_torchvision(crop, torch.empty(1, height, width), 4_000)
    theirs = torch.tensor([[box[side] for side in ("top", "left", "height", "width")] for box in drawn])
    numbers = uniform(30_000)
    ours, slightly_other = (
        torch.from_numpy(draw_boxes(numbers[:, :20], numbers[:, 20:22], height, width, (low, area[1]), ratio))
        for low in (area[0], area[0] + 0.05)
    )

    assert apart(ours, theirs) < 4
    assert apart(slightly_other, theirs) > 4


def test_boxes_by_hand() -> None:
    """Area 0.08 + 0.5 * 0.92 of 100 x 100 with an even shape is a side of 73; 28 places, the middle one is 14."""
    middle = np.full((1, 22), 0.5)
    too_large = np.concatenate([np.full((1, 20), 0.99), middle[:, 20:]], 1)

    def boxes(numbers: np.ndarray, height: int, width: int) -> list[list[int]]:
        return draw_boxes(numbers[:, :20], numbers[:, 20:], height, width, (0.08, 1.0), (3 / 4, 4 / 3)).tolist()

    assert boxes(middle, 100, 100) == [[14, 14, 73, 73]]
    assert boxes(too_large, 100, 100) == [[0, 0, 100, 100]]
    assert boxes(too_large, 30, 100) == [[0, 30, 30, 40]]
    assert boxes(too_large, 100, 30) == [[30, 0, 40, 30]]


def test_factors_and_orders_are_drawn_as_by_torchvision() -> None:
    """A contrast of 1.5 has factors from 0, not from -0.5. Places of the operations stand for their order."""
    jitter = v2.ColorJitter(0.4, 1.5, 0.2, 0.1)
    names = [f"{name}_factor" for name in ("brightness", "contrast", "saturation", "hue")]
    drawn = drawn_by_torchvision(jitter, torch.empty(3, 4, 4), 4_000)
    theirs = torch.tensor([[*(one[name] for name in names), *one["fn_idx"].argsort().tolist()] for one in drawn])
    draw = draw_view(View(**COLOURS), uniform(20_000), 8, 8)
    ours = torch.from_numpy(np.concatenate([draw.factors, draw.order.argsort(1)], 1))
    from_below_zero = ours.clone()
    from_below_zero[:, 1] = ours[:, 1] * 3 / 2.5 - 0.5

    assert apart(ours, theirs) < 4
    assert apart(from_below_zero, theirs) > 4
    assert len(np.unique(draw.order, axis=0)) == 24


def test_what_happens_with_a_probability_happens_so_often() -> None:
    """Within four standard errors of 20,000 images, and independently of the rest."""
    chances = {"flip": 0.3, "vertical_flip": 0.1, "grey": 0.2, "blur": 0.7, "solarise": 0.9}
    draw = draw_view(View(**{**COLOURS, **chances, "jitter": 0.6}), uniform(20_000), 8, 8)
    jittered = (draw.factors != [1, 1, 1, 0]).all(1)
    happened = torch.from_numpy(np.stack([*(getattr(draw, name) for name in chances), jittered], 1)).double()
    expected = torch.tensor([*chances.values(), 0.6])
    errors = (expected * (1 - expected) / len(happened)).sqrt()

    assert ((happened.mean(0) - expected).abs() < 4 * errors).all()
    assert (torch.corrcoef(happened.T) - torch.eye(6)).abs().max() < 4 / len(happened) ** 0.5
    np.testing.assert_array_equal(draw.factors[~jittered], np.tile([1, 1, 1, 0], ((~jittered).sum(), 1)))


def test_the_width_of_a_blur_is_uniform_between_its_ends() -> None:
    sigma = draw_view(View(blur=1.0, blur_sigma=(0.5, 1.5)), uniform(20_000), 8, 8).sigma

    np.testing.assert_allclose(np.quantile(sigma, [0, 0.25, 0.5, 0.75, 1]), [0.5, 0.75, 1.0, 1.25, 1.5], atol=0.02)


def test_probabilities_of_zero_and_one_are_never_and_always() -> None:
    ends = np.stack([np.zeros(DRAWS), np.full(DRAWS, 1 - 2**-24)])
    never = draw_view(View(flip=0, jitter=0, grey=0, brightness=0.5), ends, 8, 8)
    always = draw_view(View(flip=1, grey=1, blur=1, solarise=1), ends, 8, 8)

    assert not (never.flip.any() or never.grey.any() or never.blur.any() or never.solarise.any())
    assert (never.factors == [1, 1, 1, 0]).all()
    assert always.flip.all() and always.grey.all() and always.blur.all() and always.solarise.all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "View: size is 0; give one side or height and width, pixels, at least 1."),
        ({"size": (8, 0)}, "View: size is (8, 0); give one side or height and width, pixels, at least 1."),
        ({"count": 0}, "View: count is 0; give a whole number of views, at least 1."),
        (
            {"crop": (0.2, 1.5)},
            "View: crop is (0.2, 1.5); give two numbers in order, from 1e-06 to 1; no box is larger than the image.",
        ),
        ({"ratio": (2.0, 1.0)}, "View: ratio is (2.0, 1.0); give two numbers in order, from 0.001 to 1000."),
        ({"flip": 1.2}, "View: flip is 1.2; give a probability from 0 to 1."),
        ({"hue": 0.6}, "View: hue is 0.6; give a number from 0 to 0.5."),
        ({"brightness": -1}, "View: brightness is -1; give a number from 0 to inf."),
        (
            {"blur_kernel": 4},
            "View: blur_kernel is 4; give an odd number of pixels, at least 3, or a fraction of the side, above 0 to "
            "1.",
        ),
        ({"blur_sigma": (0.0, 1.0)}, "View: blur_sigma is (0.0, 1.0); give two numbers in order, from 0.001 to 1000."),
        (
            {"size": 8, "blur": 0.5, "blur_kernel": 23},
            "View: the blur's kernel has 23 pixels and the view 8 x 8; give a blur_kernel below 16 or blur=0.",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        View(**settings)


def test_a_kernel_is_an_odd_part_of_the_shorter_side_and_at_least_three() -> None:
    view = View(blur=0.5)

    assert [view.kernel((side, 300)) for side in (224, 96, 32, 8)] == [23, 9, 3, 3]
    assert View(blur=0.5, blur_kernel=15).kernel((8, 8)) == 15

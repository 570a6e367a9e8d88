"""A batch of views equals torchvision's operations one image after the other, and no image knows the others."""

import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as reference

from lightning_vision.self_supervised.views import View, Views, views
from lightning_vision.self_supervised.views._draws import DRAWS, Draw, draw_view

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
COLOURS: dict[str, Any] = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}
EVERYTHING = View(**COLOURS, count=2, flip=0.5, vertical_flip=0.3, grey=0.3, blur=0.5, solarise=0.4)
JITTER = [
    reference.adjust_brightness,
    reference.adjust_contrast,
    reference.adjust_saturation,
    reference.adjust_hue,
]


def batch(count: int, height: int, width: int, made: Views, channels: int = 3) -> tuple[Tensor, Tensor]:
    """Normalised images of values 0..1, and numbers."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 6, 6, generator=generator)
    images = nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(it[:channels]).view(-1, 1, 1) for it in (MEAN, STD))
    return (images - mean) / std, torch.rand(count, made.draws, generator=generator)


def by_torchvision(image: Tensor, view: View, draw: Draw, number: int) -> Tensor:
    """One image `(C, H, W)` through torchvision's operations, as was drawn for it."""
    grey = len(image) == 1
    mean, std = list(MEAN[: len(image)]), list(STD[: len(image)])
    sides = view.sides(*image.shape[1:])
    image = reference.normalize(image, [-m / s for m, s in zip(mean, std, strict=True)], [1 / s for s in std])
    image = reference.resized_crop(image, *draw.boxes[number].tolist(), list(sides), antialias=view.antialias)
    image = reference.horizontal_flip(image) if draw.flip[number] else image
    image = reference.vertical_flip(image) if draw.vertical_flip[number] else image
    if (draw.factors[number] != [1, 1, 1, 0]).any():
        for kind in draw.order[number]:
            image = JITTER[kind](image, float(draw.factors[number, kind]))
    image = reference.rgb_to_grayscale(image, 3) if draw.grey[number] and not grey else image
    if draw.blur[number]:
        image = reference.gaussian_blur(image, view.kernel(sides), float(draw.sigma[number]))
    image = reference.solarize(image, 0.5) if draw.solarise[number] else image
    return reference.normalize(image, mean, std)


def one_by_one(images: Tensor, uniform: Tensor, kinds: Views) -> list[Tensor]:
    result, numbers = [], uniform.double().numpy()
    for view in kinds.views:
        for _ in range(view.count):
            own, numbers = numbers[:, :DRAWS], numbers[:, DRAWS:]
            draw = draw_view(view, own, *images.shape[2:])
            changed = [by_torchvision(image, view, draw, number) for number, image in enumerate(images)]
            result.append(torch.stack(changed))
    return result


def off(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, of values 0..1."""
    return ((ours - theirs).abs() * torch.tensor(STD[: ours.shape[1]]).view(-1, 1, 1)).max().item()


@pytest.mark.parametrize(
    ("height", "width", "size", "channels"),
    [(32, 32, None, 3), (40, 30, (24, 36), 3), (24, 24, None, 1), (70, 64, (60, 62), 3), (80, 80, 20, 3)],
    ids=["own size", "both ways", "grey", "large", "shrunk"],
)
@pytest.mark.parametrize("antialias", [True, False])
def test_a_batch_is_torchvisions_image_by_image(
    height: int, width: int, size: Any, channels: int, antialias: bool
) -> None:
    view = View(**{**vars(EVERYTHING), "size": size, "antialias": antialias})
    kinds = Views([view, View(crop=None, flip=1.0, **COLOURS)])
    images, uniform = batch(24, height, width, kinds, channels)
    given = images.clone()

    ours, theirs = kinds(images, uniform, MEAN[:channels], STD[:channels]), one_by_one(images, uniform, kinds)

    assert [view.shape for view in ours] == [view.shape for view in theirs]
    assert max(map(off, ours, theirs)) < 1e-5
    assert torch.equal(images, given)


@pytest.mark.parametrize("wrong", ["adjust_hue", "blend", "gaussian_blur", "solarise", "crop_and_resize", "grey_of"])
def test_an_operation_that_is_left_out_is_noticed(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = Views([EVERYTHING])
    images, uniform = batch(24, 32, 32, kinds)
    theirs = one_by_one(images, uniform, kinds)
    monkeypatch.setattr(views, wrong, lambda image, *_: image[:, :1] if wrong == "grey_of" else image)

    assert max(map(off, kinds(images, uniform, MEAN, STD), theirs)) > 1e-2


def test_an_order_that_is_always_the_same_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = Views([View(**COLOURS, jitter=1.0)])
    images, uniform = batch(24, 32, 32, kinds)
    theirs = one_by_one(images, uniform, kinds)
    monkeypatch.setattr(
        "lightning_vision.self_supervised.views._draws.ORDERS", [[0, 1, 2, 3]] * torch.ones(24, 1).int().numpy()
    )

    assert max(map(off, kinds(images, uniform, MEAN, STD), theirs)) > 1e-2


@pytest.mark.parametrize("side", [24, 64])
def test_an_image_depends_neither_on_its_neighbours_nor_on_how_many_they_are(
    side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = Views([EVERYTHING])
    images, uniform = batch(16, side, side, kinds)
    make = partial(kinds, mean=MEAN, std=STD)
    whole = make(images, uniform)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    others = images.clone()
    others[1:] = 3.0
    few = make(images[:3], uniform[:3])
    monkeypatch.setattr(views, "CHUNK", 4 * 3 * side * side * 5)
    chunked = make(images, uniform)

    for view, again, alone, beside, parts in zip(
        whole, make(images[order], uniform[order]), few, make(others, uniform), chunked, strict=True
    ):
        assert (view[order] - again).abs().max() < 1e-6
        assert (view[:3] - alone).abs().max() < 1e-6
        assert (view[0] - beside[0]).abs().max() < 1e-6
        assert (view - parts).abs().max() < 1e-6


def test_the_same_numbers_make_the_same_views_and_no_global_stream_is_touched() -> None:
    kinds = Views([EVERYTHING])
    images, uniform = batch(8, 24, 24, kinds)
    before = torch.get_rng_state()
    first, second = kinds(images, uniform, MEAN, STD), kinds(images, uniform, torch.tensor(MEAN), torch.tensor(STD))
    another = kinds(images, uniform.flip(0), MEAN, STD)

    assert all(map(torch.equal, first, second))
    assert not torch.equal(first[0], another[0])
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first[0], first[1])


def test_a_multi_crop_has_the_sizes_and_counts_of_its_kinds_in_their_order() -> None:
    kinds = Views([View(size=16, count=2), View(), View(size=[8, 6], count=3, crop=(0.05, 0.4))])
    images, uniform = batch(2, 20, 24, kinds)

    shapes = [tuple(view.shape[2:]) for view in kinds(images, uniform, MEAN, STD)]

    assert shapes == [(16, 16)] * 2 + [(20, 24)] + [(8, 6)] * 3
    assert kinds.draws == 6 * DRAWS


def test_views_that_change_nothing_are_the_images() -> None:
    still = {"flip": 0.0, "jitter": 0.0, "grey": 0.0}
    kinds = Views([View(crop=None, **still), View(crop=(1.0, 1.0), ratio=(1.0, 1.0), **still)])
    images, uniform = batch(3, 16, 16, kinds)

    assert all(torch.equal(view, images) for view in kinds(images, uniform, MEAN, STD))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_views_have_the_dtype_of_the_images_and_are_computed_in_float32(dtype: torch.dtype) -> None:
    kinds = Views([EVERYTHING])
    images, uniform = batch(4, 16, 16, kinds)
    coarse = images.to(dtype)
    ours, full = kinds(coarse, uniform, MEAN, STD), kinds(coarse.float(), uniform, MEAN, STD)

    assert all(torch.equal(view, other.to(dtype)) for view, other in zip(ours, full, strict=True))


def test_autocast_changes_nothing_and_no_gradient_goes_through() -> None:
    kinds = Views([EVERYTHING])
    images, uniform = batch(4, 16, 16, kinds)
    plain = kinds(images, uniform, MEAN, STD)
    with torch.autocast("cpu", torch.bfloat16):
        cast = kinds(images.requires_grad_(), uniform, MEAN, STD)

    assert all(map(torch.equal, plain, cast))
    assert not any(view.requires_grad for view in cast)


@pytest.mark.parametrize(
    ("settings", "shape", "dtype", "numbers", "message"),
    [
        ({}, (2, 3, 8, 8), torch.uint8, DRAWS, "Views: the images are uint8 (2, 3, 8, 8); give normalised floats of "),
        ({}, (3, 8, 8), torch.float32, DRAWS, "Views: the images are float32 (3, 8, 8); give normalised floats of "),
        ({}, (2, 3, 8, 8), torch.float32, 5, f"Views: uniform is of shape (2, 5); give {DRAWS} numbers, which is "),
        ({}, (2, 4, 8, 8), torch.float32, DRAWS, "Views: the images have 4 channels, and colours are changed in grey "),
        (
            {"blur": 0.5, "blur_kernel": 17}, (2, 3, 8, 9), torch.float32, DRAWS,
            "View: the blur's kernel has 17 pixels and the view 8 x 9; give a blur_kernel below 16 or blur=0.",
        ),
    ],
    ids=["bytes", "no batch", "too few numbers", "four channels", "long kernel"],
)  # fmt: skip
def test_batches_that_cannot_be_viewed_are_refused(
    settings: dict[str, Any], shape: tuple[int, ...], dtype: torch.dtype, numbers: int, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        Views([View(**settings)])(torch.zeros(shape, dtype=dtype), torch.rand(2, numbers), MEAN, STD)


def test_four_channels_can_be_cropped_flipped_and_blurred() -> None:
    kinds = Views([View(jitter=0.0, grey=0.0, blur=1.0)])

    assert kinds(torch.rand(2, 4, 8, 8), torch.rand(2, kinds.draws), [0.0] * 4, [1.0] * 4)[0].shape == (2, 4, 8, 8)


def test_no_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("Views: views is []; give a list of at least one View.")):
        Views([])

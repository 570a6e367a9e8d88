"""Each operation equals torchvision's with the same parameters, image by image, in a batch where each has its own."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from lightning_vision.self_supervised.views._blur import blur_by_bands, blur_weights, gaussian_blur
from lightning_vision.self_supervised.views._colour import adjust_hue, blend, grey_of, solarise
from lightning_vision.self_supervised.views._crop import resize_by_image, resize_by_weights
from lightning_vision.self_supervised.views._products import multiply

EXACT = {"rtol": 0, "atol": 1e-5}
ADJUST = (reference.adjust_brightness, reference.adjust_contrast, reference.adjust_saturation)


def pictures(count: int, height: int, width: int, channels: int = 3) -> Tensor:
    """Values in 0..1 with whole areas of black, white, grey and pure colours."""
    images = torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(0))
    images[:, :, :1], images[:, :, 1:2] = 0.0, 1.0
    images[:, :, 2:3] = images[:, :1, 2:3]
    images[:, :, 3:4] = images[:, :, 3:4].round()
    return images


def spread(low: float, high: float, count: int) -> np.ndarray:
    return np.linspace(low, high, count, dtype=np.float32)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kinds", [[0], [1], [2], [0, 1], [0, 1, 2]], ids=str)
def test_brightness_contrast_and_saturation_are_torchvisions(kinds: list[int], channels: int) -> None:
    images, factor = pictures(9, 7, 5, channels), spread(0.0, 2.0, 9)
    kind = np.resize(kinds, 9)
    expected = torch.stack(
        [ADJUST[which](image, value) for image, which, value in zip(images, kind, factor.tolist(), strict=True)]
    )
    ours, another = blend(images, kind, factor), blend(images, (kind + 1) % 3, factor)

    torch.testing.assert_close(ours, expected, **EXACT)
    assert (another - expected).abs().max() > 0.1
    assert torch.equal(blend(images, kind, np.ones(9, np.float32)), images)


def test_hue_is_torchvisions() -> None:
    images, shift = pictures(21, 16, 16), spread(-0.5, 0.5, 21)
    expected = torch.stack(
        [reference.adjust_hue(image, value) for image, value in zip(images, shift.tolist(), strict=True)]
    )

    torch.testing.assert_close(adjust_hue(images, shift), expected, **EXACT)
    assert (adjust_hue(images, -shift) - expected).abs().max() > 0.1
    assert (adjust_hue(images, shift + np.float32(1e-3)) - expected).abs().max() > 1e-3


def test_grey_and_solarisation_are_torchvisions() -> None:
    images = pictures(3, 6, 6)
    images[0, 0, 0, 0] = 0.5

    torch.testing.assert_close(grey_of(images), reference.rgb_to_grayscale(images), **EXACT)
    assert torch.equal(solarise(images), reference.solarize(images, 0.5))
    assert not torch.equal(solarise(images), reference.solarize(images, 0.6))


BOXES = np.array([[0, 0, 20, 30], [3, 5, 9, 8], [19, 29, 1, 1], [2, 0, 17, 30], [0, 4, 20, 3], [7, 7, 8, 12]])
FLIP, VERTICAL = np.array([0, 1, 0, 1, 1, 0], bool), np.array([0, 0, 1, 1, 0, 1], bool)


@pytest.mark.parametrize("resize", [resize_by_image, resize_by_weights])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [(8, 12), (20, 30), (33, 5), (1, 1)], ids=str)
def test_crops_are_torchvisions(resize, antialias: bool, size: tuple[int, int]) -> None:
    """Boxes that grow, shrink, do both, and one of a single pixel; on both ways."""
    images = pictures(len(BOXES), 20, 30)
    expected = []
    for image, box, across, down in zip(images, BOXES.tolist(), FLIP, VERTICAL, strict=True):
        resized = reference.resized_crop(image, *box, list(size), antialias=antialias)
        resized = reference.horizontal_flip(resized) if across else resized
        expected.append(reference.vertical_flip(resized) if down else resized)
    ours = resize(images, BOXES, FLIP, VERTICAL, size, antialias)
    moved = resize(images, np.maximum(BOXES - [1, 0, 0, 0], 0), FLIP, VERTICAL, size, antialias)

    torch.testing.assert_close(ours, torch.stack(expected), **EXACT)
    assert (moved - torch.stack(expected)).abs().max() > 1e-2


def test_antialias_differs_where_a_box_shrinks_and_nowhere_else() -> None:
    images = pictures(len(BOXES), 20, 30)
    smooth, plain = (resize_by_weights(images, BOXES, FLIP, VERTICAL, (9, 12), it) for it in (True, False))
    shrinks = (BOXES[:, 2] > 9) | (BOXES[:, 3] > 12)

    assert ((smooth - plain).abs().amax((1, 2, 3)) > 1e-3).tolist() == shrinks.tolist()


@pytest.mark.parametrize(("height", "width", "kernel"), [(9, 9, 3), (9, 12, 17), (40, 70, 23)], ids=str)
def test_blurs_are_torchvisions_and_bands_are_whole_products(height: int, width: int, kernel: int) -> None:
    """Mirrored borders too; 17 pixels reach over the whole of 9."""
    images, sigma = pictures(4, height, width), torch.tensor([0.1, 0.7, 1.3, 5.0])
    expected = torch.stack(
        [reference.gaussian_blur(image, kernel, value) for image, value in zip(images, sigma.tolist(), strict=True)]
    )
    rows, columns = blur_weights(sigma, kernel, height), blur_weights(sigma, kernel, width)

    torch.testing.assert_close(gaussian_blur(images, sigma, kernel), expected, **EXACT)
    torch.testing.assert_close(multiply(rows, images, columns), expected, **EXACT)
    torch.testing.assert_close(blur_by_bands(images, rows, columns, kernel // 2), expected, **EXACT)
    assert (gaussian_blur(images, sigma.roll(1), kernel) - expected).abs().max() > 1e-2
    assert (gaussian_blur(images, sigma, kernel - 2) - expected).abs().max() > 1e-4

"""Each corruption does what its paper says by numbers, changes more where severer, and draws only from its keys."""

import colorsys
import random
from collections.abc import Callable
from itertools import pairwise
from zlib import crc32

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.io import decode_jpeg, encode_jpeg

from lightning_vision.robustness import corrupt_images
from lightning_vision.robustness._pixels import scale, streak
from lightning_vision.robustness._textures import clouds, crystals
from lightning_vision.robustness.corruptions import CORRUPTION_FAMILIES, CORRUPTIONS
from support.photos import sample_photo

NAMES = [name for family in CORRUPTION_FAMILIES.values() for name in family]
RANDOM = [*CORRUPTION_FAMILIES["noise"], "glass_blur", "motion_blur", "snow", "frost", "fog", "elastic_transform"]


def photographs(height: int, width: int) -> Tensor:
    """The temple and the flower, upright and turned by half, uint8 `(4, 3, height, width)`."""
    both = torch.stack([sample_photo(number, height, width) for number in (0, 1)])
    return torch.cat([both, both.flip(2, 3) // 2 + 20])


def error(images: Tensor, corrupted: Tensor) -> float:
    return (corrupted.double() - images.double()).square().mean().item()


def errors(name: str, images: Tensor, seed: int, severities: tuple[int, ...] = (1, 2, 3, 4, 5)) -> list[float]:
    return [error(images, corrupt_images(images, name, severity, seed=seed)) for severity in severities]


def ramp(axis: int, height: int = 224, width: int = 224) -> np.ndarray:
    """Each pixel's row or column, in units of 1000, `(1, height, width)`."""
    return (np.indices((height, width))[axis][None] / 1000).astype(np.float32)


def changed(name: str, image: np.ndarray, severity: int, seed: int = 0) -> np.ndarray:
    """What a corruption gives before it is cut and rounded."""
    return CORRUPTIONS[name](image, severity, np.random.default_rng(seed))


def middle(values: np.ndarray, margin: int = 60) -> np.ndarray:
    return values[..., margin:-margin, margin:-margin]


def test_there_are_fifteen_in_four_families_and_the_identity() -> None:
    assert len(NAMES) == 15
    assert [*NAMES, "identity"] == list(CORRUPTIONS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(48, 64), pytest.param((224, 224), marks=pytest.mark.slow)], ids=str)
def test_row_86_a_higher_severity_changes_pixels_more(name: str, size: tuple[int, int]) -> None:
    images = photographs(*size)

    for seed in range(3):
        found = errors(name, images, seed)

        assert all(later > earlier > 0 for earlier, later in pairwise(found)), found


def test_the_published_strengths_of_snow_and_frost_would_not_grow() -> None:
    """ImageNet-C's snow 2 has a mean of 0.2, its frost 4 has 0.7 of ice: the check above must notice them."""
    image = (photographs(48, 64)[0] / 255).numpy()
    ice = crystals(48, 64, np.random.default_rng(0))
    frosts = [np.square((kept - 1) * image + share * ice).mean() for kept, share in ((0.7, 0.7), (0.65, 0.7))]

    assert frosts[1] < frosts[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 33, 57), (3, 64, 32), (1, 8, 8)], ids=str)
def test_images_keep_their_form(name: str, shape: tuple[int, int, int]) -> None:
    image = photographs(*shape[1:])[:1, : shape[0]]

    for severity in (1, 5):
        found = corrupt_images(image, name, severity)

        assert found.dtype == torch.uint8
        assert found.shape == image.shape
        assert not found.equal(image)


@pytest.mark.parametrize("name", NAMES)
def test_a_corruption_is_a_function_of_seed_and_sample(name: str) -> None:
    images = photographs(32, 40)
    before = images.clone()
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    found = corrupt_images(images, name, 3, index=[5, 7, 5, 9], seed=2)
    alone = torch.cat(
        [corrupt_images(images[i : i + 1], name, 3, [sample], 2) for i, sample in enumerate((5, 7, 5, 9))]
    )

    assert images.equal(before)
    assert alone.equal(found)
    assert corrupt_images(images[[3, 0]], name, 3, index=torch.tensor([9, 5]), seed=2).equal(found[[3, 0]])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[:2]
    assert torch.get_rng_state().equal(states[2])
    drawn = [corrupt_images(images[:1], name, 3, [sample], seed) for sample, seed in ((5, 2), (6, 2), (5, 3))]
    assert [later.equal(drawn[0]) for later in drawn[1:]] == [name not in RANDOM] * 2


def test_draws_come_from_seed_corruption_and_sample() -> None:
    """Written out, so that figures of one release can be set beside those of another."""
    image = photographs(32, 40)[:1]
    for name in ("gaussian_noise", "glass_blur"):
        draws = np.random.default_rng((2, crc32(name.encode()), 7))
        expected = CORRUPTIONS[name]((image[0] / 255).numpy(), 3, draws).clip(0, 1) * 255

        assert np.array_equal(corrupt_images(image, name, 3, [7], 2)[0], expected.round())


def test_severity_0_and_the_identity_change_nothing() -> None:
    images = photographs(32, 40)

    assert corrupt_images(images, "identity", 5).equal(images)
    assert all(corrupt_images(images, name, 0).equal(images) for name in NAMES)


@pytest.mark.parametrize("severity", range(1, 6))
def test_noise_has_the_published_variance(severity: int) -> None:
    """Bounds are four standard errors of a variance; a value of 0.2 leaves room for the counts, and nothing is cut."""
    grey = np.full((3, 200, 200), 0.2, dtype=np.float32)
    bound = 4 * (2 / grey.size) ** 0.5
    sigma, photons = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1], (60, 25, 12, 5, 3)[severity - 1]
    normal, counted = (changed(name, grey, severity) for name in ("gaussian_noise", "shot_noise"))

    assert abs(normal.var() / sigma**2 - 1) < bound
    assert abs(normal.mean() - 0.2) < 4 * sigma / grey.size**0.5
    # A Poisson variance of mean m has excess kurtosis 1 / m.
    assert abs(counted.var() / (0.2 / photons) - 1) < bound * (1 + 1 / (0.4 * photons)) ** 0.5
    assert abs(counted.mean() - 0.2) < 4 * (0.2 / photons / grey.size) ** 0.5
    assert np.allclose(counted * photons, np.round(counted * photons), atol=1e-5)


@pytest.mark.parametrize("severity", range(1, 6))
def test_impulses_hit_the_published_share_half_black_half_white(severity: int) -> None:
    grey = np.full((3, 200, 200), 0.5, dtype=np.float32)
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    found = changed("impulse_noise", grey, severity)
    bound = 4 * (share / 2 * (1 - share / 2) / grey.size) ** 0.5

    assert abs((found == 0).mean() - share / 2) < bound
    assert abs((found == 1).mean() - share / 2) < bound
    assert set(np.unique(found)) == {0, 0.5, 1}


@pytest.mark.parametrize("severity", range(1, 6))
def test_contrast_leaves_the_published_share_of_the_distance_to_the_mean(severity: int) -> None:
    image = torch.tensor([[10, 20], [30, 100]], dtype=torch.uint8).repeat(4, 4)[None, None]
    share = (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]

    assert corrupt_images(image, "contrast", severity).equal((40 + share * (image.double() - 40)).round().byte())


def test_brightness_raises_the_value_of_hsv_and_leaves_hue_and_saturation() -> None:
    image = photographs(8, 8)[1]
    raised = corrupt_images(image[None], "brightness", 2)[0]
    by_hand = [colorsys.rgb_to_hsv(*pixel) for pixel in (image / 255).flatten(1).T.tolist()]
    expected = torch.tensor([colorsys.hsv_to_rgb(h, s, min(v + 0.2, 1)) for h, s, v in by_hand]).T

    assert (raised.flatten(1) - expected * 255).abs().max() <= 0.51
    black = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    assert corrupt_images(black, "brightness", 5).unique().tolist() == [128]


def test_pixelate_averages_boxes() -> None:
    image = photographs(16, 24)[:1]
    expected = image.double().unflatten(2, (8, 2)).unflatten(4, (12, 2)).mean((3, 5))
    found = corrupt_images(image, "pixelate", 2)[:, :, ::2, ::2]

    # Rows and columns are rounded one after the other.
    assert (found - expected).abs().max() <= 1
    assert corrupt_images(image, "pixelate", 2)[:, :, 1::2, 1::2].equal(found)


@pytest.mark.parametrize("name", [*CORRUPTION_FAMILIES["blur"], "elastic_transform", "pixelate", "contrast"])
def test_what_only_moves_or_averages_leaves_a_plain_image_alone(name: str) -> None:
    plain = torch.full((1, 3, 40, 56), 77, dtype=torch.uint8)

    assert corrupt_images(plain, name, 5).equal(plain)


def moments(kernel: np.ndarray) -> tuple[float, float, float]:
    """Sum, mean row from the centre and variance of the rows."""
    rows = np.arange(len(kernel)) - len(kernel) // 2
    across = kernel.sum(1) / kernel.sum()
    mean = float((rows * across).sum())
    return float(kernel.sum()), mean, float((rows**2 * across).sum() - mean**2)


@pytest.mark.parametrize("side", [224, 112])
@pytest.mark.parametrize("severity", range(1, 6))
def test_defocus_spreads_a_point_over_a_disc_of_the_published_radius(severity: int, side: int) -> None:
    """A disc has a variance of r^2 / 4 along an axis, and sharing a place among four pixels adds 1/6 on average."""
    point = np.zeros((1, side, side), dtype=np.float32)
    point[0, side // 2, side // 2] = 1
    radius = (3, 4, 6, 8, 10)[severity - 1] * side / 224
    window = changed("defocus_blur", point, severity)[
        0, side // 2 - 20 : side // 2 + 21, side // 2 - 20 : side // 2 + 21
    ]
    total, mean, variance = moments(window)

    assert total == pytest.approx(1, abs=1e-5)
    assert mean == pytest.approx(0, abs=1e-4)
    assert variance == pytest.approx(radius**2 / 4 + 1 / 6, rel=0.03)


def test_motion_stays_around_its_mean_so_that_boxes_fit() -> None:
    for angle in (0, 30, -45, 90):
        total, mean, _ = moments(streak(15, 8, angle))

        assert total == pytest.approx(1, abs=1e-5)
        assert mean == pytest.approx(0, abs=1e-4)
    along = np.arange(31.0)
    weights = np.exp(-(along**2) / 128)
    # As published, from one end to the other, what moves would be off by six pixels.
    assert np.average(along, weights=weights) > 6
    fading = moments(streak(15, 8, 90))[2]
    assert fading == pytest.approx(
        np.average(along**2, weights=weights) - np.average(along, weights=weights) ** 2, rel=0.05
    )


@pytest.mark.parametrize("severity", range(1, 6))
def test_zoom_blur_is_the_mean_of_the_published_enlargements(severity: int) -> None:
    """On a ramp interpolation is exact: a pixel d off the centre is the mean of d and of d / f over the factors f."""
    most, step = ((0.10, 0.01), (0.15, 0.01), (0.20, 0.02), (0.24, 0.02), (0.30, 0.03))[severity - 1]
    factors = 1 + np.arange(0, most + step / 2, step)
    distance = np.indices((64, 224))[0] - 31.5
    expected = (distance + sum(distance / factor for factor in factors)) / (len(factors) + 1) + 31.5
    found = changed("zoom_blur", ramp(0, 64, 224), severity)[0] * 1000

    assert np.abs(found - expected).max() < 1e-3


@pytest.mark.parametrize("severity", range(1, 6))
def test_elastic_moves_pixels_by_the_published_deviation(severity: int) -> None:
    """On a ramp the result is where each pixel came from. A field of correlation length 2.24 has few independent
    places, 224^2 / (4 pi 2.24^2) = 796, so its deviation is known to 1 / sqrt(2 * 796): 10 percent is four of these."""
    size = (1.018, 1.323, 1.730, 2.036, 2.443)[severity - 1]
    moved = (changed("elastic_transform", ramp(0), severity) - ramp(0)) * 1000

    assert middle(moved, 12).std() == pytest.approx(size, rel=0.10)
    assert np.abs(middle(moved, 12)).max() < 5 * size


@pytest.mark.parametrize("severity", range(1, 6))
def test_glass_moves_pixels_within_its_reach(severity: int) -> None:
    reach, times = ((1, 2), (2, 1), (2, 3), (3, 2), (4, 2))[severity - 1]
    moved = (changed("glass_blur", ramp(1), severity) - ramp(1)) * 1000

    assert 0 < np.abs(middle(moved)).max() < reach * times
    assert abs(middle(moved).mean()) < 0.05


def test_fog_grows_in_every_image() -> None:
    """(x + a v) m / (m + a) - x = a (v m - x) / (m + a), whose size grows with a at every pixel."""
    for number, image in enumerate(photographs(32, 40)):
        pixels = (image / 255).numpy()
        found = [np.abs(changed("fog", pixels, severity, number) - pixels) for severity in range(1, 6)]

        assert all((later >= earlier - 1e-6).all() for earlier, later in pairwise(found))


@pytest.mark.parametrize(("severity", "amount"), list(enumerate((1.5, 2.0, 2.5, 2.75, 3.0), start=1)))
def test_fog_is_as_thick_as_said_and_no_brighter_than_the_image(severity: int, amount: float) -> None:
    veil = clouds(32, 40, 1.7, np.random.default_rng(0))
    found = changed("fog", np.full((1, 32, 40), 0.6, dtype=np.float32), severity)

    assert np.allclose(found, (0.6 + amount * veil) * 0.6 / (0.6 + amount), atol=1e-6)


@pytest.mark.parametrize(
    ("severity", "kept", "ice"), [(1, 1.0, 0.4), (2, 0.8, 0.6), (3, 0.7, 0.7), (4, 0.65, 0.75), (5, 0.6, 0.8)]
)
def test_frost_is_so_much_of_the_image_and_so_much_bluish_ice(severity: int, kept: float, ice: float) -> None:
    grey = crystals(32, 40, np.random.default_rng(0))
    found = [changed("frost", np.full((3, 32, 40), value, dtype=np.float32), severity) for value in (0, 0.5)]

    assert np.allclose(found[1] - found[0], kept / 2, atol=1e-6)
    assert np.allclose(found[0][2], ice * grey, atol=1e-6)
    assert found[0][0].mean() < found[0][1].mean() < found[0][2].mean()


@pytest.mark.parametrize(
    ("severity", "mean", "grid", "least", "kept"),
    [
        (1, 0.1, 3, 0.5, 0.8),
        (2, 0.1, 2, 0.5, 0.7),
        (3, 0.55, 4, 0.9, 0.7),
        (4, 0.55, 4.5, 0.85, 0.65),
        (5, 0.55, 2.5, 0.85, 0.55),
    ],
)
def test_snow_whitens_and_falls_as_thick_as_said(
    severity: int, mean: float, grid: float, least: float, kept: float
) -> None:
    """Where no flake is, all is whitened; flakes are counted at single points between four drawn numbers."""
    white = kept * 0.3 + (1 - kept) * (1.5 * 0.3 + 0.5)
    found = np.stack([changed("snow", np.full((1, 224, 224), 0.3, np.float32), severity, seed) for seed in range(4)])
    random = np.random.default_rng(0)
    down, right = random.choice(np.arange(224) / grid % 1, (2, 100_000))
    drawn = random.normal(mean, 0.3, (4, 100_000))
    weights = (1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right
    points = sum(weight * number for weight, number in zip(weights, drawn, strict=True))
    flakes = np.clip(np.where(points < least, 0, points), 0, 1)

    assert found.min() == pytest.approx(white, abs=2e-3)
    assert found.mean() - white == pytest.approx(2 * flakes.mean(), rel=0.08)
    assert np.allclose(found, found[..., ::-1, ::-1], atol=1e-6)
    # It falls, so that what changes along its way changes less.
    assert np.abs(np.diff(found, axis=2)).mean() < 0.8 * np.abs(np.diff(found, axis=3)).mean()


@pytest.mark.parametrize(("severity", "quality"), list(enumerate((25, 18, 15, 10, 7), start=1)))
def test_jpeg_equals_torchvisions(severity: int, quality: int) -> None:
    for channels in (1, 3):
        image = photographs(40, 56)[0, :channels]
        expected = decode_jpeg(encode_jpeg(image, quality))

        assert corrupt_images(image[None], "jpeg_compression", severity)[0].equal(expected)


@pytest.mark.parametrize(("severity", "rows"), list(enumerate((24, 20, 16, 12, 10), start=1)))
def test_pixelate_leaves_the_published_share_of_the_rows(severity: int, rows: int) -> None:
    image = (torch.arange(40)[:, None] * 6).expand(1, 1, 40, 40).byte()

    assert len(corrupt_images(image, "pixelate", severity).unique()) == rows


def test_textures_fill_their_range() -> None:
    for make in (crystals, lambda height, width, draws: clouds(height, width, 1.7, draws)):
        texture: Callable[..., np.ndarray] = make
        found = texture(50, 64, np.random.default_rng(0))

        assert found.shape == (50, 64)
        assert 0 <= found.min() < 0.2
        assert 0.8 < found.max() <= 1


def test_clouds_leave_the_mean_of_their_neighbours_by_less_from_size_to_size() -> None:
    """By a factor of 1.7^2; the coarser of two deviations is known to 1.4 percent, and bounds are four of these."""
    found = clouds(128, 128, 1.7, np.random.default_rng(0))
    deviations = []
    for shown in (found, found[::2, ::2]):
        corners = shown[::2, ::2]
        below = np.roll(corners, -1, 0)
        around = (corners + below + np.roll(corners, -1, 1) + np.roll(below, -1, 1)) / 4
        deviations.append((shown[1::2, 1::2] - around).std())

    assert deviations[1] / deviations[0] == pytest.approx(1.7**2, rel=0.06)


def test_snow_falls_on_small_images_as_on_large_ones() -> None:
    """Shrunk snow is snow on a shrunk image, but for the draws, of which a small image has as many."""
    grey = [np.full((1, side, side), 0.3, dtype=np.float32) for side in (224, 32)]
    white = [np.mean([changed("snow", image, 3, seed).mean() for seed in range(4)]) for image in grey]

    assert white[0] > 0.45
    assert white[1] == pytest.approx(white[0], rel=0.05)


def test_lengths_follow_small_images_and_stay_in_large_ones() -> None:
    sides = ((224, 224), (112, 300), (500, 600))

    assert [scale(np.zeros((3, *side), dtype=np.float32)) for side in sides] == [1, 0.5, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fogg", 1), "there is no corruption 'fogg'; did you mean fog?"),
        (("fog", 6), "severity 6 of fog: give 1 to 5, or 0 for the image as it is"),
        (("fog", -1), "severity -1 of fog"),
    ],
)
def test_what_is_no_corruption_is_refused(arguments: tuple[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=r"corruption|severity") as refused:
        corrupt_images(photographs(32, 32), *arguments)

    assert message in str(refused.value)


@pytest.mark.parametrize(
    "images",
    [torch.zeros(2, 3, 32, 32), torch.zeros(3, 32, 32, dtype=torch.uint8), torch.zeros(2, 4, 32, 32).byte()],
    ids=["floats", "one", "four channels"],
)
def test_what_is_no_batch_of_bytes_is_refused(images: Tensor) -> None:
    with pytest.raises(
        ValueError, match=r"fog takes uint8 images \(B, C, H, W\) with C 1 or 3 and sides of at least 8"
    ):
        corrupt_images(images, "fog", 1)

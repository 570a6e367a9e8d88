"""Reading image files: every mode comes out as the pixels a viewer shows, every broken file as one sentence."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_vision import images
from lightning_vision.images import (
    BadImageError,
    convert_image,
    fit_image,
    list_images,
    placement_of,
    read_fitted,
    read_image,
    rescale,
)

RED, GREY = [255, 0, 0], [100, 100, 100]


def photo(height: int = 6, width: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def palette_with_hole() -> Image.Image:
    image = Image.new("P", (2, 2), 0)
    image.putpalette([*RED, 0, 0, 255])
    image.putpixel((1, 0), 1)
    image.info["transparency"] = 1
    return image


MODES = {
    "grey": (Image.new("L", (2, 2), 100), [GREY, GREY]),
    "bilevel": (Image.new("1", (2, 2), 1), [[255] * 3, [255] * 3]),
    "16 bit": (Image.fromarray(np.full((2, 2), 100 * 257, dtype=np.uint16)), [GREY, GREY]),
    "32 bit counts as 16": (Image.fromarray(np.full((2, 2), 100 * 257, dtype=np.int32)), [GREY, GREY]),
    "float": (Image.new("F", (2, 2), 100.0), [GREY, GREY]),
    "palette": (Image.new("RGB", (2, 2), (255, 0, 0)).quantize(2), [RED, RED]),
    "palette with a hole": (palette_with_hole(), [RED, [255, 255, 255]]),
    "transparent": (Image.new("RGBA", (2, 2), (255, 0, 0, 0)), [[255] * 3, [255] * 3]),
    "half transparent": (Image.new("RGBA", (2, 2), (255, 0, 0, 128)), [[255, 127, 127], [255, 127, 127]]),
    "grey and transparent": (Image.new("LA", (2, 2), (0, 0)), [[255] * 3, [255] * 3]),
    "CMYK": (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), [RED, RED]),
    "YCbCr": (Image.new("RGB", (2, 2), (255, 0, 0)).convert("YCbCr"), [[254, 0, 0], [254, 0, 0]]),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_the_colours_a_viewer_shows(mode: str) -> None:
    image, top_row = MODES[mode]
    pixels = convert_image(image)

    assert pixels.dtype == torch.uint8
    assert top_row == pixels[:, 0].T.tolist()


def test_one_channel_is_the_luminance() -> None:
    assert convert_image(Image.new("RGB", (1, 1), (255, 0, 0)), channels=1)[0].tolist() == [[76]]


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm", "webp", "gif"])
def test_lossless_formats_give_the_pixels_back(suffix: str, tmp_path: Path) -> None:
    image = photo().quantize(16).convert("RGB")
    image.save(tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))

    assert np.array_equal(np.asarray(image), read_image(tmp_path / f"a.{suffix}").permute(1, 2, 0).numpy())


def test_16_bit_files_are_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")

    assert read_image(tmp_path / "deep.png", channels=1)[0].tolist() == [[0, 1, 128, 255]]


def test_exif_orientation_turns_the_image(tmp_path: Path) -> None:
    image, exif = photo(), Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    upright = np.rot90(np.asarray(image), k=-1)

    assert np.array_equal(upright, read_image(tmp_path / "turned.png").permute(1, 2, 0).numpy())


def test_crop_keeps_the_aspect_ratio_and_the_middle() -> None:
    stripes = np.zeros((2, 6), dtype=np.uint8)
    stripes[:, 2:4] = 200

    assert convert_image(Image.fromarray(stripes), 1, (2, 2), "crop")[0].tolist() == [[200, 200], [200, 200]]


def test_squash_shows_everything() -> None:
    halves = np.repeat(np.array([[0, 0, 0, 0, 200, 200, 200, 200]], dtype=np.uint8), 4, axis=0)
    left, right = convert_image(Image.fromarray(halves), 1, (1, 2), "squash")[0, 0].tolist()

    assert left < 30
    assert right > 170


def test_letterbox_shows_everything_in_proportion_between_bars_of_grey() -> None:
    image = photo(10, 40)
    fitted = fit_image(image, 3, (31, 20))
    inner = np.asarray(image.resize((20, 5), Image.Resampling.BILINEAR))

    assert tuple(fitted.pixels.shape) == (3, 31, 20)
    assert np.array_equal(inner, fitted.pixels[:, 13:18].permute(1, 2, 0).numpy())
    assert {images.GREY} == {*fitted.pixels[:, :13].unique().tolist(), *fitted.pixels[:, 18:].unique().tolist()}
    assert (fitted.placement, fitted.size) == ((0.5, 0.5, 0.0, 13.0), (10, 40))
    assert {images.GREY} == {*fit_image(image, 1, (31, 20)).pixels[:, :13].unique().tolist()}


def test_the_placement_says_where_the_corners_of_a_rectangle_went() -> None:
    for size, wanted, fit in [((60, 100), (48, 48), "letterbox"), ((60, 100), (90, 30), "squash")]:
        image = Image.new("L", size[::-1], 0)
        image.paste(255, (20, 10, 80, 40))
        fitted = fit_image(image, 1, wanted, fit)  # type: ignore[arg-type]  # both are fits
        across, down, right, below = fitted.placement
        ink = fitted.pixels[0] > 200
        rows, columns = ink.any(1).nonzero(), ink.any(0).nonzero()
        found = [int(edge) for edge in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]

        expected = [20 * across + right, 10 * down + below, 80 * across + right, 40 * down + below]
        # A pixel that the edge cuts is grey.
        assert max(abs(one - other) for one, other in zip(expected, found, strict=True)) <= 1


@pytest.mark.parametrize(
    ("size", "image_size", "expected"),
    [
        ((64, 64), (64, 64), (1.0, 1.0, 0.0, 0.0)),
        # 3 of 1000 pixels across; a side keeps one pixel
        ((1000, 3), (10, 10), (1 / 3, 0.01, 4.0, 0.0)),
        # 7.5 rows are rounded to 8, so the scale down is a little larger
        ((15, 40), (20, 20), (0.5, 8 / 15, 0.0, 6.0)),
        # enlarged, one column more on the right
        ((10, 10), (20, 31), (2.0, 2.0, 5.0, 0.0)),
    ],
    ids=["its own size", "narrow", "rounded", "enlarged"],
)
def test_letterbox_placements_by_hand(
    size: tuple[int, int], image_size: tuple[int, int], expected: tuple[float, ...]
) -> None:
    assert expected == placement_of(size, image_size)


def test_a_fitted_file_keeps_its_own_size_where_none_is_wanted(tmp_path: Path) -> None:
    photo().save(tmp_path / "a.png")
    fitted = read_fitted(tmp_path / "a.png")

    assert torch.equal(read_image(tmp_path / "a.png"), fitted.pixels)
    assert (fitted.placement, fitted.size) == ((1.0, 1.0, 0.0, 0.0), (6, 8))


def test_sizes_are_height_then_width() -> None:
    assert tuple(convert_image(photo(), 3, (5, 7), "crop").shape) == (3, 5, 7)
    assert tuple(convert_image(photo()).shape) == (3, 6, 8)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp"])
def test_a_truncated_file_is_one_sentence_with_its_name(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"cut.{suffix}"
    photo(64, 64).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadImageError) as caught:
        read_image(path)

    assert f"cannot decode the image {path}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8\xff"])
def test_what_is_no_image_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(content)

    with pytest.raises(BadImageError, match=rf"^cannot decode the image {re.escape(str(path))}: .+$"):
        read_image(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"^there is no image file {re.escape(str(tmp_path / 'no.png'))}$"):
        read_image(tmp_path / "no.png")


@pytest.mark.parametrize("options", [{"channels": 2}, {"resize": "stretch"}])
def test_unknown_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="channels must be 1 or 3 and resize 'crop', 'squash' or 'letterbox'"):
        convert_image(photo(), **options)  # type: ignore[arg-type]  # that is the point


def test_listing_is_recursive_sorted_and_skips_what_is_hidden_or_no_image(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "b/10.jpg", "a.jpeg", ".hidden.png", ".git/x.png", "notes.txt", "b/._1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    assert [Path(path).relative_to(tmp_path).as_posix() for path in list_images(tmp_path)] == [
        "a.jpeg",
        "b/10.jpg",
        "b/2.PNG",
    ]


def test_links_to_folders_are_followed_but_a_circle_ends(tmp_path: Path) -> None:
    for name in ("root/b/1.png", "elsewhere/2.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    (tmp_path / "root" / "b" / "up").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "c").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "d").symlink_to(tmp_path / "elsewhere")

    assert list_images(tmp_path / "root") == [
        str(tmp_path / "root" / "b" / "1.png"),
        str(tmp_path / "root" / "c" / "2.png"),
    ]


def test_listing_a_missing_folder_says_so() -> None:
    with pytest.raises(FileNotFoundError, match=r"^there is no folder nowhere$"):
        list_images("nowhere")


def test_reading_warns_of_nothing(tmp_path: Path) -> None:
    palette_with_hole().save(tmp_path / "p.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(tmp_path / "p.png")


def test_a_single_file_is_its_own_list(tmp_path: Path) -> None:
    (tmp_path / "scan.bin").write_bytes(b"")

    assert list_images(tmp_path / "scan.bin") == [str(tmp_path / "scan.bin")]


def test_normalise_by_hand() -> None:
    image = torch.tensor([0, 255], dtype=torch.uint8).view(1, 2, 1, 1)
    scale, shift = torch.tensor([4.0, 2.0]) / 255, torch.tensor([1.0, -0.5])
    result = rescale(image, scale.view(-1, 1, 1), shift.view(-1, 1, 1))

    assert torch.float32 == result.dtype
    assert result.flatten().tolist() == [-1.0, 2.5]


def test_normalising_leaves_the_images_alone() -> None:
    floats = torch.ones(1, 1, 2, 2)
    rescale(floats, torch.full((1, 1, 1), 2.0), torch.ones(1, 1, 1))

    assert (floats == 1).all()

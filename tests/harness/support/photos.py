"""Folders of photographs as people have them: mixed sizes, modes, formats and endings, nothing downloaded.

The photographs lie inside scikit-image and scikit-learn, the digits inside scikit-learn. A photograph is cut into tiles
that do not overlap, so images of one class share a subject and no pixel.
"""

import csv
from pathlib import Path

import numpy as np
import skimage
import sklearn
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor
from torchvision.transforms.v2.functional import resize

__all__ = ["PHOTOGRAPHS", "damage", "digit_folder", "photo_folder", "photo_table", "sample_photo"]

_SKIMAGE = Path(skimage.__file__).parent / "data"
_SKLEARN = Path(sklearn.__file__).parent / "datasets" / "images"
PHOTOGRAPHS = {
    "astronaut": _SKIMAGE / "astronaut.png",
    "brick": _SKIMAGE / "brick.png",
    "cat": _SKIMAGE / "chelsea.png",
    "coffee": _SKIMAGE / "coffee.png",
    "coins": _SKIMAGE / "coins.png",
    "flower": _SKLEARN / "flower.jpg",
    "galaxies": _SKIMAGE / "hubble_deep_field.jpg",
    "grass": _SKIMAGE / "grass.png",
    "gravel": _SKIMAGE / "gravel.png",
    "moon": _SKIMAGE / "moon.png",
    "retina": _SKIMAGE / "retina.jpg",
    "rocket": _SKIMAGE / "rocket.jpg",
    "temple": _SKLEARN / "china.jpg",
}
"""Name of a class and the photograph that its images are cut from."""

_USUAL = ("brick", "cat", "coffee", "flower", "moon", "rocket")
_ENDINGS = (".jpg", ".png", ".png", ".png", ".png", ".png", ".JPG", ".jpeg", ".tif", ".bmp", ".PNG", ".webp")


def photo_folder(root: str | Path, classes: tuple[str, ...] = _USUAL, number: int = 20, seed: int = 0) -> Path:
    """Class folders of tiles of `PHOTOGRAPHS`, 40 to 110 pixels a side.

    In turn they are JPEG, PNG in RGB, grey, palette, RGBA and 16-bit grey, a JPEG with an ending in capitals, a JPEG
    turned by its EXIF orientation, TIFF, BMP, a PNG with an ending in capitals and WebP.

    Args:
        root: Folder to make; a class folder that it has already keeps its files.
        classes: Names out of `PHOTOGRAPHS`.
        number: Images a class, up to 24.
        seed: Chooses the sizes and which tiles are taken.

    Returns:
        The folder.
    """
    root = Path(root)
    draw = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        with Image.open(PHOTOGRAPHS[name]) as file:
            photograph = file.convert("RGB").resize((660, 440))
        for index, tile in enumerate(draw.permutation(24)[:number].tolist()):
            width, height = draw.integers(40, 111, 2).tolist()
            left, top = tile % 6 * 110, tile // 6 * 110
            _write(photograph.crop((left, top, left + width, top + height)), root / name / f"{name}_{index}", index)
    return root


def digit_folder(root: str | Path, classes: int = 10, number: int = 20) -> Path:
    """Class folders `zero`, `one`, ... of handwritten digits, grey PNG files of 8 x 8 pixels."""
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    digits = load_digits()
    for label, word in enumerate(words[:classes]):
        (Path(root) / word).mkdir(parents=True)
        for index, pixels in enumerate(digits.images[digits.target == label][:number]):
            Image.fromarray((pixels * 255 / 16).astype(np.uint8)).save(Path(root) / word / f"{index}.png")
    return Path(root)


def photo_table(path: str | Path, root: str | Path) -> Path:
    """A CSV file with the columns `path` and `label`, a row for each image of the class folders below `root`."""
    root = Path(root)
    rows = [(file.relative_to(root).as_posix(), file.parent.name) for file in sorted(root.glob("*/*"))]
    with Path(path).open("w", encoding="utf-8", newline="") as table:
        csv.writer(table).writerows([("path", "label"), *rows])
    return Path(path)


def damage(file: Path) -> Path:
    """Cut the second half of a file off, as a broken copy does."""
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    return file


def _write(tile: Image.Image, stem: Path, index: int) -> None:
    kind = index % len(_ENDINGS)
    path = stem.with_name(stem.name + _ENDINGS[kind])
    if kind == 2:
        tile = tile.convert("L")
    elif kind == 3:
        tile = tile.quantize(64)
    elif kind == 4:
        tile.putalpha(255)
    elif kind == 5:
        grey = np.asarray(tile.convert("L"), dtype=np.uint16)
        tile = Image.fromarray(grey * 257)
    if kind == 7:
        exif = Image.Exif()
        exif[0x0112] = 6  # shown after a quarter turn
        tile.rotate(90, expand=True).save(path, exif=exif)
    else:
        tile.save(path)


def sample_photo(number: int, height: int, width: int) -> Tensor:
    """scikit-learn's temple (0) or flower (1), uint8 `(3, height, width)`."""
    image = torch.from_numpy(load_sample_images().images[number].copy()).permute(2, 0, 1)
    return resize(image, [height, width]).contiguous()

"""The fifteen common corruptions of images, by name.

Hendrycks and Dietterich 2019, arXiv:1903.12261. Every draw is a function of (seed, corruption, sample), so an image is
corrupted alike wherever it stands in a batch, on every machine of a version of numpy.
"""

from collections.abc import Callable, Sequence
from types import MappingProxyType
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from lightning_vision.catalogue import nearest

from ._pixels import Pixels
from .blur import defocus_blur, glass_blur, motion_blur, zoom_blur
from .digital import contrast, elastic_transform, jpeg_compression, pixelate
from .noise import gaussian_noise, impulse_noise, shot_noise
from .weather import brightness, fog, frost, snow

__all__ = ["check_corruption", "corrupt_images"]

Corruption = Callable[[Pixels, int, np.random.Generator], Pixels]

SMALLEST = 8
SEVERITIES = (1, 2, 3, 4, 5)


def _identity(image: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    return image


CORRUPTION_FAMILIES = MappingProxyType(
    {
        "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
        "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
        "weather": ("snow", "frost", "fog", "brightness"),
        "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    }
)

CORRUPTIONS: MappingProxyType[str, Corruption] = MappingProxyType(
    {
        "gaussian_noise": gaussian_noise,
        "shot_noise": shot_noise,
        "impulse_noise": impulse_noise,
        "defocus_blur": defocus_blur,
        "glass_blur": glass_blur,
        "motion_blur": motion_blur,
        "zoom_blur": zoom_blur,
        "snow": snow,
        "frost": frost,
        "fog": fog,
        "brightness": brightness,
        "contrast": contrast,
        "elastic_transform": elastic_transform,
        "pixelate": pixelate,
        "jpeg_compression": jpeg_compression,
        "identity": _identity,
    }
)


def check_corruption(corruption: str, severity: int) -> None:
    """Refuse what is no corruption or no severity.

    Args:
        corruption: A name in `CORRUPTIONS`.
        severity: 1..5, or 0 for the image as it is.

    Raises:
        ValueError: it is none.
    """
    if corruption not in CORRUPTIONS:
        hint = nearest(corruption, CORRUPTIONS) or f"; there are {', '.join(CORRUPTIONS)}"
        raise ValueError(f"there is no corruption {corruption!r}{hint}")
    if severity not in (0, *SEVERITIES):
        raise ValueError(f"severity {severity} of {corruption}: give 1 to 5, or 0 for the image as it is")


def corrupt_images(
    images: Tensor, corruption: str, severity: int, index: Sequence[int] | Tensor | None = None, seed: int = 0
) -> Tensor:
    """Corrupt each image of a batch in one of fifteen common ways; where its objects are stays true.

    Pixels move by little: with `elastic_transform` by 1 to 2.4 on average in an image of 224, with `glass_blur` by up
    to 8; `zoom_blur` smears outwards from the centre. Nothing but these, and `motion_blur` around its mean, moves.

    Args:
        images: uint8 `(B, C, H, W)`, 0..255, C is 1 or 3; left alone.
        corruption: A name in `CORRUPTIONS`; `identity` leaves the images as they are.
        severity: 1..5; 0 is neutral.
        index: Which sample each image is, B numbers of at least 0; None counts from 0.
        seed: At least 0; another one draws other noise.

    Returns:
        uint8 `(B, C, H, W)`.

    Shape:
        H and W are at least 8 and need not be alike; lengths in pixels are the published ones where the shorter is at
        least 224 and shrink with it below.

    Raises:
        ValueError: the images are none of these, or there is no such corruption or severity.

    Example:
        >>> images = torch.full((2, 3, 32, 48), 128, dtype=torch.uint8)
        >>> corrupt_images(images, "fog", severity=3).shape
        torch.Size([2, 3, 32, 48])

    Reference: Hendrycks and Dietterich 2019, arXiv:1903.12261

    BibTeX:
        @inproceedings{hendrycks2019benchmarking,
          title = {Benchmarking Neural Network Robustness to Common Corruptions and Perturbations},
          author = {Hendrycks, Dan and Dietterich, Thomas},
          booktitle = {International Conference on Learning Representations},
          year = {2019},
          eprint = {1903.12261},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        Frost is drawn, not photographed; the elastic distortion is that of Michaelis et al. 2019, which leaves objects
        where they are; motion is blurred around its mean for the same reason; glass moves all pixels at once by
        continuous draws instead of swapping them in turn; lengths follow images smaller than 224 pixels; values are
        rounded, not cut.

    See also:
        `robustness_scores`, `lightning_vision corrupt`.
    """
    check_corruption(corruption, severity)
    batched = images.dtype == torch.uint8 and images.ndim == 4
    if not batched or images.shape[1] not in (1, 3) or min(images.shape[2:]) < SMALLEST:
        shape = tuple(images.shape)
        raise ValueError(
            f"{corruption} takes uint8 images (B, C, H, W) with C 1 or 3 and sides of at least {SMALLEST}, "
            f"not {images.dtype} {shape}"
        )
    samples = range(len(images)) if index is None else [int(sample) for sample in index]
    if severity == 0 or corruption == "identity":
        return images.clone()
    change, key = CORRUPTIONS[corruption], crc32(corruption.encode())
    found = torch.empty_like(images, memory_format=torch.contiguous_format)
    for position, sample in enumerate(samples):
        pixels = images[position].cpu().numpy().astype(np.float32) / np.float32(255)
        changed = change(pixels, severity, np.random.default_rng((seed, key, sample)))
        found[position] = torch.from_numpy(np.round(np.clip(changed, 0, 1) * 255).astype(np.uint8))
    return found

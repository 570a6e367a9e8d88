"""The two networks of DCGAN: strided convolutions with batch norm, for images of any size.

Letters: B images `(B, C, H, W)`, a latent vector of D numbers.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["DCGANDiscriminator", "DCGANGenerator", "halvings", "normal_weights"]


def halvings(image_size: tuple[int, int], levels: int | None, smallest: int = 4) -> int:
    """How often a network halves an image's sides.

    Args:
        image_size: H and W, pixels.
        levels: The number wanted; None is as many as leave both sides at least `smallest`, and at least one.
        smallest: Pixels.

    Raises:
        ValueError: the sides cannot be halved so often.

    Example:
        >>> halvings((64, 64), None), halvings((8, 8), None), halvings((8, 8), 2)
        (4, 1, 2)
    """
    possible = 0
    while all(side % 2 ** (possible + 1) == 0 for side in image_size):
        possible += 1
    if levels is None:
        fitting = [it for it in range(2, possible + 1) if min(image_size) // 2**it >= smallest]
        levels = max(fitting, default=1)
    if not 1 <= levels <= possible:
        sides = " x ".join(map(str, image_size))
        raise ValueError(
            f"images of {sides} pixels can be halved {possible} times, and {levels} halvings are wanted; give sides "
            f"that are multiples of {2 ** max(levels, 1)}, or other levels"
        )
    return levels


def normal_weights(network: nn.Module, deviation: float = 0.02) -> None:
    """Begin as the paper does: weights from N(0, 0.02), scales of batch norms from N(1, 0.02), biases 0.

    Args:
        network: Of convolutions, linear layers, embeddings and batch norms.
        deviation: Of the normal numbers.
    """
    for part in network.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, 0.0, deviation)
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight, 1.0, deviation)
        if isinstance(bias := getattr(part, "bias", None), Tensor):
            nn.init.zeros_(bias)


def widths(channels: int, levels: int) -> list[int]:
    """Channels of each level, from the finest: they double, up to eight times the first."""
    return [channels * min(2**level, 8) for level in range(levels)]


class DCGANGenerator(nn.Module):
    """Transposed convolutions that double a small map until it is an image; a label joins the latent vector.

    Args:
        image_size: H and W, pixels.
        in_channels: C.
        latent_dim: D.
        channels: Of the level below the image; each further one has twice as many, up to eight times these.
        levels: Doublings; None is as many as begin at no less than 4 pixels.
        num_classes: Of labels; 0 where images have none.

    Shape:
        `(B, D)` and label int64 `(B,)` to `(B, C, H, W)` in -1..1.

    Raises:
        ValueError: the image's sides cannot be halved so often.

    Reference: Radford et al. 2016, arXiv:1511.06434
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        in_channels: int = 3,
        latent_dim: int = 100,
        channels: int = 64,
        levels: int | None = None,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        levels = halvings(image_size, levels)
        height, width = (side // 2**levels for side in image_size)
        self.label = nn.Embedding(num_classes, latent_dim) if num_classes else None
        coarse_to_fine = widths(channels, levels)[::-1]
        seen = latent_dim * (2 if num_classes else 1)
        layers: list[nn.Module] = [nn.ConvTranspose2d(seen, coarse_to_fine[0], (height, width), bias=False)]
        for before, after in pairwise(coarse_to_fine):
            layers += [nn.BatchNorm2d(before), nn.ReLU(True), nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False)]
        last = coarse_to_fine[-1]
        layers += [nn.BatchNorm2d(last), nn.ReLU(True), nn.ConvTranspose2d(last, in_channels, 4, 2, 1), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        normal_weights(self)

    def forward(self, latent: Tensor, label: Tensor | None = None) -> Tensor:
        if self.label is not None:
            latent = torch.cat([latent, self.label(label)], dim=1)
        found: Tensor = self.layers(latent[:, :, None, None])
        return found


class DCGANDiscriminator(nn.Module):
    """Strided convolutions that halve an image until one linear layer judges it; a label adds a layer of its own.

    Args:
        image_size: H and W, pixels.
        in_channels: C.
        channels: Of the first level; each further one has twice as many, up to eight times these.
        levels: Halvings; None is as many as end at no less than 4 pixels.
        num_classes: Of labels; 0 where images have none.

    Shape:
        `(B, C, H, W)` and label int64 `(B,)` to logits `(B,)`, positive for real.

    Raises:
        ValueError: the image's sides cannot be halved so often.

    Reference: Radford et al. 2016, arXiv:1511.06434; labels: Miyato and Koyama 2018, arXiv:1802.05637
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        in_channels: int = 3,
        channels: int = 64,
        levels: int | None = None,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        levels = halvings(image_size, levels)
        fine_to_coarse = widths(channels, levels)
        layers: list[nn.Module] = [nn.Conv2d(in_channels, fine_to_coarse[0], 4, 2, 1), nn.LeakyReLU(0.2, True)]
        for before, after in pairwise(fine_to_coarse):
            layers += [nn.Conv2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.2, True)]
        self.layers = nn.Sequential(*layers, nn.Flatten())
        features = fine_to_coarse[-1] * (image_size[0] // 2**levels) * (image_size[1] // 2**levels)
        self.judge = nn.Linear(features, 1)
        self.label = nn.Embedding(num_classes, features) if num_classes else None
        normal_weights(self)

    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        features = self.layers(image)
        logits: Tensor = self.judge(features).squeeze(1)
        if self.label is not None:
            logits = logits + (self.label(label) * features).sum(1)
        return logits

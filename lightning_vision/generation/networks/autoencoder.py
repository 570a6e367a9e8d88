"""Convolutions from images to Gaussian codes and back, and the same of layers from codes to codes of codes.

Letters: B images `(B, C, H, W)`, s the stride of the code's map, L its channels, D numbers of a flat code.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import gcd

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["AutoEncoder", "CodeAutoEncoder", "Decoder", "Encoder"]

# Of log variances, those of latent diffusion: one network's outlier in a million would make exp infinite.
LOWEST, HIGHEST = -30.0, 20.0


class Encoder(nn.Sequential):
    """Residual blocks at several resolutions, each half as fine as the one before: images to maps `(B, K, H/s, W/s)`.

    Args:
        in_channels: C.
        channels: Of the first level.
        multiples: Channels of each level over those of the first; s is 2^(levels - 1), and K the last level's channels.
        blocks: Residual blocks of a level.
    """

    def __init__(self, in_channels: int, channels: int, multiples: Sequence[int], blocks: int) -> None:
        widths = [channels * multiple for multiple in multiples]
        parts: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], 3, padding=1)]
        before = widths[0]
        for level, width in enumerate(widths):
            if level:
                parts.append(nn.Conv2d(before, before, 3, stride=2, padding=1))
            for _ in range(blocks):
                parts.append(_Block(before, width))
                before = width
        super().__init__(*parts, _norm(before), nn.SiLU())


class Decoder(nn.Sequential):
    """The same the other way: maps `(B, K, H/s, W/s)` to images.

    Args:
        in_channels: C.
        channels: Of the level as fine as the image.
        multiples: Channels of each level over those of that one, from fine to coarse, as the encoder's.
        blocks: Residual blocks of a level.
    """

    def __init__(self, in_channels: int, channels: int, multiples: Sequence[int], blocks: int) -> None:
        widths = [channels * multiple for multiple in multiples]
        parts: list[nn.Module] = []
        before = widths[-1]
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(blocks):
                parts.append(_Block(before, width))
                before = width
            if level:
                parts += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1)]
        super().__init__(*parts, _norm(before), nn.SiLU(), nn.Conv2d(before, in_channels, 3, padding=1))


class AutoEncoder(nn.Module):
    """An encoder that tells mean and log variance of an image's code, and a decoder of codes.

    Args:
        image_size: H and W, multiples of s.
        in_channels: C.
        channels: Of the first level.
        multiples: Channels of each level over those of the first; s is 2^(levels - 1).
        blocks: Residual blocks of a level.
        latent_channels: L, where the code is a map.
        latent_dim: D of a flat code; None leaves it a map.

    Shape:
        Codes are `(B, L, H/s, W/s)` or `(B, D)`. A map's H and W may be other multiples of s than those given.

    Raises:
        ValueError: from the constructor, a number is not positive or sides are no multiples of s; from `encode`, the
            image's sides are not such.

    Example:
        >>> import torch
        >>> network = AutoEncoder((8, 8), 1, channels=8, multiples=(1, 2), latent_channels=4)
        >>> mean, log_variance = network.encode(torch.zeros(2, 1, 8, 8))
        >>> mean.shape, network.decode(mean).shape
        (torch.Size([2, 4, 4, 4]), torch.Size([2, 1, 8, 8]))

    Reference: Kingma and Welling 2014, arXiv:1312.6114; maps: Rombach et al. 2022, arXiv:2112.10752
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        in_channels: int = 3,
        channels: int = 64,
        multiples: Sequence[int] = (1, 2, 4),
        blocks: int = 1,
        latent_channels: int = 4,
        latent_dim: int | None = None,
    ) -> None:
        super().__init__()
        numbers = {"channels": channels, "blocks": blocks, "latent_channels": latent_channels}
        for name, value in (numbers if latent_dim is None else numbers | {"latent_dim": latent_dim}).items():
            if value < 1:
                raise ValueError(f"AutoEncoder: {name} is {value}; give at least 1")
        if not multiples or min(multiples) < 1:
            raise ValueError(f"AutoEncoder: multiples is {list(multiples)}; give a whole number above 0 for each level")
        self.stride, self.flat = 2 ** (len(multiples) - 1), latent_dim is not None
        self.image_size = image_size
        self._check(image_size)
        rows, columns = (side // self.stride for side in image_size)
        width = channels * multiples[-1]
        self.encoder = Encoder(in_channels, channels, multiples, blocks)
        self.decoder = Decoder(in_channels, channels, multiples, blocks)
        self.code_shape: tuple[int, ...]
        if latent_dim is None:
            self.code_shape = (latent_channels, rows, columns)
            self.to_code: nn.Module = nn.Conv2d(width, 2 * latent_channels, 3, padding=1)
            self.from_code: nn.Module = nn.Conv2d(latent_channels, width, 3, padding=1)
        else:
            self.code_shape = (latent_dim,)
            numbers_of_map = width * rows * columns
            self.to_code = nn.Sequential(nn.Flatten(), nn.Linear(numbers_of_map, 2 * latent_dim))
            unflatten = nn.Unflatten(1, (width, rows, columns))
            self.from_code = nn.Sequential(nn.Linear(latent_dim, numbers_of_map), unflatten)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the code of images `(B, C, H, W)`."""
        height, width = image.shape[2:]
        self._check((height, width))
        if self.flat and (height, width) != self.image_size:
            sides = "{} x {}".format(*self.image_size)
            raise ValueError(
                f"flat codes are of images of {sides} pixels and there came {height} x {width}; give latent_dim=None "
                "for codes of any size"
            )
        return _mean_and_log_variance(self.to_code(self.encoder(image)))

    def decode(self, code: Tensor) -> Tensor:
        """Images `(B, C, H, W)` of codes."""
        image: Tensor = self.decoder(self.from_code(code))
        return image

    def forward(self, image: Tensor) -> Tensor:
        """What the mean codes of images are decoded to."""
        return self.decode(self.encode(image)[0])

    def _check(self, sides: tuple[int, int]) -> None:
        if any(side < 1 or side % self.stride for side in sides):
            raise ValueError(
                f"images of {sides[0]} x {sides[1]} pixels cannot be halved to a {self.stride}th; give sides that are "
                f"multiples of {self.stride}, or fewer multiples"
            )


class CodeAutoEncoder(nn.Module):
    """The same for flat codes: layers that tell mean and log variance of a code of a code, and layers back.

    Args:
        dim: D, of both codes.
        width: Of each of the layers.
        depth: Hidden layers of either.

    Raises:
        ValueError: a number is not positive.

    Reference: Dai and Wipf 2019, arXiv:1903.05789, section 4
    """

    def __init__(self, dim: int, width: int, depth: int = 3) -> None:
        super().__init__()
        if dim < 1 or width < 1 or depth < 1:
            raise ValueError(f"CodeAutoEncoder: dim, width, depth are {dim}, {width}, {depth}; give at least 1 of each")
        self.code_shape = (dim,)
        self.encoder, self.decoder = _Layers(dim, width, depth, 2 * dim), _Layers(dim, width, depth, dim)

    def encode(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance `(B, D)` of the code of codes `(B, D)`."""
        return _mean_and_log_variance(self.encoder(code))

    def decode(self, code: Tensor) -> Tensor:
        """Codes `(B, D)` of codes of codes."""
        found: Tensor = self.decoder(code)
        return found


class _Block(nn.Module):
    """norm, SiLU, convolution, twice; added to the input."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        last = nn.Conv2d(after, after, 3, padding=1)
        # The block begins as the identity, as those of `UNet`.
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)
        first = nn.Conv2d(before, after, 3, padding=1)
        self.change = nn.Sequential(_norm(before), nn.SiLU(), first, _norm(after), nn.SiLU(), last)
        self.skip = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.skip(x) + self.change(x)
        return found


class _Layers(nn.Module):
    """Layers with ReLU, whose end sees the input beside the last of them."""

    def __init__(self, before: int, width: int, depth: int, after: int) -> None:
        super().__init__()
        widths = [before, *[width] * depth]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.past, self.end = nn.Linear(before, after, bias=False), nn.Linear(width, after)

    def forward(self, x: Tensor) -> Tensor:
        hidden = x
        for layer in self.layers:
            hidden = F.relu(layer(hidden))
        found: Tensor = self.past(x) + self.end(hidden)
        return found


def _norm(channels: int) -> nn.GroupNorm:
    # Four channels a group: alone, a channel would lose its mean, and the image its brightness.
    return nn.GroupNorm(gcd(32, channels, max(1, channels // 4)), channels)


def _mean_and_log_variance(told: Tensor) -> tuple[Tensor, Tensor]:
    mean, log_variance = told.chunk(2, dim=1)
    return mean, log_variance.clamp(LOWEST, HIGHEST)

"""UNet of diffusion models: residual blocks at several resolutions, told the time and the label in each.

Letters: B images `(B, C, H, W)`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conditions import Conditions

__all__ = ["UNet"]


class ResidualBlock(nn.Module):
    """norm, SiLU, convolution, norm scaled and shifted by the conditions, SiLU, convolution; added to the input.

    Args:
        before: Channels of the input.
        after: Channels of the output.
        dim: Width of the conditions.
        dropout: Share of numbers that is dropped before the last convolution.
    """

    def __init__(self, before: int, after: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(_groups(before), before), nn.Conv2d(before, after, 3, padding=1)
        self.modulate = nn.Linear(dim, 2 * after)
        self.norm2, self.drop = nn.GroupNorm(_groups(after), after), nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.skip = nn.Identity() if before == after else nn.Conv2d(before, after, 1)
        # The block begins as the identity, so that a deep network starts as a shallow one.
        nn.init.zeros_(self.conv2.weight)
        assert self.conv2.bias is not None
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor, conditions: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulate(F.silu(conditions))[:, :, None, None].chunk(2, dim=1)
        hidden = self.drop(F.silu(self.norm2(hidden) * (1 + scale) + shift))
        found: Tensor = self.skip(x) + self.conv2(hidden)
        return found


class Attention(nn.Module):
    """Self-attention of the places of a map, added to it.

    Args:
        channels: Of the map, a multiple of `head_dim`.
        head_dim: Channels of a head.
    """

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        self.heads = channels // head_dim
        self.norm = nn.GroupNorm(_groups(channels), channels)
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm(x)).unflatten(1, (3, self.heads, -1)).flatten(4).mT.unbind(1)
        mixed = F.scaled_dot_product_attention(query, key, value)
        found: Tensor = x + self.out(mixed.mT.flatten(1, 2).view_as(x))
        return found


class UNet(nn.Module):
    """Halves the image level by level and doubles it again, each level on the way up seeing that on the way down.

    Args:
        in_channels: C of images.
        channels: Of the first level.
        multiples: Channels of each level over those of the first; a level has half the side of the one before.
        blocks: Residual blocks of a level on the way down; one more on the way up.
        attention: Levels, from 0, whose blocks are followed by self-attention.
        head_dim: Channels of an attention head; divides those of the levels in `attention` and of the last.
        num_classes: Of labels; 0 where images have none.
        dropout: Share of numbers that is dropped in each block.
        out_channels: C of answers; None is `in_channels`.

    Shape:
        `(B, C, H, W)`, time `(B,)` and label int64 `(B,)` or None (all without a label) to answers of the same H and W,
        which `2^(L - 1)` for L levels divides.

    Raises:
        ValueError: from the constructor, sizes do not fit; from `forward`, the image's sides are not divisible.

    Example:
        >>> network = UNet(1, channels=16, multiples=(1, 2), attention=(1,), head_dim=16, num_classes=10)
        >>> network(torch.zeros(2, 1, 8, 8), torch.rand(2), torch.tensor([3, 10])).shape
        torch.Size([2, 1, 8, 8])

    Reference: Ho et al. 2020, arXiv:2006.11239, appendix B; scale and shift: Dhariwal and Nichol 2021, arXiv:2105.05233
    """

    def __init__(
        self,
        in_channels: int = 3,
        channels: int = 128,
        multiples: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (1,),
        head_dim: int = 64,
        num_classes: int = 0,
        dropout: float = 0.0,
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        widths = [channels * multiple for multiple in multiples]
        for level in {*attention, len(widths) - 1}:
            if not 0 <= level < len(widths):
                raise ValueError(f"UNet: attention names level {level}, and there are levels 0 to {len(widths) - 1}")
            if widths[level] % head_dim:
                raise ValueError(
                    f"UNet: head_dim is {head_dim} and level {level} has {widths[level]} channels; give a divisor"
                )
        self.in_channels, self.num_classes, self.stride = in_channels, num_classes, 2 ** (len(widths) - 1)
        dim = 4 * channels
        self.conditions = Conditions(dim, num_classes)
        self.begin = nn.Conv2d(in_channels, channels, 3, padding=1)
        kept, width = [channels], channels
        self.down = nn.ModuleList()
        for level, after in enumerate(widths):
            for _ in range(blocks):
                self.down.append(_Stage(width, after, dim, dropout, head_dim if level in attention else 0))
                width = after
                kept.append(width)
            if level < len(widths) - 1:
                self.down.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                kept.append(width)
        self.middle = nn.ModuleList(
            [_Stage(width, width, dim, dropout, head_dim), _Stage(width, width, dim, dropout, 0)]
        )
        self.up = nn.ModuleList()
        for level, after in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                before = width + kept.pop()
                self.up.append(_Stage(before, after, dim, dropout, head_dim if level in attention else 0))
                width = after
            if level:
                self.up.append(nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1)))
        after = in_channels if out_channels is None else out_channels
        self.end = nn.Sequential(nn.GroupNorm(_groups(width), width), nn.SiLU(), nn.Conv2d(width, after, 3, padding=1))

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        self.check_size(x.shape[2:])
        conditions = self.conditions(time, label)
        x = self.begin(x)
        kept = [x]
        for part in self.down:
            x = part(x, conditions) if isinstance(part, _Stage) else part(x)
            kept.append(x)
        for part in self.middle:
            x = part(x, conditions)
        for part in self.up:
            x = part(torch.cat([x, kept.pop()], dim=1), conditions) if isinstance(part, _Stage) else part(x)
        found: Tensor = self.end(x)
        return found

    def check_size(self, size: Sequence[int]) -> None:
        """Raise a ValueError where H and W are not divisible."""
        if any(side % self.stride for side in size):
            stride, sides = self.stride, " x ".join(map(str, size))
            raise ValueError(
                f"UNet got {sides} pixels and halves its images, so their sides are {stride}, {2 * stride}, "
                f"{3 * stride}, ...; resize them, or give fewer `multiples`"
            )


class _Stage(nn.Module):
    """A residual block, with attention behind it where heads have channels."""

    def __init__(self, before: int, after: int, dim: int, dropout: float, head_dim: int) -> None:
        super().__init__()
        self.block = ResidualBlock(before, after, dim, dropout)
        self.attention = Attention(after, head_dim) if head_dim else nn.Identity()

    def forward(self, x: Tensor, conditions: Tensor) -> Tensor:
        found: Tensor = self.attention(self.block(x, conditions))
        return found


def _groups(channels: int) -> int:
    """The largest number of groups up to 32 that divides the channels."""
    return next(number for number in range(min(32, channels), 0, -1) if channels % number == 0)

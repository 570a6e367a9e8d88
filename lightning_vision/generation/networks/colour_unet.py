"""The U-Net that gives a photograph its colours.

Letters: B images of H x W pixels.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from .dcgan import halvings, normal_weights

__all__ = ["ColourUNet"]


class ColourUNet(nn.Module):
    """Halves an image level by level and doubles it again, each level on the way up seeing that on the way down.

    Down: convolutions 4 x 4 with stride 2, batch norm, leaky ReLU; up: transposed convolutions 4 x 4 with stride 2,
    the map from the way down beside them, batch norm, ReLU; at the end a convolution 1 x 1 and tanh.

    Args:
        image_size: H and W of the images that it learns, pixels; those of others are multiples of 2 to the `levels`.
        channels: Of the first level; each further one has twice as many, up to eight times these.
        levels: Halvings; None is as many as end at no less than 2 pixels.
        before: Channels of the images.
        after: Channels of the answer.

    Shape:
        `(B, before, H, W)` to `(B, after, H, W)` in -1..1.

    Raises:
        ValueError: the image's sides cannot be halved so often.

    Reference: Nazeri et al. 2018, arXiv:1803.05400, section 2.4, after Ronneberger et al. 2015, arXiv:1505.04597
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        channels: int = 64,
        levels: int | None = None,
        before: int = 1,
        after: int = 2,
    ) -> None:
        super().__init__()
        levels = halvings(image_size, levels, smallest=2)
        widths = [channels * min(2**level, 8) for level in range(levels + 1)]
        self.begin = nn.Sequential(nn.Conv2d(before, widths[0], 3, padding=1), nn.LeakyReLU(0.2))
        self.down, self.up, self.join = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for fine, coarse in pairwise(widths):
            convolution = nn.Conv2d(fine, coarse, 4, 2, 1, bias=False)
            self.down.append(nn.Sequential(convolution, nn.BatchNorm2d(coarse), nn.LeakyReLU(0.2)))
        seen = widths[-1]
        for fine in widths[-2::-1]:
            self.up.append(nn.ConvTranspose2d(seen, fine, 4, 2, 1, bias=False))
            self.join.append(nn.Sequential(nn.BatchNorm2d(2 * fine), nn.ReLU()))
            seen = 2 * fine
        self.end = nn.Sequential(nn.Conv2d(seen, after, 1), nn.Tanh())
        normal_weights(self)

    def forward(self, image: Tensor) -> Tensor:
        maps = [self.begin(image)]
        for part in self.down:
            maps.append(part(maps[-1]))
        found: Tensor = maps.pop()
        for up, join in zip(self.up, self.join, strict=True):
            found = join(torch.cat([up(found), maps.pop()], dim=1))
        found = self.end(found)
        return found

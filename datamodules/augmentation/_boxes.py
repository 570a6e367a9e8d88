"""Boxes of random area and shape, as torchvision draws them: ten attempts, then none."""

from torch import Tensor

__all__ = ["ATTEMPTS", "draw_boxes"]

ATTEMPTS = 10


def draw_boxes(
    uniform: Tensor,
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    limit: tuple[int, int],
    least: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Height and width of a box for each image, of the first attempt that fits.

    The area is uniform in `scale` times the image's, the logarithm of width over height uniform in that of `ratio`
    (Szegedy et al. 2015, section 6).

    Args:
        uniform: In [0, 1), `(B, 2 * ATTEMPTS)`: for each attempt one for the area and one for the shape.
        size: Height and width of the images, pixels.
        scale: Smallest and largest area, fractions of the image's.
        ratio: Smallest and largest width over height.
        limit: Largest height and width that fit, pixels.
        least: Smallest of either, pixels.

    Returns:
        Height and width, int64 `(B,)`, and whether an attempt fitted, bool `(B,)`.
    """
    draws = uniform.double().view(len(uniform), ATTEMPTS, 2)
    area = size[0] * size[1] * (scale[0] + (scale[1] - scale[0]) * draws[..., 0])
    shape = ratio[0] * (ratio[1] / ratio[0]) ** draws[..., 1]
    width, height = (area * shape).sqrt().round(), (area / shape).sqrt().round()
    fits = (width >= least) & (width <= limit[1]) & (height >= least) & (height <= limit[0])
    first = fits.int().argmax(1, keepdim=True)
    return height.gather(1, first)[:, 0].long(), width.gather(1, first)[:, 0].long(), fits.any(1)

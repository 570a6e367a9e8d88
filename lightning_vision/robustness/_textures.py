"""Random textures of weather: clouds and crystals of ice."""

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

__all__ = ["clouds", "crystals"]


def clouds(height: int, width: int, decay: float, random: np.random.Generator) -> NDArray[np.float64]:
    """A fractal height map by the diamond-square algorithm, 0..1, of a square cut to `(height, width)`.

    The corners of squares are known; the centre of each square, then the middle of each of its sides, becomes the mean
    of its four neighbours plus a uniform draw, and squares of half the side are next. The map closes upon itself.

    Args:
        height: Rows, pixels.
        width: Columns, pixels.
        decay: From one size of square to the next, the draws shrink by its square; rough where it is small.
        random: Where the draws come from.
    """
    levels = int(np.ceil(np.log2(max(height, width, 2))))
    found = np.zeros((1, 1))
    reach = 1.0
    for _ in range(levels):
        side = len(found)
        right, below = np.roll(found, -1, 1), np.roll(found, -1, 0)
        centre = (found + right + below + np.roll(below, -1, 1)) / 4 + random.uniform(-reach, reach, (side, side))
        over = (found + right + centre + np.roll(centre, 1, 0)) / 4 + random.uniform(-reach, reach, (side, side))
        beside = (found + below + centre + np.roll(centre, 1, 1)) / 4 + random.uniform(-reach, reach, (side, side))
        found = np.stack([np.stack([found, over], 2), np.stack([beside, centre], 2)], 1).reshape(2 * side, 2 * side)
        reach /= decay**2
    lowest, highest = found.min(), found.max()
    return np.asarray(((found - lowest) / (highest - lowest))[:height, :width])


def crystals(height: int, width: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Ice on a window, brightness 0..1 `(height, width)`: plates with needles of their own that meet in bright seams.

    Each plate is what lies nearest to one of about forty random places; its needles are stripes across a direction that
    is drawn for it, and finer ones at 60 degrees, as water freezes. Ice is thicker in some parts of the window.

    Args:
        height: Rows, pixels.
        width: Columns, pixels.
        random: Where places and directions are drawn from.
    """
    side = min(height, width)
    rows, columns = (axis / side for axis in np.indices((height, width), dtype=float))
    number = round(40 * height * width / side**2)
    places = random.random((number, 2)) * (height / side, width / side)
    angles, phases = random.uniform(0, np.pi, number), random.uniform(0, 2 * np.pi, number)
    distances, plates = cKDTree(places).query(np.stack([rows, columns], 2).reshape(-1, 2), k=2)
    distances, plate = distances.reshape(height, width, 2), plates[:, 0].reshape(height, width)
    seams = np.exp(-(distances[:, :, 1] - distances[:, :, 0]) / 0.02)
    needles = np.zeros((height, width))
    for turn, waves, weight in ((0.0, 14, 0.5), (np.pi / 3, 27, 0.3), (-np.pi / 3, 27, 0.2)):
        across = rows * np.cos(angles[plate] + turn) + columns * np.sin(angles[plate] + turn)
        needles += weight * np.cos(2 * np.pi * waves * across + phases[plate]) ** 2
    thickness = clouds(height, width, 1.7, random)
    return np.asarray(np.clip(1.3 * thickness * (0.25 + 0.75 * needles) + 0.6 * seams * thickness, 0, 1))

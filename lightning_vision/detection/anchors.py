"""Sizes of anchors that follow the image, spread over the levels of a detector."""

from .settings import DetectorSettings

__all__ = ["spread_sizes"]


def spread_sizes(settings: DetectorSettings, levels: int, per_level: int = 1) -> list[tuple[float, ...]]:
    """Sides of square anchors, `per_level` of each level, all in geometric progression from fine to coarse.

    The first is the smallest object, the last is the largest. With the default `object_sizes`, five levels and three a
    level, an image of 800 pixels gets sides from 32 to 800 pixels, RetinaNet's own from 32 to 813.

    Args:
        settings: Has `object_sizes`, fractions of the shorter side of `image_size`.
        levels: Maps, at least 1.
        per_level: Sides a map, at least 1.

    Returns:
        For each level its sides, pixels.

    Example:
        >>> spread_sizes(DetectorSettings(1, (100, 200), object_sizes=(0.1, 0.8)), levels=2, per_level=2)
        [(10.0, 20.0), (40.0, 80.0)]
    """
    side = min(settings.image_size)
    smallest, largest = (fraction * side for fraction in settings.object_sizes)
    steps = max(1, levels * per_level - 1)
    sides = [smallest * (largest / smallest) ** (step / steps) for step in range(levels * per_level)]
    # Rounded, so that the ends are what was asked for in spite of floating point.
    sides = [round(side, 6) for side in sides]
    return [tuple(sides[first : first + per_level]) for first in range(0, len(sides), per_level)]

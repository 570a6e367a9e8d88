"""How strong the operations of a space are at each of its bins, in the units of `operations.py`."""

from collections.abc import Callable

import torch

from .operations import OPERATIONS

__all__ = ["LEARNED", "Space"]

SIGNED = frozenset(
    ["ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness"]
)
"""Operations whose magnitude is turned to its negative half of the time."""


class Space:
    """Operations and their magnitudes, which grow from the first bin to the last.

    Args:
        names: The operations that are drawn from it.
        shear: ShearX's and ShearY's at the last bin, a share.
        across: TranslateX's and TranslateY's there in pixels, given the side along which they move.
        degrees: Rotate's there.
        blend: What Brightness, Color, Contrast and Sharpness then add to or take from 1.
        bits: How many bits Posterize keeps at the first bin, and how many fewer at the last.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        shear: float,
        across: Callable[[int], float],
        degrees: float,
        blend: float,
        bits: tuple[int, int],
    ) -> None:
        self.names = names
        self.most = dict.fromkeys(("ShearX", "ShearY"), shear) | dict.fromkeys(
            ("Brightness", "Color", "Contrast", "Sharpness"), blend
        )
        self.most["Rotate"] = degrees
        self.across = across
        self.bits = bits
        self._known: dict[tuple[str, int, int], list[float]] = {}

    def step(self, name: str, number: int, bins: int, sign: float, sides: tuple[int, int]) -> tuple[str, float]:
        """An operation and its magnitude.

        Args:
            name: The operation.
            number: Of the bin, from 0.
            bins: How many there are.
            sign: A uniform number; below one half a magnitude that has a sign is negative.
            sides: Height and width of the image, pixels.
        """
        side = sides[1] if name == "TranslateX" else sides[0]
        key = (name, bins, side)
        if key not in self._known:
            self._known[key] = self.magnitudes(name, bins, side)
        magnitude = self._known[key][number]
        return name, -magnitude if name in SIGNED and sign < 0.5 else magnitude

    def magnitudes(self, name: str, bins: int, side: int) -> list[float]:
        """The operation's magnitude at each bin, float32 as torchvision's; zeros for one that has none.

        Args:
            name: The operation.
            bins: How many bins.
            side: Pixels along which a translation goes.
        """
        if name in ("TranslateX", "TranslateY"):
            values = torch.linspace(0.0, self.across(side), bins)
        elif name == "Posterize":
            most, fewer = self.bits
            values = (most - torch.arange(bins) / ((bins - 1) / fewer)).round()
        elif name == "Solarize":
            values = torch.linspace(1.0, 0.0, bins)
        else:
            values = torch.linspace(0.0, self.most.get(name, 0.0), bins)
        return values.tolist()


LEARNED = Space(
    tuple(OPERATIONS), shear=0.3, across=lambda side: 150.0 / 331.0 * side, degrees=30.0, blend=0.9, bits=(8, 4)
)
"""AutoAugment's, which RandAugment uses, too."""

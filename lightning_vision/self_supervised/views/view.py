"""What one kind of view is: plain data, checked when it is written down."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

__all__ = ["View"]

PROBABILITIES = ("flip", "vertical_flip", "jitter", "grey", "blur", "solarise")
STRENGTHS = ("brightness", "contrast", "saturation", "hue")
PAIRS = {"crop": (1e-6, 1.0), "ratio": (1e-3, 1e3), "blur_sigma": (1e-3, 1e3)}


@dataclass(frozen=True)
class View:
    """One kind of random view of an image.

    The operations act in the order of the arguments: crop and resize, flips, colour jitter (its four operations in a
    random order), grey, blur, solarisation. All but the first three see values from 0 to 1, whatever the image was
    normalised with.

    Args:
        size: Pixels of the result: one side, or height and width; None is the image's own size.
        count: How many views of this kind an image gets.
        crop: Smallest and largest area of the box that is cut out, fractions of the image's; None cuts nothing.
        ratio: Smallest and largest width over height of the box, its logarithm uniform between theirs.
        antialias: Average over the pixels that a pixel of the result covers where the box is made smaller, as PIL
            does; otherwise two neighbours a line are interpolated. Where the box is made larger there is no difference.
        flip: Probability that left and right are exchanged.
        vertical_flip: Probability that top and bottom are exchanged.
        jitter: Probability of the colour jitter, which is the next four.
        brightness: The factor is uniform from 1 less this, at least 0, to 1 plus this.
        contrast: The same, around the mean of the image's grey.
        saturation: The same, around the grey of each pixel. Grey images have none.
        hue: The shift is uniform from minus this to this, in turns of the colour circle, 0 to 0.5.
        grey: Probability that the colours become grey.
        blur: Probability of a Gaussian blur.
        blur_sigma: Smallest and largest standard deviation of it, pixels of the result, uniform between.
        blur_kernel: Its extent: an odd number of pixels, or a fraction of the result's shorter side, rounded down to
            an odd number but at least 3.
        solarise: Probability that what is brighter than 0.5 is inverted.

    Raises:
        ValueError: a setting outside its range, or a kernel that is too long for `size`.

    Example:
        >>> View(size=32, crop=(0.2, 1.0), brightness=0.4, contrast=0.4).kernel((32, 32))
        3
    """

    size: int | Sequence[int] | None = None
    count: int = 1
    crop: Sequence[float] | None = (0.08, 1.0)
    ratio: Sequence[float] = (3 / 4, 4 / 3)
    antialias: bool = True
    flip: float = 0.5
    vertical_flip: float = 0.0
    jitter: float = 0.8
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grey: float = 0.2
    blur: float = 0.0
    blur_sigma: Sequence[float] = (0.1, 2.0)
    blur_kernel: int | float = 0.1
    solarise: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):  # lists, as YAML has them, become tuples
            if isinstance(value := getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(value))
        sides: Any = (self.size, self.size) if _whole(self.size) else self.size
        if sides is not None and not (_pair(sides) and all(_whole(side) and side >= 1 for side in sides)):
            raise ValueError(f"View: size is {self.size!r}; give one side or height and width, pixels, at least 1.")
        if not (_whole(self.count) and self.count >= 1):
            raise ValueError(f"View: count is {self.count!r}; give a whole number of views, at least 1.")
        for name in PROBABILITIES:
            if not _within(getattr(self, name), 0, 1):
                raise ValueError(f"View: {name} is {getattr(self, name)!r}; give a probability from 0 to 1.")
        for name in STRENGTHS:
            most = 0.5 if name == "hue" else float("inf")
            if not _within(getattr(self, name), 0, most):
                raise ValueError(f"View: {name} is {getattr(self, name)!r}; give a number from 0 to {most:g}.")
        for name, (low, high) in PAIRS.items():
            value = getattr(self, name)
            if name == "crop" and value is None:
                continue
            if not (_pair(value) and all(_within(end, low, high) for end in value) and value[0] <= value[1]):
                why = "; no box is larger than the image" if name == "crop" else ""
                raise ValueError(
                    f"View: {name} is {value!r}; give two numbers in order, from {low:g} to {high:g}{why}."
                )
        pixels = _whole(self.blur_kernel)
        if not (self.blur_kernel >= 3 and self.blur_kernel % 2 if pixels else _within(self.blur_kernel, 1e-6, 1)):
            raise ValueError(
                f"View: blur_kernel is {self.blur_kernel!r}; give an odd number of pixels, at least 3, or a fraction "
                "of the side, above 0 to 1."
            )
        if sides is not None:
            self.kernel((sides[0], sides[1]))

    def sides(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the view of an image of `height` and `width`, pixels."""
        if self.size is None:
            return height, width
        return (self.size, self.size) if isinstance(self.size, int) else (self.size[0], self.size[1])

    def kernel(self, sides: tuple[int, int]) -> int:
        """Pixels of the blur's kernel in a view of `sides`; 1 where nothing is blurred.

        Raises:
            ValueError: the kernel reaches further than the image, mirrored at its border, does.
        """
        if not self.blur:
            return 1
        if isinstance(self.blur_kernel, int):
            kernel = self.blur_kernel
        else:
            kernel = max(3, 2 * int(self.blur_kernel * min(sides) / 2) + 1)
        if kernel // 2 >= min(sides):
            raise ValueError(
                f"View: the blur's kernel has {kernel} pixels and the view {sides[0]} x {sides[1]}; give a blur_kernel "
                f"below {2 * min(sides)} or blur=0."
            )
        return kernel

    @property
    def colours(self) -> bool:
        """Whether any operation depends on what the image was normalised with."""
        jitters = self.jitter and any(getattr(self, name) for name in STRENGTHS)
        return bool(jitters or self.grey or self.solarise)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _pair(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2


def _within(value: object, low: float, high: float) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and low <= float(value) <= high

"""Random views of a batch on its device, each image with draws of its own."""

from collections.abc import Callable, Sequence
from math import ceil
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from ._blur import gaussian_blur
from ._colour import HUE, adjust_hue, blend, grey_of, solarise
from ._crop import crop_and_resize
from ._draws import DRAWS, NEUTRAL, Array, Draw, draw_view
from .view import View

__all__ = ["Views", "make_view"]

# Bytes of views worked on at a time on the CPU, so that they stay in its cache from one operation to the next.
CHUNK = 2**21

Statistics = Tensor | Sequence[float]


@final
class Views(nn.Module):
    """Makes several random views of each image of a batch, on the device where it is.

    What happens to an image is a function of its own uniform numbers alone: no other image of the batch, no global
    random state and no device takes part. Views are data, no gradient goes through them; they are computed in float32
    whatever autocast says, and have the dtype of the images.

    Args:
        views: The kinds of view; several are a multi-crop.

    Shape:
        image `(B, C, H, W)`, floating point, normalised with `mean` and `std`; one `(B, C, h, w)` a view.

    Raises:
        ValueError: no kinds of view; at the first batch, images of another form, numbers of another count, or a view
            that such images cannot have.

    Example:
        >>> views = Views([View(size=32, count=2, brightness=0.4), View(size=16, crop=(0.05, 0.4), count=4)])
        >>> image, uniform = torch.randn(8, 3, 40, 48), torch.rand(8, views.draws)
        >>> [tuple(view.shape) for view in views(image, uniform, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))][1:3]
        [(8, 3, 32, 32), (8, 3, 16, 16)]

    See also:
        `views_for`, which knows the papers' views by name.
    """

    def __init__(self, views: Sequence[View]) -> None:
        super().__init__()
        if not views or not all(isinstance(view, View) for view in views):
            raise ValueError(f"Views: views is {views!r}; give a list of at least one View.")
        self.views = tuple(views)

    @property
    def draws(self) -> int:
        """Uniform numbers that an image needs for all its views."""
        return DRAWS * sum(view.count for view in self.views)

    @torch.no_grad()
    def forward(self, image: Tensor, uniform: Tensor, mean: Statistics, std: Statistics) -> list[Tensor]:
        """The views of a batch, in the order of `views`, each as often as its count says.

        Args:
            image: `(B, C, H, W)`, floating point, normalised; left alone.
            uniform: Random numbers in [0, 1), `(B, draws)`; best on the CPU, where what they decide is worked out.
            mean: What was taken from each channel, `(C,)`, in units of 0..1.
            std: What each channel was then divided by, `(C,)`.

        Returns:
            One `(B, C, h, w)` a view, normalised as the images are.
        """
        self._check(image, uniform)
        numbers = uniform.detach().cpu().double().numpy()
        centre, spread = (
            torch.as_tensor(it, dtype=torch.float32, device=image.device).view(1, -1, 1, 1) for it in (mean, std)
        )
        made: list[Tensor] = []
        with torch.autocast(image.device.type, enabled=False):
            for view in self.views:
                own, numbers = np.split(numbers, [DRAWS * view.count], axis=1)
                # All views of a kind are drawn at once: those of the first image, then of the second, ...
                draw = draw_view(view, own.reshape(-1, DRAWS), image.shape[2], image.shape[3])
                each = [draw[number :: view.count] for number in range(view.count)]
                made += [make_view(image, view, one, centre, spread) for one in each]
        return made

    def extra_repr(self) -> str:
        return "\n".join(map(repr, self.views))

    def _check(self, image: Tensor, uniform: Tensor) -> None:
        if image.ndim != 4 or not image.is_floating_point():
            kind = f"{str(image.dtype).removeprefix('torch.')} {tuple(image.shape)}"
            raise ValueError(f"Views: the images are {kind}; give normalised floats of shape (B, C, H, W).")
        if any(view.colours for view in self.views) and image.shape[1] not in (1, 3):
            raise ValueError(
                f"Views: the images have {image.shape[1]} channels, and colours are changed in grey (1) or RGB (3) "
                "only; switch jitter, grey and solarise off."
            )
        if uniform.shape != (len(image), self.draws):
            raise ValueError(
                f"Views: uniform is of shape {tuple(uniform.shape)}; give {self.draws} numbers, which is `draws`, for "
                f"each of the {len(image)} images."
            )
        for view in self.views:
            view.kernel(view.sides(image.shape[2], image.shape[3]))


def make_view(image: Tensor, view: View, draw: Draw, mean: Tensor, std: Tensor) -> Tensor:
    """One view of each image, from what was drawn for it.

    Args:
        image: `(B, C, H, W)`, floating point, normalised; left alone.
        view: The kind.
        draw: What happens to each of the B images.
        mean: What was taken from each channel, float32, to broadcast with `image`.
        std: What each channel was then divided by, likewise.
    """
    sides = view.sides(image.shape[2], image.shape[3])
    result, rows = image.new_empty(*image.shape[:2], *sides), len(image)
    if image.device.type == "cpu":
        rows = max(1, CHUNK // (4 * image.shape[1] * sides[0] * sides[1]))
        rows = ceil(len(image) / ceil(len(image) / rows))  # as many in each chunk
    order = np.argsort(_hue_at(draw), kind="stable")
    for start in range(0, len(image), rows):
        part = order[start : start + rows]
        there = torch.from_numpy(part).to(image.device, non_blocking=True)
        changed = _changed(image.index_select(0, there).float(), view, draw[part], sides, mean, std)
        result.index_copy_(0, there, changed.to(image.dtype))
    return result


def _changed(image: Tensor, view: View, draw: Draw, sides: tuple[int, int], mean: Tensor, std: Tensor) -> Tensor:
    """The views of images that may be written into, which are sorted by `_hue_at`."""
    if view.crop is None and sides == image.shape[2:]:
        image = _on(image, draw.flip, lambda part: part.flip(3))
        image = _on(image, draw.vertical_flip, lambda part: part.flip(2))
    else:
        image = crop_and_resize(image, draw.boxes, draw.flip, draw.vertical_flip, sides, view.antialias)
    if view.colours:
        image = _jittered(image.mul_(std).add_(mean), draw)
        if image.shape[1] == 3:
            image = _on(image, draw.grey, lambda part: grey_of(part).repeat(1, 3, 1, 1))
    if view.blur:
        sigma = torch.from_numpy(draw.sigma[draw.blur]).to(image.device, non_blocking=True)
        image = _on(image, draw.blur, lambda part: gaussian_blur(part, sigma, view.kernel(sides)))
    if view.colours:
        image = _on(image, draw.solarise, solarise).sub_(mean).div_(std)
    return image


def _hue_at(draw: Draw) -> Array:
    """The place of hue, 0 to 3, in the order of each image's jitter; -1 for images that have none."""
    return np.where((draw.factors != NEUTRAL).any(1), (draw.order == HUE).argmax(1), -1)


def _jittered(image: Tensor, draw: Draw) -> Tensor:
    """Brightness, contrast, saturation and hue, in each image's own order; written into `image`.

    Hue takes longest, so all images come to it at once. As they are sorted by its place, those that have something
    else before or after it are neighbours.
    """
    first, *ends = np.searchsorted(_hue_at(draw), [0, 1, 2, 3]).tolist()
    for place in range(3):
        _blend(image, draw, place, ends[place], len(image))
    if image.shape[1] == 3 and draw.factors[first:, HUE].any():
        image[first:] = adjust_hue(image[first:], draw.factors[first:, HUE])
    for place in range(1, 4):
        _blend(image, draw, place, first, ends[place - 1])
    return image


def _blend(image: Tensor, draw: Draw, place: int, start: int, stop: int) -> None:
    """What stands at a place of the order of some images, which is not hue."""
    kind = draw.order[start:stop, place]
    factor = draw.factors[np.arange(start, stop), kind]
    if (factor != 1).any():
        image[start:stop] = blend(image[start:stop], kind, factor)


def _on(image: Tensor, chosen: Array, change: Callable[[Tensor], Tensor]) -> Tensor:
    """`image` with those that are `chosen`, bool `(B,)`, changed; written into `image`."""
    if chosen.any():
        rows = torch.from_numpy(np.flatnonzero(chosen)).to(image.device, non_blocking=True)
        image.index_copy_(0, rows, change(image.index_select(0, rows)))
    return image

"""What a layer puts out, read as maps of an image: of convolutions, of windows, of tokens."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

__all__ = ["Layout", "as_maps", "layout_of", "maps_or_none", "tokens_before"]

TOKENS_BEFORE = range(9)  # tried where a network does not tell how many
CELLS_LOST = 8  # at most, at the border, by convolutions without padding
FORMATS = ("NCHW", "NHWC")  # as timm's networks tell them


@dataclass(frozen=True)
class Layout:
    """What is known of how a layer's numbers are ordered, beside their shape; None is not known.

    Args:
        prefix: Tokens before those of the image (class, registers).
        channels_last: Whether maps are `(B, h, w, C)` and not `(B, C, h, w)`.
    """

    prefix: int | None
    channels_last: bool | None


def as_maps(output: Tensor, size: tuple[int, int], layout: Layout, layer: str) -> Tensor:
    """A layer's output as maps `(B, C, h, w)`.

    Args:
        output: `(B, C, h, w)`, `(B, h, w, C)`, or tokens `(B, N, C)` of which the last h w are the image's.
        size: Height and width of the images, pixels, whose proportions the maps have.
        layout: Asked where the shape leaves a choice; without a `prefix` it is the smallest number that fits.
        layer: Its name, for the error.

    Raises:
        ValueError: no reading of the shape has the images' proportions, or two have and nothing tells which is meant.
    """
    maps = maps_or_none(output, size, layout)
    shape = f"layer {layer!r} puts out {tuple(output.shape)}, which"
    if maps is None:
        raise ValueError(
            f"{shape} are no maps of images of {size[0]}x{size[1]}; name one before pooling and flattening."
        )
    if output.ndim == 4 and layout.channels_last is None and len(_readings(output, size)) > 1:
        raise ValueError(
            f"{shape} may be maps (B, C, h, w) or (B, h, w, C), and nothing in the network tells which; name a "
            "convolution or a normalisation beside it, or give images of another size."
        )
    return maps


def maps_or_none(output: Tensor, size: tuple[int, int], layout: Layout) -> Tensor | None:
    """As `as_maps`, with None for what are no maps, and channels first where nothing tells."""
    if output.ndim == 4:
        readings = _readings(output, size)
        return readings.get(bool(layout.channels_last), next(iter(readings.values()), None))
    if output.ndim != 3:
        return None
    fitting = []
    for before in TOKENS_BEFORE if layout.prefix is None else (layout.prefix, *TOKENS_BEFORE):
        count = output.shape[1] - before
        height = round((max(count, 0) * size[0] / size[1]) ** 0.5)
        if height and count % height == 0 and _alike(height, count // height, size):
            fitting.append((before, height, count // height))
            if before == layout.prefix:
                break
    if not fitting:
        return None
    before, height, width = min(fitting, key=lambda it: abs(it[1] * size[1] - it[2] * size[0]))
    return output[:, before:].transpose(1, 2).unflatten(2, (height, width))


def layout_of(model: nn.Module, part: nn.Module) -> Layout:
    """What `model` tells of the layout of what one of its parts puts out.

    Tokens and formats are told by timm's networks. Else maps are as the next layer takes them, if the part begins or
    ends with a layer of that kind: convolutions and what is called 2d take channels first, layer norms last.
    """
    return Layout(tokens_before(model), _channels_last(model, part))


def tokens_before(model: nn.Module) -> int | None:
    """Tokens before the image's, as timm's networks tell."""
    told = (getattr(part, "num_prefix_tokens", None) for part in model.modules())
    return next((it for it in told if isinstance(it, int)), None)


def _channels_last(model: nn.Module, part: nn.Module) -> bool | None:
    path = next(name for name, it in model.named_modules() if it is part).split(".")
    inside = list(part.modules())
    own = [True] if isinstance(part, nn.Linear) else _kinds(inside)
    if len(inside) == 1 and own:
        return own[0]
    for depth in range(len(path), -1, -1):
        told = getattr(model.get_submodule(".".join(path[:depth])), "output_fmt", None)
        if told in FORMATS:
            return bool(told == FORMATS[1])
    parts = list(model.modules())
    begin = parts.index(part)
    behind = _kinds(it for it in parts[begin:] if it not in set(inside))[:1]
    # Of what has no such layer, as activations, the one before counts as its own.
    ends = {own[0], own[-1]} if own else {*_kinds(parts[:begin])[-1:]}
    agreed = ends & {*behind} if behind and ends else ends | {*behind}
    return agreed.pop() if len(agreed) == 1 else None


def _kinds(parts: Iterable[nn.Module]) -> list[bool]:
    """Of those whose kind tells, whether they take channels last."""
    told = (
        (it, "2d" in type(it).__name__.lower() or isinstance(it, nn.Conv2d | nn.BatchNorm2d | nn.GroupNorm))
        for it in parts
    )
    return [not first for it, first in told if first or isinstance(it, nn.LayerNorm | nn.RMSNorm)]


def _readings(output: Tensor, size: tuple[int, int]) -> dict[bool, Tensor]:
    """The fitting readings of four dimensions as maps, by whether channels are last."""
    both = {False: output, True: output.permute(0, 3, 1, 2)}
    return {last: it for last, it in both.items() if _alike(it.shape[2], it.shape[3], size, CELLS_LOST)}


def _alike(height: int, width: int, size: tuple[int, int], lost: int = 0) -> bool:
    """Whether they have the proportions of `size`, to one cell, with up to `lost` put back; one cell is no map."""
    back = range(min(height, width, lost) + 1)
    return height * width > 1 and any(
        abs((height + cells) * size[1] - (width + cells) * size[0]) < max(size) for cells in back
    )

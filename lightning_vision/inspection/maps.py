"""What a layer puts out, read as maps of an image: of convolutions, of windows, of tokens."""

from torch import Tensor, nn

__all__ = ["as_maps", "maps_or_none", "tokens_before"]

TOKENS_BEFORE = range(9)  # tried where a network does not tell how many
CELLS_LOST = 8  # at most, at the border, by convolutions without padding


def as_maps(output: Tensor, size: tuple[int, int], prefix: int | None, layer: str) -> Tensor:
    """A layer's output as maps `(B, C, h, w)`.

    Args:
        output: `(B, C, h, w)`, `(B, h, w, C)`, or tokens `(B, N, C)` of which the last h w are the image's.
        size: Height and width of the images, pixels, whose proportions the maps have.
        prefix: Tokens before those of the image (class, registers), if known; else the smallest number that fits.
        layer: Its name, for the error.

    Raises:
        ValueError: no reading of the shape has the images' proportions.
    """
    maps = maps_or_none(output, size, prefix)
    if maps is None:
        raise ValueError(
            f"layer {layer!r} puts out {tuple(output.shape)}, which are no maps of images of {size[0]}x{size[1]}; name "
            "one before pooling and flattening."
        )
    return maps


def maps_or_none(output: Tensor, size: tuple[int, int], prefix: int | None) -> Tensor | None:
    """As `as_maps`, with None for what are no maps."""
    if output.ndim == 4:
        readings = (output, output.permute(0, 3, 1, 2))
        return next((it for it in readings if _alike(it.shape[2], it.shape[3], size, CELLS_LOST)), None)
    if output.ndim != 3:
        return None
    fitting = []
    for before in TOKENS_BEFORE if prefix is None else (prefix, *TOKENS_BEFORE):
        count = output.shape[1] - before
        height = round((max(count, 0) * size[0] / size[1]) ** 0.5)
        if height and count % height == 0 and _alike(height, count // height, size):
            fitting.append((before, height, count // height))
            if before == prefix:
                break
    if not fitting:
        return None
    before, height, width = min(fitting, key=lambda it: abs(it[1] * size[1] - it[2] * size[0]))
    return output[:, before:].transpose(1, 2).unflatten(2, (height, width))


def tokens_before(model: nn.Module) -> int | None:
    """Tokens before the image's, as timm's networks tell."""
    told = (getattr(part, "num_prefix_tokens", None) for part in model.modules())
    return next((it for it in told if isinstance(it, int)), None)


def _alike(height: int, width: int, size: tuple[int, int], lost: int = 0) -> bool:
    """Whether they have the proportions of `size`, to one cell, with up to `lost` put back; one cell is no map."""
    back = range(min(height, width, lost) + 1)
    return height * width > 1 and any(
        abs((height + cells) * size[1] - (width + cells) * size[0]) < max(size) for cells in back
    )

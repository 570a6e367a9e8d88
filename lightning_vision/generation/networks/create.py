"""Networks of diffusion by name, of the images' size, and those of others in their place."""

from typing import Any

from torch import nn

from .dit import DiT
from .from_diffusers import FromDiffusers, is_diffusers
from .unet import UNet

__all__ = ["create_network"]

NAMES = ("unet", "dit")


def create_network(
    network: str | nn.Module,
    in_channels: int,
    image_size: tuple[int, int],
    num_classes: int = 0,
    out_channels: int | None = None,
    **settings: Any,
) -> nn.Module:
    """A network that maps images, times and labels to answers of the images' size.

    Args:
        network: `unet`, `dit`; one of diffusers'; or any module that maps x `(B, C, H, W)`, t `(B,)` and labels `(B,)`,
            or None, to `(B, C, H, W)`.
        in_channels: C.
        image_size: H and W, pixels.
        num_classes: Of labels; the number itself stands for no label, 0 where images have none.
        out_channels: Of answers; None is C.
        **settings: Further arguments of `UNet` or `DiT`.

    Raises:
        ValueError: the name is unknown, or sizes or settings do not fit.
    """
    if isinstance(network, nn.Module):
        if out_channels is not None or settings:
            what = next(iter(settings), f"{out_channels} channels of answers")
            raise ValueError(f"a ready {type(network).__name__} cannot be given {what}; name a network instead")
        return FromDiffusers(network, num_classes) if is_diffusers(network) else network
    if network not in NAMES:
        raise ValueError(f"network is {network!r}; give {' or '.join(NAMES)}, or a module of your own")
    try:
        if network == "dit":
            if image_size[0] != image_size[1]:
                raise ValueError(f"DiT sees square images and image_size is {image_size}; give a unet")
            return DiT(
                image_size[0], in_channels=in_channels, num_classes=num_classes, out_channels=out_channels, **settings
            )
        unet = UNet(in_channels, num_classes=num_classes, out_channels=out_channels, **settings)
    except TypeError as error:
        raise ValueError(f"network_settings: {str(error).partition('__init__() ')[2] or error}") from error
    unet.check_size(image_size)
    return unet

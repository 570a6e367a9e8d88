"""Feature maps of several strides, from any of timm's networks or a module of one's own."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import timm
import torch
from timm.layers.format import Format
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from lightning_vision.backbones import create

from .settings import DetectorSettings

__all__ = ["Levels", "ModuleLevels", "Pyramid", "TimmLevels"]


class Levels(nn.Module):
    """Maps of a network at chosen strides, named "0", "1", ... from fine to coarse.

    Strides beyond the network's coarsest are in `coarser`, for whoever builds on the maps to add.

    Args:
        network: Maps images to a list or dictionary of maps.
        name: What errors call it.
        there: Stride and channels of each of its maps.
        strides: Which are wanted, pixels of the image a step in the map, ascending.

    Shape:
        `(B, C, H, W)` to maps `(B, channels[i], H / strides[i], W / strides[i])`.

    Raises:
        ValueError: the network has no map of a stride finer than its coarsest, or the strides do not ascend.
    """

    def __init__(self, network: nn.Module, name: str, there: Sequence[tuple[int, int]], strides: Sequence[int]) -> None:
        super().__init__()
        # Of several maps of a stride the last has seen most of the network.
        last = {stride: number for number, (stride, _) in enumerate(there)}
        check_strides(name, sorted(last), strides)
        self.network = network
        self.strides = [stride for stride in strides if stride in last]
        self.coarser = [stride for stride in strides if stride not in last]
        self.chosen = [last[stride] for stride in self.strides]
        self.channels = [there[number][1] for number in self.chosen]

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        found = self.network(images)
        maps = list(found.values()) if isinstance(found, Mapping) else found
        return OrderedDict((str(place), maps[number]) for place, number in enumerate(self.chosen))


class TimmLevels(Levels):
    """The maps of a timm network at chosen strides, named "0", "1", ... from fine to coarse.

    Args:
        backbone: Name of a network that timm builds with `features_only=True`.
        strides: Which maps, pixels of the image a step in the map, ascending.
        in_channels: Channels C of the images.
        pretrained: Start from timm's weights, from its hub.
        image_size: Height and width, pixels, for networks that are built for one size.

    Shape:
        `(B, C, H, W)` to maps `(B, channels[i], H / strides[i], W / strides[i])`.

    Raises:
        ValueError: timm does not know the network, gives no maps of it or has no weights for it, or it has no map of a
            stride.
        ConnectionError: its weights are not on this machine and could not be fetched.
    """

    def __init__(
        self,
        backbone: str,
        strides: Sequence[int],
        in_channels: int = 3,
        pretrained: bool = False,
        image_size: tuple[int, int] | None = None,
    ) -> None:
        sized: dict[str, Any] = {}
        config = timm.get_pretrained_cfg(backbone, allow_unregistered=True)
        if image_size is not None and config is not None and config.fixed_input_size:
            sized["img_size"] = image_size
        try:
            whole = create(backbone, num_classes=0, in_channels=in_channels, features_only=True, **sized)
        except (RuntimeError, AttributeError, AssertionError, TypeError) as error:
            raise ValueError(
                f"timm gives no feature maps of {backbone!r} ({error}); choose another backbone"
            ) from error
        info: Any = whole.feature_info
        there = info.reduction()
        check_strides(backbone, sorted(set(there)), strides)
        chosen = [len(there) - 1 - there[::-1].index(stride) for stride in strides if stride in there]
        wanted = {"features_only": True, "out_indices": chosen, **sized}
        try:
            network: Any = create(backbone, num_classes=0, in_channels=in_channels, pretrained=pretrained, **wanted)
        except ConnectionError as error:
            # `weights` is no way out here: it takes a whole detector's.
            raise ConnectionError(
                f"{str(error).partition(';')[0]}; when offline, bring it in Hugging Face's cache folder from a machine "
                "that fetched it, or pass pretrained=False"
            ) from error
        picked = list(zip((there[number] for number in chosen), network.feature_info.channels(), strict=True))
        super().__init__(network, backbone, picked, strides)
        self.channels_last = getattr(network, "output_fmt", None) == Format.NHWC

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        maps = super().forward(images)
        if self.channels_last:
            return OrderedDict((name, found.permute(0, 3, 1, 2).contiguous()) for name, found in maps.items())
        return maps


class ModuleLevels(Levels):
    """The maps of any module at chosen strides; which it has is seen from one image of zeros.

    Args:
        backbone: Maps images `(B, C, H, W)` to a list, tuple or dictionary of maps.
        strides: Which maps, pixels of the image a step in the map, ascending.
        in_channels: Channels C of the images.
        image_size: Height and width, pixels, of the image of zeros.

    Raises:
        ValueError: the module gives something else than maps `(B, channels, height, width)`, or none of a stride.
    """

    def __init__(
        self, backbone: nn.Module, strides: Sequence[int], in_channels: int, image_size: tuple[int, int]
    ) -> None:
        name, training = type(backbone).__name__, backbone.training
        with torch.no_grad():
            found = backbone.eval()(torch.zeros(1, in_channels, *image_size))
        backbone.train(training)
        maps = list(found.values()) if isinstance(found, Mapping) else found
        if not isinstance(maps, list | tuple) or not all(isinstance(it, Tensor) and it.ndim == 4 for it in maps):
            kind = type(found).__name__
            raise ValueError(f"{name} gives a {kind}, not a list or dictionary of maps (B, channels, height, width)")
        there = [(round(image_size[0] / it.shape[2]), int(it.shape[1])) for it in maps]
        super().__init__(backbone, name, there, strides)


class Pyramid(nn.Module):
    """torchvision's feature pyramid on the levels of a network; coarser maps follow by convolutions of stride 2.

    Args:
        levels: Gives maps fine to coarse.
        channels: Of every map of the pyramid.

    Raises:
        ValueError: a coarser stride is not twice the one before.
    """

    def __init__(self, levels: Levels, channels: int) -> None:
        super().__init__()
        self.levels, self.out_channels = levels, channels
        self.strides = [*levels.strides, *levels.coarser]
        for finer, coarser in pairwise(self.strides[len(levels.strides) - 1 :]):
            if coarser != 2 * finer:
                raise ValueError(
                    f"a pyramid goes on from stride {finer} to {2 * finer}, not to {coarser}; mend strides"
                )
        self.fpn = FeaturePyramidNetwork(levels.channels, channels)
        self.coarser = nn.ModuleList(nn.Conv2d(channels, channels, 3, 2, 1) for _ in levels.coarser)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        maps: OrderedDict[str, Tensor] = self.fpn(self.levels(images))
        last = next(reversed(maps.values()))
        for layer in self.coarser:
            last = layer(last.relu())
            maps[str(len(maps))] = last
        return maps


def check_strides(name: str, there: Sequence[int], wanted: Sequence[int]) -> None:
    """Refuse strides that a network's maps do not have and that coarser maps cannot add."""
    if not wanted or list(wanted) != sorted(set(wanted)):
        raise ValueError(f"strides {list(wanted)} do not ascend; give each once, the finest first")
    missing = [stride for stride in wanted if stride not in there and stride < max(there)]
    if missing or wanted[0] > max(there):
        raise ValueError(
            f"{name} has maps of strides {list(there)} and none of {missing or wanted[0]}; choose strides among them, "
            "coarser ones are added"
        )


def check_groups(settings: DetectorSettings) -> None:
    """Refuse a pyramid that the group norms of a head cannot divide."""
    if settings.pyramid_channels % 32:
        raise ValueError(
            f"pyramid_channels={settings.pyramid_channels} is no multiple of the 32 groups of the head's norms; take "
            f"{max(32, round(settings.pyramid_channels / 32) * 32)}"
        )

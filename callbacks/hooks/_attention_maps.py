"""Where a network looks: the activation of its last layer of maps, averaged over channels."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._teachers import Renormalised, lend

__all__ = ["AttentionMaps", "activation_map"]

# Mean and standard deviation of each channel, of pixels in 0..1.
Statistics = tuple[list[float], list[float]]


def activation_map(features: Tensor) -> Tensor:
    """Attention `(B, h, w)`, float32, of maps `(B, C, h, w)`: their mean over channels."""
    return features.float().mean(1)


class AttentionMaps:
    """Attention `(B, h, w)` of normalised images `(B, C, H, W)`, without gradients, in evaluation mode.

    Args:
        owner: Who speaks in a refusal.
        network: One of timm's, or one that has such a part, whose last maps count; or one that answers with maps.
        size: Side in pixels that images are scaled to before the network sees them; None leaves them.
        normalised: How images were normalised, where it is known; bytes are not.
        wanted: How the network's were, where it is known.
        precision: Under what the network computes.
    """

    def __init__(
        self,
        owner: str,
        network: nn.Module,
        size: int | None,
        normalised: Statistics | None,
        wanted: Statistics | None,
        precision: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.owner, self.network, self.size, self.precision = owner, network, size, precision
        self._normalised, self._wanted = normalised, wanted
        self._ask = _maps_of(network)
        self._lent = lend(network)

    def give_back(self) -> None:
        """Put modes and device of the network to what they were."""
        self._lent.close()

    def __call__(self, images: Tensor) -> Tensor:
        like = next(self.network.parameters(), None)
        if like is not None and like.device != images.device:
            self.network.to(images.device)
        try:
            with torch.inference_mode(False), torch.no_grad(), self.precision():
                shown = self._prepared(images)
                cast = like is not None and not torch.is_autocast_enabled(images.device.type)
                found = self._ask(shown.to(like.dtype) if cast and like is not None else shown)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, AssertionError) as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise ValueError(
                f"{self.owner}: the extractor ({type(self.network).__name__}) does not take images "
                f"{tuple(images.shape[1:])} ({reason}); give one that does, or scale them with extractor_size=."
            ) from error
        if not isinstance(found, Tensor) or found.ndim != 4 or len(found) != len(images):
            got = f"{tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise ValueError(
                f"{self.owner}: the extractor ({type(self.network).__name__}) answered {got} to {len(images)} images; "
                "give a network of timm's, or one that answers with maps (B, C, h, w)."
            )
        return activation_map(found)

    def _prepared(self, images: Tensor) -> Tensor:
        channels, normalised = images.shape[1], self._normalised
        if images.dtype == torch.uint8:
            images, normalised = images.float() / 255, ([0.0] * channels, [1.0] * channels)
        if self.size is not None and images.shape[2:] != (self.size, self.size):
            size = (self.size, self.size)
            images = F.interpolate(images.float(), size, mode="bilinear", antialias=True).to(images.dtype)
        wanted = self._wanted
        if normalised is None or wanted is None or normalised == wanted or len(normalised[0]) != len(wanted[0]):
            return images
        return Renormalised(normalised, wanted)(images)


def _maps_of(network: nn.Module) -> Callable[[Tensor], Any]:
    for part in network.modules():
        timms: Any = part
        if hasattr(part, "forward_intermediates"):
            # Tokens, and maps with channels last, come as maps.
            how = {"indices": 1, "intermediates_only": True, "output_fmt": "NCHW"}
            return lambda images: timms.forward_intermediates(images, **how)[-1]
        if hasattr(part, "forward_features"):
            answer: Callable[[Tensor], Any] = timms.forward_features
            return answer
    return network

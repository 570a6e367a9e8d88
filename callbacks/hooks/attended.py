"""The attended seam: methods that mix a batch by where a frozen network looks.

Public hooks used: those of `targets.py`.
"""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from ._attention_maps import AttentionMaps
from ._checks import whole
from ._example_images import image_shape
from ._feature_networks import refuse_shared
from ._fields import Fields
from ._metadata import normalised_by
from ._replay import read_streams, rewind
from ._teachers import build_teachers, statistics_of, timms_statistics
from .targets import Targets

__all__ = ["Attended"]


class Attended(Targets):
    """Mixes images and labels, and knows where a network looks in each image, `(B, h, w)`.

    The network, the extractor, is no part of the module: no state dict, optimizer or wrapper of DDP knows of it. It
    computes in evaluation mode, without gradients, under the run's precision. Where the statistics that images were
    normalised by are known of the data and of the extractor, and differ, it gets images that were normalised by its
    own; a ready network gets them as they are. After the fit a ready network has its modes and its device back.

    Args:
        feature_extractor: A name of timm's; the path of a checkpoint (`*.ckpt`) of a classifier; or a network, of
            timm's or one that answers with maps `(B, C, h, w)`.
        extractor_weights: Of a name: `pretrained`, timm's own; `random`, drawn from `seed`, alike on all ranks; a file.
        extractor_size: Side in pixels that images are scaled to before the extractor sees them; None leaves them.
        others: Go to the next base class.

    Raises:
        ValueError: a setting is none of these; at set-up, if the extractor cannot be had, shares weights with the
            module or does not take its images; if the shape of images cannot be found out.
    """

    def __init__(
        self,
        *,
        feature_extractor: nn.Module | str,
        extractor_weights: str,
        extractor_size: int | None,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        kind = type(self).__name__
        if not isinstance(feature_extractor, (str, nn.Module)):
            raise ValueError(
                f"{kind}: feature_extractor is {feature_extractor!r}; give a name of timm's, a checkpoint's path "
                "(*.ckpt), or a network."
            )
        if extractor_size is not None:
            whole(kind, "extractor_size", extractor_size, 1)
        self.feature_extractor, self.extractor_weights = feature_extractor, extractor_weights
        self.extractor_size = extractor_size
        self._maps: AttentionMaps | None = None  # during a fit

    def attention(self, images: Tensor) -> Tensor:
        """Where the extractor looks in images `(B, C, H, W)`, float32 `(B, h, w)` on their device, during a fit."""
        if self._maps is None:
            kind = type(self).__name__
            raise ValueError(f"{kind}: outside of a fit there is no extractor; hand in the attention with the draw.")
        return self._maps(images)

    def admit(self, attention: Tensor, size: tuple[int, int]) -> None:
        """Raise a ValueError if this attention `(B, h, w)` of images of a size (H, W) is none to mix by."""

    def ready(self, trainer: Trainer, pl_module: LightningModule, fields: Fields) -> None:
        super().ready(trainer, pl_module, fields)
        kind, given = type(self).__name__, self.feature_extractor
        refuse_shared(kind, given, pl_module)
        # Making a network draws random numbers.
        streams = read_streams(trainer.strategy.root_device)
        try:
            shape = image_shape(trainer, pl_module, fields)
            torch.manual_seed(self.seed)
            with torch.inference_mode(False):
                (network,) = build_teachers(kind, given, self.extractor_weights, 10, shape[0], "feature_extractor")
            ours = normalised_by(trainer) or statistics_of(pl_module)
            theirs = statistics_of(network) or timms_statistics(network, self.extractor_weights)
            wanted = None if isinstance(given, nn.Module) else theirs
            precision = trainer.precision_plugin.forward_context
            self._maps = AttentionMaps(kind, network, self.extractor_size, ours, wanted, precision)
            self.undo_later(self._release)
            self.admit(self._maps(torch.zeros(2, *shape)), (shape[1], shape[2]))
        finally:
            rewind(streams)

    def _release(self) -> None:
        if self._maps is not None:
            self._maps.give_back()
        self._maps = None

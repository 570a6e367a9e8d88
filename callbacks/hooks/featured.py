"""The featured seam: methods that mix a batch by what a frozen network makes of its images.

Public hooks used: those of `targets.py`, `on_fit_start`.
"""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from ._feature_networks import FeatureNetwork, refuse_shared
from ._metadata import normalised_by
from ._replay import read_streams, rewind
from .targets import Targets

__all__ = ["Featured"]


class Featured(Targets):
    """Mixes images and labels, and knows features of the images, float32 `(B, D)`, without gradients.

    The network of the features is no part of the module: no state dict and no optimizer knows of it, and it computes in
    evaluation mode. After the fit a ready network has its modes and its device back.

    Args:
        features: None for the pixels themselves; the path of a checkpoint (`*.ckpt`) of a classifier, whose features
            before the last layer count, or of a module with `features(images)`; or a network `(B, C, H, W)` to
            `(B, D)`, which gets the images as they are.
        others: Go to the next base class.

    Raises:
        ValueError: `features` is none of these; at set-up, if it cannot be had or shares weights with the module.
    """

    stands_alone = "it asks a network for features of the images"

    def __init__(self, *, features: nn.Module | str | None, **others: Any) -> None:
        super().__init__(**others)
        if features == "inception" or not (features is None or isinstance(features, (str, nn.Module))):
            raise ValueError(
                f"{type(self).__name__}: features is {features!r}; give a checkpoint's path (*.ckpt), a network, or "
                "None for the pixels themselves."
            )
        self.features = features
        self._network: FeatureNetwork | None = None  # during a fit

    def features_of(self, images: Tensor) -> Tensor:
        """Features of images `(B, C, H, W)`, float32 `(B, D)` on their device; other ones than pixels during a fit."""
        if self.features is None:
            return images.detach().flatten(1).float()
        assert self._network is not None
        return self._network(images)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit" or self.off or self.features is None:
            return
        kind = type(self).__name__
        refuse_shared(kind, self.features, pl_module)
        # Making a network draws random numbers.
        streams = read_streams(trainer.strategy.root_device)
        try:
            with torch.inference_mode(False):
                self._network = FeatureNetwork(kind, self.features, None, normalised_by(trainer))
        finally:
            rewind(streams)
        self.undo_later(self._release)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if self._network is not None:
            self._network.to(pl_module.device)

    def _release(self) -> None:
        if self._network is not None:
            self._network.give_back()
        self._network = None

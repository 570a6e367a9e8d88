"""A network that has features, as the benchmarks of probes time it."""

from typing import Any

from torch import Tensor

from lightning_vision.backbones import create

from .fits import Batches, Plain, batches_of

__all__ = ["Featured", "split"]


class Featured(Plain):
    """ResNet-20 that learns classes and says its 64 features."""

    num_classes = 10

    def __init__(self) -> None:
        super().__init__(create("resnet20_cifar", num_classes=10, in_channels=3))

    def features(self, image: Tensor) -> Tensor:
        network: Any = self.network
        features: Tensor = network.forward_head(network.forward_features(image), pre_logits=True)
        return features

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self.training_step(batch)


def split(quick: bool) -> Batches:
    """Batches of 64 images."""
    return batches_of(64, 2 if quick else 10)

"""A validation of a small network, as the benchmarks of what watches validations time it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_vision.backbones import create

from .fits import Batches, Plain
from .side_by_side import Side

__all__ = ["Paints", "Validated", "one_batch", "validating"]


class Validated(Plain):
    """ResNet-20 whose validation takes the loss."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(create("resnet20_cifar", num_classes=10, in_channels=3))

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.network(image)
        return logits

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])


class Paints(Validated):
    """It makes images, asking its network as often as a fast sampler asks one."""

    def sample(self, count: int) -> Tensor:
        image = torch.randn(count, 3, 32, 32)
        for _ in range(10):
            image = image - 0.01 * self.network(image).mean(1)[:, None, None, None]
        return image


def validating(
    batches: Sequence[Any], folder: str, *callbacks: Callback, kind: type[LightningModule] = Validated
) -> Side:
    """A side that validates a new `kind` on all `batches`; files go into `folder`."""

    def prepare() -> Callable[[], Any]:
        trainer = Trainer(
            accelerator="cpu",
            callbacks=list(callbacks),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        module = kind()
        loader: Any = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]  # a list will do
        return lambda: trainer.validate(module, loader, verbose=False)

    return prepare


def one_batch(batches: Batches) -> Side:
    """A side that validates the first batch without a Trainer."""

    def prepare() -> Callable[[], Any]:
        module = Validated().eval()
        step = torch.no_grad()(module.validation_step)
        return lambda: step(batches[0])

    return prepare

"""What the benchmarks of callbacks that choose samples share: some epochs on digits."""

from collections.abc import Callable

import torch
from lightning.pytorch import Callback, Trainer

from lightning_vision.backbones import create
from lightning_vision.datamodules import Digits

from .fits import Plain
from .side_by_side import Side

__all__ = ["epochs_on_digits"]


def epochs_on_digits(epochs: int, *callbacks: Callable[[], Callback]) -> Side:
    """A side that trains a ResNet-8 on all digits, `epochs` times, with what `callbacks` make."""

    def prepare() -> Callable[[], None]:
        torch.manual_seed(0)
        module = Plain(create("resnet8_cifar", num_classes=10, in_channels=1))
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            callbacks=[make() for make in callbacks],
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        return lambda: trainer.fit(module, datamodule=Digits(batch_size=64))

    return prepare

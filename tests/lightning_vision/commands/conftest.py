"""What the tests of commands share."""

import pytest
import torch

from lightning_vision import ImageClassifier
from lightning_vision.datamodules import Digits
from support.trainers import quiet_trainer


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A checkpoint after a few steps on the digits, whose classes are called by their numbers."""
    torch.manual_seed(0)
    module = ImageClassifier("resnet8_cifar", num_classes=10, in_channels=1)
    trainer = quiet_trainer(max_steps=25, limit_val_batches=0)
    trainer.fit(module, datamodule=Digits(batch_size=64))
    path = tmp_path_factory.mktemp("trained") / "best.ckpt"
    trainer.save_checkpoint(path)
    return path.read_bytes()

"""What `lightning_vision lr_find` draws, for a network that rounds alike on every machine."""

from functools import partial

import torch
from lightning.pytorch import Trainer, seed_everything
from matplotlib.figure import Figure
from torch import nn

from lightning_vision import ImageClassifier
from lightning_vision.commands.lr_find import RangeTest, draw_test, smoothed, steepest
from lightning_vision.datamodules import Digits


def draw() -> Figure:
    """The loss of softmax regression on digits over a hundred growing rates, and where it falls fastest."""
    seed_everything(0, verbose=False)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    module = ImageClassifier(network, num_classes=10, in_channels=1, optimizer=partial(torch.optim.SGD, lr=1.0))
    test = RangeTest(1e-5, 10.0, 100)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        accelerator="cpu", callbacks=[test], max_steps=100, limit_val_batches=0, enable_model_summary=False, **quiet
    )
    trainer.fit(module, Digits(batch_size=64))
    rates = [test.rate(step) for step in range(len(test.losses))]
    best = steepest(rates, smoothed(test.losses))
    assert best is not None
    return draw_test(rates, test.losses, best)

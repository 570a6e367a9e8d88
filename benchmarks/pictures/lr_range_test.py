"""The picture of LRRangeTest: two tests of a small network on digits, and what they propose."""

import contextlib
import tempfile

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_vision.callbacks import LRRangeTest
from lightning_vision.callbacks.schedules._range_picture import plot_range
from lightning_vision.callbacks.schedules.lr_range_test import proposed_rates
from lightning_vision.datamodules import Digits

__all__ = ["draw"]

TESTS = (LRRangeTest(0.0, 2.0, 100), LRRangeTest(1e-4, 10.0, 100, "exponential"))


class Digit(LightningModule):
    """A small network with batch norm, SGD with momentum."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
        )

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def draw() -> Figure:
    """A linear test up to 2, as the paper's, and an exponential one over five powers of ten, as fastai's."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axes, test in zip(figure.subplots(1, 2), TESTS, strict=True):
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
            quiet = dict.fromkeys(
                ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False
            )
            trainer = Trainer(
                callbacks=[test], max_steps=1, limit_val_batches=0, default_root_dir=folder, accelerator="cpu", **quiet
            )
            trainer.fit(Digit(), datamodule=Digits(batch_size=64))
        assert test.found is not None
        curve = [[row[name] for row in test.found.rows] for name in ("lr", "loss")]
        plot_range(axes, test.found.rows, test.mode, proposed_rates(*curve, test.window))
        axes.set_title(test.mode)
    return figure

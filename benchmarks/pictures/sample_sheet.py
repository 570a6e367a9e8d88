"""The picture of SampleSheet: three sheets of one fit, of a module that learns a Gaussian for each digit."""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_vision.callbacks import SampleSheet

from ._trained_digits import digits

__all__ = ["draw"]

STEPS, WIDTH = (0, 40, 400), 24


class Gaussians(LightningModule):
    """Mean and factor of the covariance for each class, fitted to its moments."""

    num_classes = 10
    preprocessing = {"mean": [0.0], "std": [1.0]}  # noqa: RUF012  # the house's modules have one of their own

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mean = nn.Parameter(torch.full((10, 64), 0.5))
        self.factor = nn.Parameter(0.1 * torch.randn(10, 64, WIDTH))
        images, labels = digits()
        rows = [images[labels == it].flatten(1) for it in range(10)]
        self.register_buffer("means", torch.stack([it.mean(0) for it in rows]))
        self.register_buffer("covariances", torch.stack([torch.cov(it.T) for it in rows]))

    def sample(self, count: int, label: Tensor, seed: int, first: int) -> Tensor:
        streams = [torch.Generator().manual_seed(1000 * seed + first + it) for it in range(count)]
        noise = torch.stack([torch.randn(WIDTH, generator=stream) for stream in streams])
        return (self.mean[label] + torch.einsum("bdw,bw->bd", self.factor[label], noise)).view(-1, 1, 8, 8)

    def training_step(self, batch: Tensor) -> Tensor:
        own = self.factor @ self.factor.mT
        return (self.mean - self.means).square().sum() + (own - self.covariances).square().sum()

    def validation_step(self, batch: Tensor) -> None: ...

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logger.setLevel(level)


def draw() -> Figure:
    """The sheets before the first step, after forty and after four hundred."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    loader: Any = DataLoader(torch.zeros(1, 1), batch_size=1)  # type: ignore[arg-type]  # a tensor will do
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        module = Gaussians()
        for before, after in zip((0, *STEPS), STEPS, strict=False):
            settings: Any = {"accelerator": "cpu", "default_root_dir": f"{folder}/{after}", "barebones": False} | quiet
            sheet = SampleSheet(samples=30)
            if after > before:
                Trainer(max_steps=after - before, max_epochs=-1, limit_val_batches=0, **settings).fit(module, loader)
            Trainer(callbacks=[sheet], **settings).validate(module, loader, verbose=False)
        files = [next(Path(folder, str(step)).rglob("*.png")) for step in STEPS]
        sheets = [np.asarray(Image.open(file)) for file in files]
    figure = Figure(figsize=(9.5, 1.5), layout="constrained")
    for axis, step, picture in zip(figure.subplots(1, len(STEPS)), STEPS, sheets, strict=True):
        axis.imshow(picture[::2, ::2])
        axis.set(xticks=[], yticks=[])
        axis.set_xlabel(f"after {step} steps" if step else "untrained", fontsize=8)
    return figure

"""What counting activations costs: a validation with and without, and the count of one batch beside others'."""

from collections.abc import Callable
from typing import Any

import timm
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

from lightning_vision.callbacks import ActivationSparsity, count_nonzero

from .side_by_side import Row, Side, take_turns, unprepared

__all__ = ["rows"]


class Vision(LightningModule):
    """A small vision transformer that is only asked."""

    def __init__(self) -> None:
        super().__init__()
        self.network = timm.create_model("vit_tiny_patch16_224", img_size=64, patch_size=8, num_classes=10)

    def validation_step(self, batch: Tensor) -> None:
        self.network(batch)


class ByMetric(Callback):
    """What one writes: a hook and a torchmetrics mean for each block."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.means = []
        self.handles = []
        blocks: Any = pl_module.network.blocks  # type: ignore[union-attr]  # the ViT's
        for block in blocks:
            mean = MeanMetric()
            self.means.append(mean)
            hook = lambda layer, args, out, mean=mean: mean.update((out != 0).float())  # noqa: E731  # as one writes it
            self.handles.append(block.mlp.act.register_forward_hook(hook))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for handle in self.handles:
            handle.remove()


def rows(quick: bool) -> list[Row]:
    """Validate a ViT-Ti on images of 64 pixels, and count one batch of activations.

    Args:
        quick: One repetition of one batch.
    """
    images = [torch.randn(8, 3, 64, 64) for _ in range(1 if quick else 4)]
    module, activation = Vision(), torch.randn(32, 197, 768).relu()
    mean = MeanMetric()
    sides: dict[str, Side] = {
        "plain": unprepared(_validating(module, images)),
        "metric": unprepared(_validating(module, images, ByMetric)),
        "ours": unprepared(_validating(module, images, ActivationSparsity)),
        "count": unprepared(lambda: count_nonzero(activation)),
        "mean": unprepared(lambda: mean.update((activation != 0).float())),
    }
    times = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (9, 1)).items()}
    what = "a validation, ViT-Ti, every MLP counted"
    return [
        Row.slowdown(what, "a hook and torchmetrics' `MeanMetric`", times["ours"], times["metric"], "cpu", "<= 1.00"),
        Row.slowdown(what, "no callback", times["ours"], times["plain"], "cpu", "<= 1.10"),
        Row.slowdown("counting 4.8 M activations", "torchmetrics' `MeanMetric`", times["count"], times["mean"], "cpu"),
    ]


def _validating(module: Vision, images: list[Tensor], *callbacks: Callable[[], Callback]) -> Callable[[], Any]:
    def run() -> None:
        trainer = Trainer(
            accelerator="cpu",
            callbacks=[make() for make in callbacks],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            fast_dev_run=len(images),
        )
        trainer.validate(module, DataLoader(images, batch_size=None), verbose=False)  # type: ignore[arg-type]  # a list

    return run

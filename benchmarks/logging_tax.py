"""What logging four scalars and accuracy costs against `self.log`, and what counting a batch costs."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lightning_vision.base.module import VisionModule
from lightning_vision.base.sums import Sums
from lightning_vision.classification.metrics import accuracies, accuracy

from .side_by_side import Row, Side, take_turns

__all__ = ["rows"]

CLASSES, BATCH = 10, 32


class Plain(LightningModule):
    """Trains, logs nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.network = cnn()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return loss_parts(self.network, *batch)[1]["loss"]


class Stock(Plain):
    """Logs as Lightning's and torchmetrics' guides do."""

    def __init__(self) -> None:
        super().__init__()
        self.accuracy = MulticlassAccuracy(CLASSES, average="micro")

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        logits, parts = loss_parts(self.network, *batch)
        self.accuracy(logits, batch[1])
        scalars = {f"train/{name}": value for name, value in parts.items()}
        self.log_dict(scalars, on_step=True, on_epoch=True, batch_size=len(logits))
        self.log("train/acc", self.accuracy, on_step=True, on_epoch=True, batch_size=len(logits))
        return parts["loss"]


class Ours(VisionModule):
    """Logs through the sums of `VisionModule`."""

    num_classes, in_channels = CLASSES, 3

    def __init__(self) -> None:
        super().__init__(partial(torch.optim.SGD, lr=0.01), None, "epoch", True, 1.0, 1.0)
        self.network = cnn()

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        logits, parts = loss_parts(self.network, *batch)
        self.scalars.log("train", parts | {"acc": accuracy(logits.detach(), batch[1])}, len(logits))
        return parts["loss"]


def rows(quick: bool) -> list[Row]:
    """Train without logging, with stock logging and with ours; then only count.

    Args:
        quick: One repetition of few steps.
    """
    return [
        *_training_rows(*(4, 1) if quick else (100, 21)),
        *(_counting_row(classes, *(2, 1) if quick else (50, 21)) for classes in (10, 1000)),
    ]


def cnn() -> nn.Module:
    """Three convolutions, 16 channels wide, for `(B, 3, 32, 32)`."""
    widths = [3, 16, 16, 16]
    blocks = [
        nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), nn.BatchNorm2d(b), nn.ReLU())
        for a, b in pairwise(widths)
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], CLASSES))


def loss_parts(network: nn.Module, images: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and four scalars, the loss among them."""
    logits = network(images)
    cross_entropy = F.cross_entropy(logits, target)
    size = logits.square().mean()
    loss = cross_entropy + 1e-4 * size
    return logits, {"loss": loss, "cross_entropy": cross_entropy, "size": size, "largest": logits.amax()}


def _training_rows(steps: int, repetitions: int) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(steps, BATCH, 3, 32, 32, generator=generator)
    targets = torch.randint(CLASSES, (steps, BATCH), generator=generator)
    batches = DataLoader(list(zip(images, targets, strict=True)), batch_size=None)
    means: dict[str, dict[str, Tensor]] = {}
    sides = {kind.__name__: _training(kind, batches, means) for kind in (Plain, Stock, Ours)}
    times = take_turns(sides, repetitions)
    plain, stock, ours = ([seconds / steps for seconds in times[name]["cpu"]] for name in sides)
    ends = [{name: mean for name, mean in means[side].items() if "_epoch" in name} for side in ("Ours", "Stock")]
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-6)
    stock_tax = [logged - bare for logged, bare in zip(stock, plain, strict=True)]
    our_tax = [logged - bare for logged, bare in zip(ours, plain, strict=True)]
    return [
        Row.slowdown("what our sums add to a step", "what `self.log` adds", our_tax, stock_tax, "cpu", "<= 0.15"),
        Row.slowdown("a step with our sums", "without logging", ours, plain, "cpu"),
        Row.slowdown("(a step with `self.log`)", "without logging", stock, plain, "cpu"),
    ]


def _counting_row(classes: int, updates: int, repetitions: int) -> Row:
    logits = torch.randn(128, classes, generator=torch.Generator().manual_seed(0))
    target = torch.arange(128) % classes
    loss = F.cross_entropy(logits, target)
    sums = Sums()
    top = {"acc": 1, "acc_top5": 5}
    collection = MetricCollection(
        {name: MulticlassAccuracy(classes, top_k=k, average="micro", validate_args=False) for name, k in top.items()}
    )
    mean = MeanMetric()

    def stock() -> None:
        for _ in range(updates):
            collection.update(logits, target)
            mean.update(loss, len(logits))

    def ours() -> None:
        for _ in range(updates):
            sums.add({"loss": loss} | accuracies(logits, target), len(logits))

    times = take_turns({"stock": lambda: stock, "ours": lambda: ours}, repetitions)
    torch.testing.assert_close(sums.means(), {"loss": mean.compute()} | collection.compute(), rtol=1e-4, atol=0)
    peer, own = ([seconds / updates for seconds in times[side]["cpu"]] for side in ("stock", "ours"))
    return Row.speedup(f"counting loss, top-1, top-5 of {classes} classes", "torchmetrics", own, peer, "cpu")


def _training(kind: type[LightningModule], batches: DataLoader[Any], means: dict[str, dict[str, Tensor]]) -> Side:
    def prepare() -> Callable[[], None]:
        seed_everything(0, verbose=False)
        module = kind()
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

        def run() -> None:
            trainer.fit(module, batches)
            means[kind.__name__] = dict(trainer.callback_metrics)

        return run

    return prepare

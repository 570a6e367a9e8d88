"""What fine-tuning a copy of a network's tensors costs, beside lightly's classifier and beside a deep copy."""

from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from lightly.utils.benchmarking import FinetuneClassifier
from pytorch_lightning import Trainer  # whose modules lightly's are
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader

from lightning_vision.callbacks.probes._fine_tuning import fine_tuned, own_tensors

from .fits import Batches
from .probed import Featured, split
from .side_by_side import Row, Side, take_turns, unprepared

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Fine-tune `resnet20_cifar` on half of ten batches of 64, and on all.

    Args:
        quick: One repetition of two batches.
    """
    images = split(quick)
    return [*_rows(images[: len(images) // 2], quick), *_rows(images, quick)]


def _rows(images: Batches, quick: bool) -> list[Row]:
    module = Featured()
    sides: dict[str, Side] = {
        "ours": unprepared(lambda: _ours(module, images)),
        "copy": unprepared(lambda: _copied(module, images)),
        "lightly": unprepared(lambda: _by_lightly(images)),
    }
    times = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (7, 1)).items()}
    what = f"{len(images)} steps of 64 images, `resnet20_cifar`"
    return [
        Row.slowdown(what, "lightly's `FinetuneClassifier`", times["ours"], times["lightly"], "cpu", "<= 1.10"),
        Row.slowdown(what, "a deep copy trained by hand", times["ours"], times["copy"], "cpu"),
    ]


def _ours(module: Featured, images: Batches) -> Any:
    image, target = (torch.cat(it) for it in zip(*images, strict=True))
    batches = list(torch.arange(len(image)).split(64))
    module.train()
    return fine_tuned("It", module, own_tensors(module), image, target, 10, 0.05, batches, Generator().manual_seed(0))


def _copied(module: Featured, images: Batches) -> nn.Module:
    network, head = deepcopy(module).train(), nn.Linear(64, 10)
    optimizer = torch.optim.SGD([*network.parameters(), *head.parameters()], lr=0.05, momentum=0.9, nesterov=True)
    for image, target in images:
        optimizer.zero_grad()
        F.cross_entropy(head(network.features(image)), target).backward()
        optimizer.step()
    return network


def _by_lightly(images: Batches) -> FinetuneClassifier:
    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = Featured()

        def forward(self, image: Tensor) -> Tensor:
            return self.module.features(image)

    theirs = FinetuneClassifier(Body(), batch_size_per_device=64, feature_dim=64, num_classes=10)
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(accelerator="cpu", max_epochs=1, enable_checkpointing=False, **quiet)
    trainer.fit(theirs, DataLoader(images, batch_size=None))  # type: ignore[arg-type]  # a list will do
    return theirs

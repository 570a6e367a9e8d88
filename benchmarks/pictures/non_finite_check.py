"""The picture of NonFiniteCheck: a training that meets a batch with NaN, without it and with each of its actions."""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_vision.callbacks import NonFiniteCheck

from ._trained_digits import digits

__all__ = ["draw"]

STEPS, BAD = 60, 31


def draw() -> Figure:
    """Accuracy on other digits after each step; one pixel of batch 31 is NaN."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    ways: dict[str, Any] = {
        "without": None,
        "skip": {"action": "skip"},
        "rollback, a snapshot each 20 steps": {"action": "rollback", "snapshot_every": 20},
        "stop": {"action": "stop"},
    }
    for (name, settings), style in zip(ways.items(), ("C3-", "C0-", "C2--", "C1:"), strict=True):
        found = _trained(settings)
        axes.plot(range(1, len(found) + 1), found, style, linewidth=2.5, label=name)
    axes.axvline(BAD, color="0.6", linewidth=1)
    axes.text(BAD + 0.5, 0.55, "a batch with one NaN", color="0.4")
    axes.set(xlabel="optimizer steps", ylabel="accuracy, validation", xlim=(0, STEPS), ylim=(0, 1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.06))
    return figure


class _Learns(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)


class _Accuracies(Callback):
    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels, self.found = images, labels, list[float]()

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        pl_module.eval()
        answers = pl_module.network(self.images)  # type: ignore[operator]  # a network
        pl_module.train()
        right = (answers.argmax(1) == self.labels) & answers.isfinite().all(1)
        self.found.append(float(right.float().mean()))


def _trained(settings: Any) -> list[float]:
    images, labels = digits()
    images = images.clone()
    images[16 * (BAD - 1), 0, 0, 0] = torch.nan
    accuracies = _Accuracies(images[1000:], labels[1000:])
    callbacks: list[Callback] = [accuracies] if settings is None else [NonFiniteCheck(**settings), accuracies]
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        module = _Learns()
        trainer = Trainer(accelerator="cpu", max_steps=STEPS, callbacks=callbacks, **quiet)
        try:
            trainer.fit(module, DataLoader(TensorDataset(images[:1000], labels[:1000]), 16))
        except RuntimeError as error:
            # With `stop` the run ends there.
            assert "NonFiniteCheck" in str(error)
    return accuracies.found

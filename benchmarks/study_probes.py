"""What probes say of features that are known to be good, of no use, and gone: digits placed on a canvas."""

import contextlib
import tempfile
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn

from lightning_vision.backbones import create
from lightning_vision.callbacks import CollapseAlarm, KNNProbe, OnlineProbe, Representation
from lightning_vision.datamodules import PlacedDigits

from .study import in_processes

__all__ = ["blocks"]

SEEDS, EPOCHS = range(3), 10
ARMS = {
    "pixels": "raw pixels",
    "random": "at random",
    "labels": "trained with labels",
    "collapsed": "taught one answer",
}
NUMBERS = {
    "knn": "kNN",
    "online": "linear, online",
    "representation_rank": "RankMe",
    "representation_uniformity": "uniformity",
    "representation_alignment": "alignment",
    "collapse_spread": "spread",
    "collapse_rank": "rank's share",
}


class Digits24(LightningModule):
    """A small network whose features are of one of `ARMS`."""

    def __init__(self, arm: str) -> None:
        super().__init__()
        self.arm = arm
        self.network = create("resnet8_cifar", num_classes=0, in_channels=1)
        self.head = nn.Linear(64, 10)

    def features(self, image: Tensor) -> Tensor:
        features: Tensor = image.flatten(1) if self.arm == "pixels" else self.network(image)
        return features

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        features = self.network(batch[0])
        if self.arm == "collapsed":
            return (features - 1).square().mean()
        return F.cross_entropy(self.head(features), batch[1])

    def validation_step(self, batch: Any) -> None: ...

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.003 if self.arm in ("labels", "collapsed") else 0.0)


def blocks(quick: bool) -> dict[str, str]:
    """The probes' last numbers after ten epochs, by arm, means over three seeds.

    Args:
        quick: One seed, two epochs.
    """
    seeds, epochs = ([0], 2) if quick else (SEEDS, EPOCHS)
    found = iter(in_processes(_probed, [(arm, epochs, seed) for arm in ARMS for seed in seeds], 0 if quick else 2))
    lines = [f"| features | {' | '.join(NUMBERS.values())} |", f"|---|{'--:|' * len(NUMBERS)}"]
    for named in ARMS.values():
        runs = [next(found) for _ in seeds]
        lines.append(f"| {named} | {' | '.join(f'{mean(run[key] for run in runs):.3f}' for key in NUMBERS)} |")
    seeded = "seed 0" if quick else f"means over seeds 0 to {len(SEEDS) - 1}"
    protocol = (
        f"`PlacedDigits`, plain canvas, its validation; `resnet8_cifar`, 64 features, after {epochs} epochs of Adam, "
        f"batches of 64; kNN by `solo`; alignment of pairs of a class; {seeded}."
    )
    table = "\n".join(lines)
    return {"study_probes": f"{table}\n\n{protocol}"}


def _probed(arm: str, epochs: int, seed: int) -> dict[str, float]:
    seed_everything(seed, verbose=False)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            check_val_every_n_epoch=epochs,
            callbacks=[KNNProbe("solo"), OnlineProbe(), Representation(), CollapseAlarm()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=folder,
        )
        trainer.fit(Digits24(arm), datamodule=PlacedDigits(seed=seed))
    return {key: float(trainer.callback_metrics[f"probe/{key}"]) for key in NUMBERS}

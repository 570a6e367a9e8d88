"""The shipped training on digits against a loop written by hand."""

import copy
import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_f1_score

from lightning_vision.cli import VisionCLI
from lightning_vision.commands import fit

from .side_by_side import Row, take_turns

__all__ = ["rows"]

LOG_EVERY, BATCH = 10, 64
BARE = ["--trainer.logger", "false", "--trainer.enable_checkpointing", "false", "--callbacks.checkpoint", "null"]
Metrics = dict[str, Tensor]


def rows(quick: bool) -> list[Row]:
    """Train with everything that the shipped config does, and without its files.

    Args:
        quick: One repetition of one epoch.
    """
    epochs, repetitions = (1, 1) if quick else (15, 7)
    ours = "`fit --config classification/digits`"
    return [
        _row(ours, "a loop that writes the same files", epochs, repetitions, [], "<= 1.20"),
        _row(f"{ours}, no loggers, no checkpoints", "a loop that writes nothing", epochs, repetitions, BARE),
    ]


def _row(what: str, against: str, epochs: int, repetitions: int, flags: list[str], bar: str = "") -> Row:
    last: dict[str, tuple[nn.Module, Metrics]] = {}
    with TemporaryDirectory() as folder:

        def shipped() -> Callable[[], None]:
            cli = _cli(folder, epochs, flags)

            def run() -> None:
                cli.trainer.fit(cli.model, datamodule=cli.datamodule)
                last["ours"] = cli.model.network, cli.trainer.callback_metrics

            return run

        def by_hand() -> Callable[[], None]:
            cli = _cli(folder, epochs, flags)
            network, data = copy.deepcopy(cli.model.network), _tensors(cli.datamodule, epochs)
            files = None if flags else cli.run_dir

            def run() -> None:
                last["peer"] = network, loop(network, *data, files)

            return run

        times = take_turns({"peer": by_hand, "ours": shipped}, repetitions, warmup=0 if epochs == 1 else 1)
    for name, value in last["peer"][0].state_dict().items():
        assert torch.equal(value, last["ours"][0].state_dict()[name]), f"{name} differs: the sides trained differently"
    torch.testing.assert_close({name: last["ours"][1][name] for name in last["peer"][1]}, last["peer"][1])
    return Row.slowdown(what, against, times["ours"]["wall"], times["peer"]["wall"], "wall", bar)


def loop(
    network: nn.Module,
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    orders: list[Tensor],
    files: Path | None,
) -> Metrics:
    """Train `network` in place.

    Args:
        network: Maps `(B, 1, 8, 8)` to logits.
        train: Normalised images and targets to train on.
        val: Those to validate on, after every epoch.
        orders: Positions of the training images in each epoch.
        files: Folder for the best and the last checkpoint and a table of metrics; None writes nothing.

    Returns:
        The metrics of the last epoch.
    """
    decayed = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    spared = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": spared, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.004)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=15)
    metrics: Metrics = {}
    table: list[dict[str, float]] = []
    best, step = -1.0, 0
    for order in orders:
        network.train()
        total_loss = total_right = torch.zeros((), dtype=torch.float64)
        for part in order.split(BATCH):
            image, target = train[0][part], train[1][part]
            logits = network(image)
            loss = F.cross_entropy(logits, target)
            right = (logits.argmax(1) == target).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total_loss, total_right = total_loss + loss.detach() * len(part), total_right + right
            step += 1
            if step % LOG_EVERY == 0:
                table.append({"step": step, "train/loss_step": loss.item(), "train/acc_step": right.item() / len(part)})
        metrics = {"train/loss_epoch": total_loss / len(order), "train/acc_epoch": total_right / len(order)}
        metrics = {name: mean.float() for name, mean in metrics.items()} | validate(network, *val)
        table.append({"step": step} | {name: value.item() for name, value in metrics.items()})
        schedule.step()
        if files:
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            torch.save(state, files / "last.ckpt")
            if metrics["val/acc"] > best:
                best = metrics["val/acc"].item()
                shutil.copyfile(files / "last.ckpt", files / "best.ckpt")
    if files:
        names = {name: None for row in table for name in row}
        with open(files / "metrics.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(table)
    return metrics


@torch.no_grad()
def validate(network: nn.Module, images: Tensor, targets: Tensor) -> Metrics:
    """Loss, accuracies, macro F1 and calibration error of `network` on normalised images."""
    network.eval()
    logits = torch.cat([network(image) for image in images.split(BATCH)])
    top5 = (logits.topk(5, 1).indices == targets[:, None]).float()
    probabilities = logits.softmax(1)
    return {
        "val/loss": F.cross_entropy(logits, targets),
        "val/acc": top5[:, 0].mean(),
        "val/acc_top5": top5.sum(1).mean(),
        "val/f1": multiclass_f1_score(probabilities, targets, 10, average="macro", validate_args=False),
        "val/ece": multiclass_calibration_error(probabilities, targets, 10, n_bins=15, validate_args=False),
    }


def _cli(folder: str, epochs: int, flags: list[str]) -> VisionCLI:
    given = ["--config", "classification/digits", "--trainer.max_epochs", str(epochs)]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    return VisionCLI(
        fit.run, [*given, *quiet, "--trainer.accelerator", "cpu", "--trainer.default_root_dir", folder, *flags]
    )


def _tensors(
    data: LightningDataModule, epochs: int
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], list[Tensor]]:
    sampler = data.train_dataloader().sampler
    orders = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        orders.append(sampler.positions())
    train, val = ((data.normalise(part.images), part.targets) for part in (data.train_set, data.val_set))
    return train, val, orders

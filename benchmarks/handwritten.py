"""A training loop as one writes it by hand, for `digits_loop`: one file, no framework."""

import csv
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_f1_score

__all__ = ["Recipe", "Samples", "train"]

CLASSES = 10
Metrics = dict[str, Tensor]


@dataclass
class Samples:
    """Images in memory and what was drawn for each epoch beforehand.

    Args:
        images: Normalised training images with zeros around them, float32 `(N, 1, H + 2 * shift, W + 2 * shift)`.
        targets: Their classes, int64 `(N,)`.
        orders: For each epoch the positions of the images in the order of training, int64 `(N,)`.
        windows: For each epoch first row and first column of each image's window, int64 `(N, 2)`.
        val_images: Normalised validation images, float32 `(M, 1, H, W)`.
        val_targets: Their classes, int64 `(M,)`.
    """

    images: Tensor
    targets: Tensor
    orders: list[Tensor]
    windows: list[Tensor]
    val_images: Tensor
    val_targets: Tensor


@dataclass
class Recipe:
    """How to train.

    Args:
        batch_size: Images in a batch.
        log_every: Steps between two rows of the table.
        lr: First learning rate of the cosine schedule.
        schedule: Its length, epochs.
        weight_decay: Of AdamW, for weights; norms and biases have none.
        label_smoothing: Share of the target spread over all classes.
    """

    batch_size: int
    log_every: int
    lr: float
    schedule: int
    weight_decay: float
    label_smoothing: float


def train(network: nn.Module, samples: Samples, recipe: Recipe, folder: Path | None) -> Metrics:
    """Train `network` in place and validate it after every epoch.

    Args:
        network: Maps `(B, 1, H, W)` to logits.
        samples: What to train on.
        recipe: How.
        folder: Where the best and the last checkpoint and a table of metrics go; None writes nothing.

    Returns:
        The metrics of the last epoch.
    """
    decayed = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    spared = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.schedule)
    height, width = samples.val_images.shape[-2:]
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    metrics: Metrics = {}
    table: list[dict[str, float]] = []
    best, step = -1.0, 0
    for order, windows in zip(samples.orders, samples.windows, strict=True):
        network.train()
        losses = hits = torch.zeros(())
        for part in order.split(recipe.batch_size):
            row, column = windows[part].T[:, :, None, None]
            image = samples.images[part[:, None, None], 0, row + rows, column + columns].unsqueeze(1)
            target = samples.targets[part]
            logits = network(image)
            loss = F.cross_entropy(logits, target, label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            right = (logits.argmax(1) == target).sum()
            losses, hits = losses + loss.detach() * len(part), hits + right
            step += 1
            if step % recipe.log_every == 0:
                table.append({"step": step, "train/loss_step": loss.item(), "train/acc_step": right.item() / len(part)})
        schedule.step()
        metrics = {"train/loss_epoch": losses / len(order), "train/acc_epoch": hits / len(order)}
        metrics |= validate(network, samples, recipe)
        table.append({"step": step} | {name: value.item() for name, value in metrics.items()})
        if folder:
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            torch.save(state | {"schedule": schedule.state_dict()}, folder / "last.ckpt")
            if metrics["val/acc"] > best:
                best = metrics["val/acc"].item()
                shutil.copyfile(folder / "last.ckpt", folder / "best.ckpt")
            _write(table, folder / "metrics.csv")
    return metrics


@torch.no_grad()
def validate(network: nn.Module, samples: Samples, recipe: Recipe) -> Metrics:
    """Loss, accuracies, macro F1 and calibration error on the validation images."""
    network.eval()
    logits = torch.cat([network(image) for image in samples.val_images.split(recipe.batch_size)])
    target, probabilities = samples.val_targets, logits.softmax(1)
    hits = (logits.topk(5, 1).indices == target[:, None]).float()
    return {
        "val/loss": F.cross_entropy(logits, target, label_smoothing=recipe.label_smoothing),
        "val/acc": hits[:, 0].mean(),
        "val/acc_top5": hits.sum(1).mean(),
        "val/f1": multiclass_f1_score(probabilities, target, CLASSES, average="macro", validate_args=False),
        "val/ece": multiclass_calibration_error(probabilities, target, CLASSES, n_bins=15, validate_args=False),
    }


def _write(table: list[dict[str, float]], path: Path) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, dict.fromkeys(name for row in table for name in row))
        writer.writeheader()
        writer.writerows(table)

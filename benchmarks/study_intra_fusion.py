"""What is left of a digit classifier when half of its channels go, by fusing and by dropping, without fine-tuning.

The protocol stands here and was committed before the first run: seeds 0 to 4, test accuracy of each network after
channels went, paired differences to torch-pruning's L1 pruning at the same sparsity. It was laid down after a look at
seed 100, which is in no table.
"""

import copy
from collections.abc import Mapping
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning
from torch import nn

from lightning_vision.callbacks.pruning import intra_fusion
from lightning_vision.datamodules import Digits

from .study import in_processes, table

__all__ = ["blocks", "outcomes"]

SEEDS, SPARSITIES = range(5), (0.3, 0.5, 0.7)
STEPS, BATCH, LR = 200, 64, 0.005
ARMS: dict[str, Mapping[str, Any] | None] = {
    "L1, dropped by torch-pruning": None,
    "Intra-Fusion": {},
    "Intra-Fusion, importance as source": {"source_marginal": "importance"},
    "Intra-Fusion, means": {"fusing": "mean"},
    "Intra-Fusion, means, radical source": {"fusing": "mean", "source_marginal": "radical"},
}


def blocks(quick: bool) -> dict[str, str]:
    """A table of each sparsity, in one block.

    Args:
        quick: One seed, two steps.
    """
    seeds, steps = (SEEDS[:1], 2) if quick else (SEEDS, STEPS)
    each = in_processes(outcomes, [(seed, steps) for seed in seeds], 0 if quick else 2)
    dense = ", ".join(f"{found['dense', 0.0]:.1f}" for found in each)
    parts = [
        f"Accuracy, percent of the test digits, of a network of three convolutions with batch norm (32, 64, 64 "
        f"channels) after {steps} steps of {BATCH} images with AdamW (rate {LR}), and no step after channels went. "
        f"Dense: {dense} (mean {mean(found['dense', 0.0] for found in each):.1f})."
    ]
    for sparsity in SPARSITIES:
        scores = {arm: [found[arm, sparsity] for found in each] for arm in ARMS}
        parts.append(f"Sparsity {sparsity}:\n\n{table(scores, {}, {})}")
    return {"study_intra_fusion": "\n\n".join(parts)}


def outcomes(seed: int, steps: int) -> dict[tuple[str, float], float]:
    """Test accuracy, percent, by arm and sparsity, and of the dense network."""
    data = Digits(batch_size=BATCH, seed=seed)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    torch.manual_seed(seed)
    network = _network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR)
    done = 0
    while done < steps:
        for batch in data.train_dataloader():
            optimizer.zero_grad()
            F.cross_entropy(network(batch[0] / 255), batch[1]).backward()
            optimizer.step()
            done += 1
            if done == steps:
                break
    network.eval()
    test = list(data.test_dataloader())
    images = torch.cat([batch[0] for batch in test]) / 255
    labels = torch.cat([batch[1] for batch in test])

    def accuracy(model: nn.Module) -> float:
        with torch.no_grad():
            return 100 * (model(images).argmax(dim=1) == labels).float().mean().item()

    found = {("dense", 0.0): accuracy(network)}
    for arm, settings in ARMS.items():
        for sparsity in SPARSITIES:
            narrow = copy.deepcopy(network)
            if settings is None:
                drop_by_l1(narrow, images[:2], sparsity)
            else:
                intra_fusion(narrow, images[:2], sparsity, **settings)
            found[arm, sparsity] = accuracy(narrow)
    return found


def drop_by_l1(model: nn.Sequential, images: torch.Tensor, sparsity: float) -> None:
    """Plain structured pruning by torch-pruning; the last layer keeps its outputs."""
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=1)
    torch_pruning.pruner.BasePruner(
        model, images, importance, pruning_ratio=sparsity, ignored_layers=[model[-1]]
    ).step()


def _network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )

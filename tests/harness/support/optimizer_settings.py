"""A module with two learning rates, and what its optimizer is set to at every step."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from support.modules import Plain

__all__ = ["BASES", "Decayed", "Settings"]

BASES = (0.08, 0.02)  # trunk and head, as layer-wise decay would set them


class Decayed(Plain):
    """Two groups with learning rates of their own, momentum, no schedule."""

    def configure_optimizers(self) -> Any:
        groups = [
            {"params": self.network[:-1].parameters(), "lr": BASES[0]},
            {"params": self.network[-1].parameters(), "lr": BASES[1]},
        ]
        return torch.optim.SGD(groups, momentum=0.9)


class Settings(Callback):
    """The groups' (rates, momenta) at every optimizer step."""

    def __init__(self) -> None:
        self.rows: list[tuple[list[float], list[float]]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        groups = optimizer.param_groups
        momenta = [it["betas"][0] if "betas" in it else it["momentum"] for it in groups]
        self.rows.append(([it["lr"] for it in groups], momenta))

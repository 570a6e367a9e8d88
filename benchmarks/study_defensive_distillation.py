"""What defensive distillation does against FGSM and Carlini-Wagner on digits: five seeds, all arms.

The protocol, fixed before the first run: a network of one hidden layer of 64 units is trained on the digits for 12
epochs of batches of 64 by Adam at rate 0.01. Arms: as it is; the first fit of the recipe alone, at T = 50; the second
fit, taught by the first, at T = 50. Scored once at the end on the first 100 test digits: accuracy as they are, after
FGSM of 0.1 of the pixels' range, and after C&W (100 steps at rate 0.05, 5 values of c from 1), with the mean length of
C&W's changes. Seeds 0 to 4 fix weights and order.
"""

from statistics import mean

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn

from lightning_vision.callbacks import AdversarialAccuracy, DefensiveDistillation
from lightning_vision.datamodules import Digits

from .study import in_processes, table

__all__ = ["Network", "blocks", "fitted"]

EPOCHS, TEMPERATURE, EPSILON = 12, 50.0, 0.1
ARMS = ("as it is", "trained at T = 50", "taught at T = 50 by that one")
SCORES = ("clean", f"fgsm_{EPSILON:g}", "cw")


def blocks(quick: bool) -> dict[str, str]:
    """The tables of all arms: clean accuracy, and after each attack.

    Args:
        quick: One seed, one epoch.
    """
    seeds, epochs = ([0], 1) if quick else (range(5), EPOCHS)
    runs = in_processes(_run, [(seed, epochs) for seed in seeds], 0 if quick else 2)
    moved = {arm: f"{mean(run[arm].get('cw_l2', float('nan')) for run in runs):.2f}" for arm in ARMS}
    titles = ("Test digits as they are", f"After FGSM of {EPSILON}", "After Carlini-Wagner")
    tables = []
    for title, score in zip(titles, SCORES, strict=True):
        after = {"mean length of its changes": moved} if score == "cw" else {}
        scores = {arm: [100 * run[arm][score] for run in runs] for arm in ARMS}
        tables.append(f"{title}:\n\n{table(scores, {}, after)}")
    note = (
        "Accuracy, percent, of 100 test digits; lengths in pixels of 0 to 1. The differences are to the first arm; SE "
        "is the standard error of the paired difference over the seeds."
    )
    return {"study_defensive_distillation": "\n\n".join([*tables, note])}


class Network(LightningModule):
    """`(B, 1, 8, 8)` to logits `(B, 10)`."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.network(image)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """The attack alone is of interest."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def fitted(seed: int, epochs: int, *callbacks: DefensiveDistillation) -> Network:
    """A network trained on the digits by the protocol."""
    seed_everything(seed, verbose=False)
    module = Network()
    _trainer(*callbacks, max_epochs=epochs, limit_val_batches=0).fit(module, datamodule=Digits(batch_size=64))
    return module


def _run(seed: int, epochs: int) -> dict[str, dict[str, float]]:
    plain = fitted(seed, epochs)
    teacher = fitted(seed, epochs, DefensiveDistillation(temperature=TEMPERATURE))
    student = fitted(seed, epochs, DefensiveDistillation(teacher, temperature=TEMPERATURE))
    found = {}
    for arm, module in zip(ARMS, (plain, teacher, student), strict=True):
        attack = AdversarialAccuracy([EPSILON], cw_steps=100, cw_searches=5, cw_lr=0.05)
        (scores,) = _trainer(attack).test(module, datamodule=Digits(batch_size=100), verbose=False)
        found[arm] = {name.removeprefix("test/adversarial/"): value for name, value in scores.items()}
    return found


def _trainer(*callbacks: AdversarialAccuracy | DefensiveDistillation, **options: int) -> Trainer:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return Trainer(accelerator="cpu", callbacks=list(callbacks), **quiet, **options)  # type: ignore[arg-type]

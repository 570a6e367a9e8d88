"""Does an overlap of segments find a ticket in fewer rounds, and what is it worth? Ten digits, five seeds, all arms.

The protocol, fixed before the first run: a network of two convolutions and a head on `Digits`, Adam at rate 0.003,
batches of 100. Every training from the early weights has 150 steps, so a round of one segment takes 150 steps and one
of two segments 300; `rate` 0.2, down to 90% zeros, rewinding to initialisation. 150 steps after the last pruning the
fit ends, and the test digits are scored once. The dense network and the one pruned at initialisation, 90% of
each layer, have 150 steps. Seeds 0 to 4 fix weights and order.
"""

from collections.abc import Callable
from contextlib import chdir, redirect_stdout
from io import StringIO
from itertools import product
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from lightning_vision.callbacks import LotteryTickets, Pruning
from lightning_vision.callbacks.pruning.lottery_tickets import ticket_sizes
from lightning_vision.datamodules import Digits

from .study import in_processes, table

__all__ = ["blocks"]

SPARSITY, RATE, STEPS = 0.9, 0.2, 150
ARMS: dict[str, Callable[[], list[Callback]]] = {
    "dense": list,
    "magnitude at initialisation, layer by layer": lambda: [Pruning(SPARSITY, scope="layer")],
    "one segment (IMP)": lambda: [LotteryTickets(SPARSITY, rate=RATE, round_steps=STEPS)],
    "two segments (COLT)": lambda: [LotteryTickets(SPARSITY, rate=RATE, round_steps=2 * STEPS, segments=2)],
}


def blocks(quick: bool) -> dict[str, str]:
    """The table of all arms.

    Args:
        quick: One seed of the two arms that are trained once.
    """
    seeds, names = range(1 if quick else 5), list(ARMS)[: 2 if quick else None]
    runs = dict(zip(product(names, seeds), in_processes(_run, product(names, seeds), 0 if quick else 2), strict=True))
    scores = {arm: [runs[arm, seed][0] for seed in seeds] for arm in names}
    columns = {
        title: {arm: form.format(mean(runs[arm, seed][place] for seed in seeds)) for arm in names}
        for place, title, form in ((1, "zeros", "{:.1%}"), (2, "rounds", "{:.1f}"), (3, "optimizer steps", "{:.0f}"))
    }
    note = (
        f"Test accuracy on `Digits`, percent; two convolutions and a head, Adam (rate 0.003), batches of 100, {STEPS} "
        "steps from the early weights to each pruning and to the end. Zeros, rounds and steps are means over seeds; "
        "SE is the standard error of the paired difference."
    )
    return {"study_tickets": f"{table(scores, columns, {})}\n\n{note}"}


class Network(LightningModule):
    """1.7k weights: `(B, 1, 8, 8)` to logits `(B, 10)`."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 10),
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image)

    def training_step(self, batch: Any) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch: Any) -> None:
        self.log("accuracy", (self(batch[0]).argmax(dim=1) == batch[1]).float().mean(), batch_size=len(batch[1]))

    def configure_optimizers(self) -> Optimizer:
        return Adam(self.parameters(), lr=3e-3)


class Ending(Callback):
    """Ends the fit so many steps after the last pruning."""

    def __init__(self, tickets: LotteryTickets) -> None:
        self.tickets = tickets

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self.tickets.finished and trainer.global_step >= self.tickets.given_at + STEPS:
            trainer.should_stop = True


def _run(arm: str, seed: int) -> tuple[float, float, int, int]:
    """Test accuracy in percent, share of zeros, rounds, optimizer steps."""
    torch.manual_seed(seed)
    module, callbacks = Network(), ARMS[arm]()
    tickets = next((it for it in callbacks if isinstance(it, LotteryTickets)), None)
    weights = [part.weight for part in module.network if isinstance(part, (nn.Conv2d, nn.Linear))]
    steps = STEPS
    if tickets is not None:
        # As many as iterative pruning may take; the fit ends earlier if it does.
        rounds = len(ticket_sizes(sum(it.numel() for it in weights), SPARSITY, RATE))
        steps = (rounds * tickets.segments + 1) * STEPS
        callbacks.append(Ending(tickets))
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    with TemporaryDirectory() as folder, chdir(folder), redirect_stdout(StringIO()):
        trainer = Trainer(
            accelerator="cpu",
            max_steps=steps,
            max_epochs=-1,
            callbacks=callbacks,
            enable_model_summary=False,
            limit_val_batches=0,
            **quiet,
        )
        data = Digits(batch_size=100, seed=seed)
        trainer.fit(module, datamodule=data)
        accuracy = trainer.test(module, datamodule=data, verbose=False)[0]["accuracy"]
    zeros = sum(int((it == 0).sum()) for it in weights) / sum(it.numel() for it in weights)
    return 100 * accuracy, zeros, tickets.rounds if tickets else 0, trainer.global_step

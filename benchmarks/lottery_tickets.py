"""What finding a ticket costs beside training: a step, going back, and rounds by hand with torch's pruning."""

from contextlib import chdir, redirect_stdout
from functools import partial
from io import StringIO
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from lightning_vision.backbones import create
from lightning_vision.callbacks import LotteryTickets

from .fits import Batches, Plain, batches_of, fitting
from .side_by_side import Row, Side, take_turns

__all__ = ["rows"]

RATE = 0.2


def rows(quick: bool) -> list[Row]:
    """Train `resnet20_cifar` on batches of 64 in two rounds and a last training, of as many steps each.

    Args:
        quick: One repetition of two steps a round.
    """
    steps = 2 if quick else 6
    batches = batches_of(8 if quick else 64, steps)
    tickets = partial(LotteryTickets, sparsity=1 - (1 - RATE) ** 2, rate=RATE, round_steps=steps)
    halves = partial(LotteryTickets, sparsity=2 * RATE, rate=RATE, round_steps=2 * steps, segments=2)
    sides: dict[str, Side] = {
        "plain": fitting(_module, batches, 3),
        "by hand": partial(partial, _by_hand, batches),
        "ours": fitting(_module, batches, 3, tickets),
        "halves": fitting(_module, batches, 5, halves),
    }
    # A report ends each fit, in the working folder and on the screen.
    with TemporaryDirectory() as folder, chdir(folder), redirect_stdout(StringIO()):
        times = {name: it["cpu"] for name, it in take_turns(sides, *(1, 0) if quick else (7, 1)).items()}
    what = "two rounds and the ticket's training"
    return [
        Row.slowdown(what, "as many plain steps", times["ours"], times["plain"], "cpu", "<= 1.10"),
        Row.slowdown(what, "by hand, with torch's `prune`", times["ours"], times["by hand"], "cpu", "<= 1.10"),
        Row.slowdown("two rounds of two segments and the ticket's", what, times["halves"], times["ours"], "cpu"),
    ]


def _module() -> Plain:
    torch.manual_seed(0)
    return Plain(create("resnet20_cifar", num_classes=10, in_channels=3))


def _by_hand(batches: Batches) -> nn.Module:
    module = _module()
    early = {name: it.clone() for name, it in module.state_dict().items()}
    layers = {name: it for name, it in module.named_modules() if isinstance(it, (nn.Conv2d, nn.Linear))}
    for training in range(3):
        optimizer = module.configure_optimizers()
        for image, target in batches:
            _step(module, optimizer, image, target)
        if training < 2:
            chosen = [(it, "weight") for it in layers.values()]
            prune.global_unstructured(chosen, pruning_method=prune.L1Unstructured, amount=RATE)
            # torch keeps pruned weights under another name.
            named = {
                name.replace("weight_orig", "weight"): it for name, it in module.state_dict(keep_vars=True).items()
            }
            with torch.no_grad():
                for name, value in early.items():
                    named[name].copy_(value)
    return module


def _step(module: Plain, optimizer: torch.optim.Optimizer, image: Tensor, target: Tensor) -> None:
    optimizer.zero_grad()
    F.cross_entropy(module.network(image), target).backward()
    optimizer.step()

"""What a range test takes, against Lightning's own search for a rate, and against as many steps of training."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.tuner import Tuner
from torch.utils.data import DataLoader

from lightning_vision.callbacks import LRRangeTest

from .fits import Batches, Plain, batches_of
from .logging_tax import cnn
from .side_by_side import Row, take_turns

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Try rates from 1e-5 to 1e-2, at which a small network does not diverge; a rate is tried for a batch of 32.

    Args:
        quick: One repetition of few steps.
    """
    steps, repetitions, warmup = (20, 1, 0) if quick else (100, 15, 1)
    batches = batches_of(32, steps)
    settings = {"max_lr": 0.01, "num_steps": steps, "mode": "exponential", "divergence": 100.0, "then": "stop"}
    sides = {
        "ours": partial(_ours, batches, LRRangeTest(**settings)),
        "tuner": partial(_tuner, batches, steps),
        "training": partial(_ours, batches, None),
    }
    with _somewhere():
        times = take_turns(sides, repetitions, warmup)
    what = f"a test of {steps} steps"
    return [
        Row.slowdown(what, "Lightning's `Tuner`", times["ours"]["cpu"], times["tuner"]["cpu"], "cpu"),
        Row.slowdown(what, "training as many steps", times["ours"]["cpu"], times["training"]["cpu"], "cpu"),
        Row.slowdown(
            "(`Tuner.lr_find`)", "training as many steps", times["tuner"]["cpu"], times["training"]["cpu"], "cpu"
        ),
    ]


def _module() -> Plain:
    torch.manual_seed(0)
    return Plain(cnn())


def _trainer(*callbacks: LRRangeTest) -> Trainer:
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    return Trainer(callbacks=list(callbacks), max_epochs=1, accelerator="cpu", enable_checkpointing=False, **quiet)


def _ours(batches: Batches, test: LRRangeTest | None) -> Callable[[], object]:
    module, trainer = _module(), _trainer(*([] if test is None else [test]))

    def run() -> None:
        with contextlib.redirect_stdout(None):
            trainer.fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]  # a list will do

    return run


def _tuner(batches: Batches, steps: int) -> Callable[[], object]:
    module, trainer = _module(), _trainer()
    loader = DataLoader(batches, batch_size=None)  # type: ignore[var-annotated,arg-type]  # a list will do
    settings = {"min_lr": 1e-5, "max_lr": 0.01, "num_training": steps, "early_stop_threshold": None}

    def run() -> None:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            Tuner(trainer).lr_find(module, loader, update_attr=False, **settings)

    return run


@contextlib.contextmanager
def _somewhere() -> Iterator[None]:
    """Both write files where they stand."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        yield

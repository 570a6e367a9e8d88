"""Trainings that only try something out: with the run's methods, without its files, its reports and its ends."""

import copy
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    Checkpoint,
    DeviceStatsMonitor,
    EarlyStopping,
    LearningRateMonitor,
    ModelSummary,
    ProgressBar,
    Timer,
)
from lightning.pytorch.cli import SaveConfigCallback

from lightning_vision.callbacks.hooks.method import Place

__all__ = ["trial_trainer"]

# What writes, watches or ends a run. The Trainer makes a progress bar and a summary of its own where they are wanted.
APART = (
    Checkpoint,
    DeviceStatsMonitor,
    EarlyStopping,
    LearningRateMonitor,
    ModelSummary,
    ProgressBar,
    SaveConfigCallback,
    Timer,
)
PLACES = (Place.OBSERVE, Place.RUN)


def trial_trainer(cli: Any, *more: Callback, without: tuple[type[Callback], ...] = (), **settings: Any) -> Trainer:
    """A Trainer as configured, of whose callbacks those act that change the training; it logs and saves nothing.

    Args:
        cli: Its trainer's callbacks are copied as they are before a fit, so that each trial starts afresh.
        more: Callbacks of the trial.
        without: Classes of callbacks that the trial leaves out, too.
        settings: Arguments of the Trainer that differ from the configured ones.
    """
    kept = [
        callback
        for callback in cli.trainer.callbacks
        if not isinstance(callback, (*APART, *without)) and getattr(callback, "place", None) not in PLACES
    ]
    apart = {"logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    endless = {"min_epochs": None, "min_steps": None, "max_time": None}
    callbacks = {"callbacks": [*copy.deepcopy(kept), *more]}
    return Trainer(**{**cli.config_init["trainer"], **apart, **endless, **settings, **callbacks})

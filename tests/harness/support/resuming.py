"""Runs that are recorded, killed and continued, to be compared number by number with the run that was not."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger

__all__ = ["KilledError", "Recorder", "Run", "differences", "newest", "record"]


class KilledError(Exception):
    """Ends a run from inside."""


class Recorder(Logger):
    """Keeps every logged row."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    @property
    def name(self) -> str:
        return "recorder"

    @property
    def version(self) -> int:
        return 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


class Kill(Checkpoint):
    """Raises `KilledError` as the batch after optimizer step `step` begins, or when a checkpoint of it is written.

    The second is the harder one: nothing that follows the checkpoint happened in the killed run. It is a `Checkpoint`
    only to come after those that write.
    """

    def __init__(self, step: int, in_the_act: bool) -> None:
        self.step, self.in_the_act = step, in_the_act

    def _check(self, trainer: Trainer) -> None:
        saved = [callback._last_global_step_saved for callback in trainer.checkpoint_callbacks if callback is not self]
        if self.in_the_act and trainer.global_step >= self.step and trainer.global_step in saved:
            raise KilledError

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self._check(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step >= self.step and not self.in_the_act:
            raise KilledError


@dataclass
class Run:
    """What is compared of a run.

    Args:
        state: weights, buffers, optimizers and schedulers at its end; empty if it was ended early.
        rows: what the loggers got.
        batches: epoch, index and tensors of each training batch.
        end: what ended it early: `KilledError`, or the SystemExit into which Lightning turns Ctrl-C.
    """

    state: dict[str, Any]
    rows: list[tuple[int | None, dict[str, float]]]
    batches: list[Any]
    end: BaseException | None


def newest(folder: Path) -> Path:
    """The checkpoint in `folder` that was written last."""
    return max(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)


class _Watch(Callback):
    def __init__(self) -> None:
        self.batches: list[Any] = []
        self.state: dict[str, Any] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        tensors = batch.values() if isinstance(batch, dict) else batch
        self.batches.append((trainer.current_epoch, batch_idx, [tensor.clone() for tensor in tensors]))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.state = {
            "weights": {name: value.clone() for name, value in pl_module.state_dict().items()},
            "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
            "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
            "steps": (trainer.global_step, trainer.current_epoch),
        }


def record(
    module: LightningModule,
    loaders: Callable[[], Any] | None,
    callbacks: Sequence[Callback] = (),
    *,
    kill_at: int | None = None,
    in_the_act: bool = False,
    ckpt_path: Path | str | None = None,
    datamodule: Any = None,
    **options: Any,
) -> Run:
    """Fit `module` on `loaders()` (train, or train and validation) and return what happened; a kill ends it early."""
    watch, recorder = _Watch(), Recorder()
    checkpointing = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": recorder,
        "log_every_n_steps": 2,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": checkpointing,
        "num_sanity_val_steps": 0,
    }
    kill = [Kill(kill_at, in_the_act)] if kill_at is not None else []
    trainer = Trainer(**settings | options, callbacks=[*callbacks, watch, *kill])
    given = {} if datamodule is None else {"datamodule": datamodule}
    if datamodule is None:
        both = loaders() if loaders is not None else None
        train, val = both if isinstance(both, tuple) else (both, None)
        given = {"train_dataloaders": train, "val_dataloaders": val}
    end: BaseException | None = None
    try:
        trainer.fit(module, ckpt_path=ckpt_path, weights_only=True, **given)
    except (KilledError, SystemExit) as error:
        end = error
    return Run(watch.state, recorder.rows, watch.batches, end)


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, (list, tuple)):
        items = list(enumerate(value))
    else:
        return {name: value}
    return {key: leaf for part, child in items for key, leaf in _flat(child, f"{name}.{part}").items()}


def differences(straight: Run, killed: Run, resumed: Run, lost_rows: int = 0) -> list[str]:
    """Where the killed run and the one resumed after it are not together the straight run, bit for bit.

    Up to `lost_rows` logged rows may be in neither.
    """
    found = []
    ours, theirs = _flat(resumed.state), _flat(straight.state)
    for key in sorted(ours.keys() | theirs.keys(), key=str):
        left, right = ours.get(key), theirs.get(key)
        tensors = isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor)
        if not (torch.equal(left, right) if tensors else left == right):
            found.append(f"{key}: {left} instead of {right}")
    # A run that is killed has logged a beginning of the straight run's rows, the resumed one logs the rest.
    for name, rows, expected in (
        ("killed", killed.rows, straight.rows[: len(killed.rows)]),
        ("resumed", resumed.rows, straight.rows[len(straight.rows) - len(resumed.rows) :]),
    ):
        if len(rows) != len(expected):
            found.append(f"{name} run logged {len(rows)} rows, the straight one only {len(expected)}")
            continue
        pairs = zip(rows, expected, strict=True)
        found += [f"{name} run logged {row} instead of {other}" for row, other in pairs if row != other]
    if len(killed.rows) + len(resumed.rows) + lost_rows < len(straight.rows):
        found.append(f"rows {len(killed.rows)} to {len(straight.rows) - len(resumed.rows)} were logged by neither run")
    return found

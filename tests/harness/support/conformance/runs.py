"""One tiny fit under a condition, and everything about it that another fit is compared with.

An epoch has 27 images a process in batches of six, so its fifth batch is short; validation has two batches.
"""

import pickle
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import default_collate

from support.conformance.conditions import Condition
from support.data import ResumableLoader, labelled_images, with_boxes
from support.resuming import Recorder

__all__ = ["EPOCHS", "Outcome", "collate", "compare", "fit", "loaders", "plain_run", "seed", "trainer_for"]

EPOCHS = 2


@dataclass
class Outcome:
    """What a fit left.

    Args:
        module: its weights and buffers by name.
        optimizers: the optimizers' state dicts.
        schedulers: the schedulers' state dicts.
        counts: global step, epoch, micro-batches and optimizer steps as other callbacks see them.
        rows: what the loggers got.
        metrics: `trainer.callback_metrics`.
        streams: Python's, numpy's and torch's global random states.
        refusal: the sentence with which a callback refused, or nothing.
        trainer: for a look at what is left on it.
    """

    module: dict[str, Any] = field(default_factory=dict)
    optimizers: list[Any] = field(default_factory=list)
    schedulers: list[Any] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    rows: list[tuple[int | None, dict[str, float]]] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    streams: dict[str, Any] = field(default_factory=dict)
    refusal: str = ""
    trainer: Trainer | None = None

    def without_own(self, plain: "Outcome") -> "Outcome":
        """The same with logged values and metrics only of those names that the plain run has."""
        known = {name for _, row in plain.rows for name in row}
        rows = [(step, {name: value for name, value in row.items() if name in known}) for step, row in self.rows]
        metrics = {name: value for name, value in self.metrics.items() if name in plain.metrics}
        kept = {it.name: getattr(self, it.name) for it in fields(self)}
        return Outcome(**kept | {"rows": [row for row in rows if row[1]], "metrics": metrics})


class _Count(Callback):
    def __init__(self) -> None:
        self.seen = {"micro-batches": 0, "optimizer steps": 0, "validation batches": 0}

    def on_train_batch_end(self, *args: Any) -> None:
        self.seen["micro-batches"] += 1

    def on_before_optimizer_step(self, *args: Any) -> None:
        self.seen["optimizer steps"] += 1

    def on_validation_batch_end(self, *args: Any) -> None:
        self.seen["validation batches"] += 1


def seed(number: int) -> None:
    """Set the three global streams, on each rank to another place."""
    number += 100 * (dist.get_rank() if dist.is_initialized() else 0)
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


def _global_streams() -> dict[str, Any]:
    return {"torch": torch.get_rng_state(), "numpy": np.random.get_state(), "python": random.getstate()}


def collate(condition: Condition) -> Callable[[list[Any]], Any]:
    """What makes a batch of samples as the condition's module takes it."""
    batch = with_boxes if condition.needs == "detections" else default_collate
    if condition.module != "dict batches":
        return batch
    return lambda samples: dict(zip(("image", "target"), batch(samples), strict=True))


def loaders(condition: Condition) -> dict[str, Any]:
    """Train and validation loader of this rank, both resumable."""
    rank = dist.get_rank() if condition.processes == 2 else 0
    make = collate(condition)
    train, val = (
        ResumableLoader(labelled_images(count * condition.processes), 6, rank, condition.processes, collate_fn=make)
        for count in (27, 9)
    )
    return {"train_dataloaders": train, "val_dataloaders": val}


def trainer_for(condition: Condition, callbacks: Sequence[Callback], **options: Any) -> Trainer:
    """A quiet Trainer whose logger records."""
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": Recorder(),
        "log_every_n_steps": 2,
        "max_epochs": EPOCHS,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any("Checkpoint" in type(it).__name__ for it in callbacks),
        "num_sanity_val_steps": 1,
    }
    return Trainer(**settings | condition.options() | options, callbacks=list(callbacks))


def fit(
    condition: Condition,
    callbacks: Sequence[Callback] = (),
    *,
    seeded: int = 3,
    refusable: Sequence[str] = (),
    ckpt_path: Path | None = None,
    module: LightningModule | None = None,
    train_dataloaders: Any = None,
    **options: Any,
) -> Outcome:
    """Train under `condition` from the same first weights; a refusal by a class in `refusable` is an outcome, too."""
    if module is None:
        torch.manual_seed(1)
        module = condition.make_module()
    seed(seeded)
    counter = _Count()
    trainer = trainer_for(condition, [*callbacks, counter], **options)
    try:
        given = loaders(condition) | ({} if train_dataloaders is None else {"train_dataloaders": train_dataloaders})
        trainer.fit(module, ckpt_path=ckpt_path, weights_only=True, **given)
    except ValueError as error:
        if str(error).partition(":")[0] not in refusable:
            raise
        late = f" (after {counter.seen['optimizer steps']} steps)" if counter.seen["optimizer steps"] else ""
        return Outcome(refusal=f"{error}{late}", trainer=trainer)
    return _outcome_of(trainer, counter.seen)


def _outcome_of(trainer: Trainer, seen: dict[str, int]) -> Outcome:
    return Outcome(
        module={name: value.clone() for name, value in trainer.lightning_module.state_dict().items()},
        optimizers=[_copy(optimizer.state_dict()) for optimizer in trainer.optimizers],
        schedulers=[_copy(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs],
        counts={"global step": trainer.global_step, "epoch": trainer.current_epoch, **seen},
        rows=trainer.logger.rows,
        metrics=dict(trainer.callback_metrics),
        streams=_global_streams(),
        trainer=trainer,
    )


def _copy(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def plain_run(condition: Condition) -> Outcome:
    """The run without any callback, trained once in each process; where it would resume makes no difference to it."""
    return _plain_run(replace(condition, resume="inside an epoch"))


@cache
def _plain_run(condition: Condition) -> Outcome:
    return fit(condition)


def compare(ours: Outcome, theirs: Outcome, parts: Sequence[str]) -> list[str]:
    """One line for each of the outcome's `parts` that is not bit for bit the other's, with what differs in it."""
    found = []
    for part in parts:
        left, right = _flat(getattr(ours, part)), _flat(getattr(theirs, part))
        different = [name for name in {**left, **right} if not _same(left.get(name), right.get(name))]
        if different:
            shown = ", ".join(f"{name}: {left.get(name)} instead of {right.get(name)}" for name in different[:3])
            found.append(f"{part} differ in {len(different)} of {len(right)} values ({' '.join(shown.split())[:400]})")
    return found


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        items: Any = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return {name: value}
    return {key: leaf for part, child in items for key, leaf in _flat(child, f"{name}.{part}").items()}


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, (torch.Tensor, np.ndarray)) and isinstance(right, (torch.Tensor, np.ndarray)):
        return type(left) is type(right) and left.dtype == right.dtype and bool(np.array_equal(left, right))
    return type(left) is type(right) and (left == right or (left != left and right != right))

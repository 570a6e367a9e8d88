"""Where a run stands inside Lightning's loops, and how a checkpoint is made to continue from exactly there.

Lightning has no public view of this, so its counters are read here and, in a loaded checkpoint, rewritten. The
reasons, each with a test in `tests/callbacks/resume/test_lightning.py` that fails when Lightning changes:

- a checkpoint of the last batch of an epoch skips that epoch's validation, its end and its logged means;
- a checkpoint of a batch after which validation is due skips that validation, one from inside it repeats a part;
- with `max_steps`, after a checkpoint of an epoch's end comes an epoch of no batches, and an order of the data is lost;
- after any resume a `ReduceLROnPlateau` misses its next update;
- the first iterator of a resumed epoch is made before random streams can be restored.
"""

from dataclasses import dataclass
from typing import Any, cast

from lightning.pytorch import Trainer
from lightning.pytorch.loops.progress import _ProcessedTracker

__all__ = ["Position", "end_resume", "log_step", "mid_accumulation", "position_of", "rewrite", "take_over"]

BATCHES, VALIDATION = "epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress"


@dataclass(frozen=True)
class Position:
    """Where a checkpoint was written.

    Args:
        phase: `batch`, in `on_train_batch_end`; `between`, after a batch and its validation; `validating`;
            `validated`, in `on_validation_end`; `epoch`, in `on_train_epoch_end` or outside epochs; `inside` a step.
        batches: micro-batches of this epoch that are done.
        last_batch: they are all of this epoch.
        validation_due: validation follows, or followed, the last of them.
        plateau_due: schedulers that watch a metric were not yet updated at the epoch's end.
    """

    phase: str
    batches: int
    last_batch: bool
    validation_due: bool
    plateau_due: bool


def position_of(trainer: Trainer) -> Position:
    """The position of a run in `fit`, from Lightning's counters."""
    fit, loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
    epochs = cast(_ProcessedTracker, fit.epoch_progress.current)
    batches = cast(_ProcessedTracker, loop.batch_progress.current)
    if epochs.processed == epochs.started:
        return Position("epoch", 0, False, False, epochs.completed < epochs.processed)
    fetcher = fit._data_fetcher
    due = trainer.validating or (fetcher is not None and loop._should_check_val_fx(fetcher))
    if not batches.ready == batches.started == batches.processed:
        phase = "inside"
    elif batches.completed < batches.processed:
        phase = "batch"
    elif trainer.validating:
        validation = loop.val_loop.batch_progress
        done = validation.is_last_batch and validation.current.completed == validation.current.ready
        phase = "validated" if done else "validating"
    else:
        phase = "between"
    return Position(phase, batches.processed, loop._num_ready_batches_reached(), bool(due), False)


def mid_accumulation(trainer: Trainer) -> bool:
    """Whether gradients of earlier micro-batches wait for the next optimizer step."""
    return trainer.fit_loop._should_accumulate()


def rewrite(loops: dict[str, Any], position: Position, loaders: list[Any]) -> None:
    """Change the counters in `checkpoint["loops"]` so that Lightning continues at `position` with `loaders`' states."""
    fit = loops["fit_loop"]
    epochs, batches, validation = fit["epoch_progress"], fit[BATCHES], fit[VALIDATION]
    if position.phase == "epoch":
        fit["state_dict"].pop("combined_loader", None)
        for counts in (epochs["total"], epochs["current"]):
            counts["ready"] = counts["started"] = counts["processed"]
        return
    if loaders:
        fit["state_dict"]["combined_loader"] = loaders
    stepped = fit["epoch_loop.state_dict"]
    validate = position.phase == "validating" or (position.phase == "batch" and position.validation_due)
    if validate or (position.phase == "batch" and position.last_batch):
        # Lightning takes a batch whose `completed` is missing for one that needs no epoch end.
        for counts in (batches["total"], batches["current"]):
            counts["completed"] = counts["processed"]
    done = validation["total"]["completed"]
    # One validation batch begun and not ended is what sends Lightning back into validation.
    validation["total"] |= {"ready": done + validate, "started": done + validate, "processed": done}
    if validate:
        validation["current"] |= dict.fromkeys(("ready", "started", "processed", "completed"), 0)
        validation["is_last_batch"] = False
    if position.phase == "batch" and position.last_batch and not position.validation_due:
        stepped["_batches_that_stepped"] += 1
    if position.phase == "between" and position.validation_due:
        stepped["_batches_that_stepped"] -= 1


def take_over(trainer: Trainer, position: Position) -> None:
    """Finish the resume after every `on_train_start`: what counters in a file cannot say."""
    fit, loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
    validation = cast(_ProcessedTracker, loop.val_loop.batch_progress.total)
    validation.ready = validation.started = validation.completed
    if position.phase == "epoch":
        current, total = (cast(_ProcessedTracker, it) for it in (fit.epoch_progress.current, fit.epoch_progress.total))
        if position.plateau_due:
            current.completed = current.processed - 1
            loop.update_lr_schedulers("epoch", update_plateau_schedulers=True)
        total.completed, current.completed = total.processed, current.processed
        # The epoch makes its iterator at its start, as in the straight run.
        end_resume(trainer)
        return
    if position.phase == "batch" and not position.validation_due:
        loop.update_lr_schedulers("step", update_plateau_schedulers=True)
    if position.last_batch and not position.validation_due:
        loop.val_loop._has_run = True


def end_resume(trainer: Trainer) -> None:
    """Let the loops forget that they were resumed; they do so by themselves only after what they skip meanwhile."""
    for loop in (trainer.fit_loop, trainer.fit_loop.epoch_loop, trainer.fit_loop.epoch_loop.val_loop):
        loop.on_iteration_done()


def log_step(trainer: Trainer) -> None:
    """Give the loggers what they would get next, when `on_train_batch_end` is left by an exception."""
    trainer._logger_connector.on_batch_end()
    trainer._logger_connector.update_train_step_metrics()

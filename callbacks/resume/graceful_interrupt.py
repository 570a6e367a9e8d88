"""Ctrl-C ends a run between two steps, where a checkpoint is consistent.

Lightning raises KeyboardInterrupt wherever Python happens to be: weights may be one step ahead of the counters and the
loader one batch ahead of both, and what `save_on_exception` then writes cannot be resumed exactly.
"""

import os
import signal
import threading
from functools import partial
from types import FrameType
from typing import Any, cast, final

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from ..hooks._around import last_word
from ..hooks._progress import log_step, mid_accumulation
from ..hooks.method import Method, Place

__all__ = ["GracefulInterrupt"]


@final
class GracefulInterrupt(Method):
    """Lets the first Ctrl-C finish the optimizer step, write a checkpoint and end the run; the second ends it at once.

    SIGTERM, which clusters send before they take a machine away, does the same. The checkpoint is
    `last-interrupted.ckpt` beside those of the run's ModelCheckpoint, where `ckpt_path="last"` finds it, or in
    `default_root_dir`. With `ExactResume` the resumed run equals one that was never interrupted.

    The run ends as Lightning ends it on Ctrl-C: `on_exception`, loggers closed, SystemExit raised from a
    KeyboardInterrupt. During validation the first Ctrl-C waits for the next training step. With several processes all
    stop after the same step, whichever got the signal: each step's flags are summed while the next step computes.

    Args:
        filename: Name of the checkpoint, without `.ckpt`; `ckpt_path="last"` finds names that contain "last".
        name: Part of the state key.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import ExactResume, GracefulInterrupt
        >>> trainer = Trainer(callbacks=[ExactResume(), GracefulInterrupt()], accelerator="cpu", logger=False)
    """

    place = Place.RUN
    neutral = "a run that nobody interrupts is untouched under any setting"
    # It only saves and stops, which every strategy can.
    strategies = (Strategy,)

    def __init__(self, filename: str = "last-interrupted", name: str | None = None) -> None:
        super().__init__(name)
        self.filename = filename
        self._requested = self._busy = False
        self._trainer: Trainer | None = None
        self._after_fit: Any = None
        self._flags: _SharedFlag | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and self.rivals(trainer, GracefulInterrupt):
            raise ValueError("GracefulInterrupt: the Trainer has two of them for the same signals; remove one.")
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if threading.current_thread() is not threading.main_thread():
            rank_zero_warn("GracefulInterrupt: signals reach only the main thread, and this fit runs in another.")
            return
        self._requested = self._busy = False
        self._trainer = trainer
        self._flags = _SharedFlag() if trainer.world_size > 1 else None
        self.undo_later(self._forget)
        # Last of all: what other callbacks do at the batch's end must be in the checkpoint.
        self.undo_later(last_word(pl_module, "on_train_batch_end", lambda: self._at_boundary(trainer)).undo)
        # Lightning's own SIGTERM handler broadcasts from inside the handler, where the other ranks do not wait for it.
        for number in (signal.SIGINT,) if SLURMEnvironment.detect() else (signal.SIGINT, signal.SIGTERM):
            self.undo_later(partial(self._give_back, number, signal.signal(number, self._handle)))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._flags is not None:
            self._flags.exchange(self._requested)
            self._requested = self._flags.finish()
        # No step is left to wait for, so from here on a signal is again the caller's.
        self._undo.close()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._requested:
            # Too late to stop a step, but not to stop what the caller does after the fit.
            self._requested = False
            self._after_fit = signal.getsignal(signal.SIGINT)
            raise KeyboardInterrupt("interrupted after the last step")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        if self._after_fit is not None:
            # Lightning ignores Ctrl-C from here on, and after a fit it has forgotten what was there before.
            signal.signal(signal.SIGINT, self._after_fit)
            self._after_fit = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._busy:
            return
        if self._requested:
            raise KeyboardInterrupt("interrupted at once")
        self._requested = True
        if self._trainer is not None and self._trainer.is_global_zero:
            # Not print: the signal may have come in the middle of one.
            os.write(2, b"\nFinishing the step and saving; interrupt again to stop at once.\n")

    def _at_boundary(self, trainer: Trainer) -> None:
        requested = self._requested if self._flags is None else self._flags.exchange(self._requested)
        if not requested or mid_accumulation(trainer):
            return
        self._busy = True
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]  # Lightning declares it nowhere
            folder = getattr(trainer.checkpoint_callback, "dirpath", None) or trainer.default_root_dir
            path = os.path.join(folder, f"{self.filename}.ckpt")
            trainer.save_checkpoint(path)
            rank_zero_info(f"Interrupted after step {trainer.global_step}; continue with ckpt_path={path!r}.")
        log_step(trainer)
        self._requested = False
        raise KeyboardInterrupt(f"interrupted after step {trainer.global_step}")

    def _give_back(self, number: int, handler: Any) -> None:
        # Lightning ignores Ctrl-C while it shuts down, and puts back what was there before the fit.
        if signal.getsignal(number) == self._handle:
            signal.signal(number, handler)

    def _forget(self) -> None:
        if self._flags is not None:
            self._flags.close()
        self._trainer = self._flags = None


class _SharedFlag:
    """Tells every rank at the same step whether any rank had its flag up at the end of the step before.

    The sum of one step runs on a group of its own, on the CPU, while the next step computes, so that nobody waits.
    """

    def __init__(self) -> None:
        self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
        self._sum = torch.zeros(1)
        self._work: dist.Work | None = None

    def exchange(self, flag: bool) -> bool:
        """Start summing this step's flags; return whether any was up in the last exchange."""
        raised = self.finish()
        self._sum = torch.tensor([float(flag or raised)])
        self._work = dist.all_reduce(self._sum, group=self._group, async_op=True)
        return raised

    def finish(self) -> bool:
        """Wait for the exchange under way; whether any flag was up in it."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        return bool(self._sum.item())

    def close(self) -> None:
        """Give the group back; a rank that failed waits for no one."""
        self._work = None
        if dist.is_initialized():
            dist.destroy_process_group(self._group)

"""The averages seam: validation and files see an average of the weights, training never does.

While a fit runs, the module holds the training weights but for its validations. Whatever writes a file asks the
strategy for the module's state, and there the average stands in. When a fit has ended the module holds the average, so
that outside of fits nothing is swapped: what the module holds, from the fit or from a file, is what is scored.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from ._added import is_added
from ._around import Around, last_word
from ._checks import whole
from ._counted_steps import refuse_uncounted_steps
from ._live_tensors import LiveTensors, plain_name
from .masks import Masks
from .method import Method, Place, callbacks_of

__all__ = ["Averages"]


class Averages(Method):
    """Keeps an average of the weights beside those that are trained, scores it in validation and writes it to files.

    Averaged are floating parameters and saved floating buffers, by name; half precision is averaged in float32, masked
    weights stay zero, integer buffers are the module's own. The average is updated once in each training batch in which
    `trainer.global_step` advanced: never per micro-batch, once if several optimizers stepped. A step that the gradient
    scaler skipped counts, as it does for `trainer.global_step`.

    Files hold the average as `state_dict`; the callback's state holds the training weights, which a resumed fit goes
    on with. Before the first update scores and files are those of the training weights, and a fit that ends without one
    warns. After a fit the module holds the average; after an exception the training weights. A method may have buffers
    measured for the average before it is scored, once for each average (`remeasured`).

    Args:
        every_n_steps: Steps from one update to the next, at least 1.
        start_step: The average starts with the weights as they are after this many optimizer steps.
        others: Go to the next base class, among them `name`.

    Raises:
        ValueError: from the constructor, for counts out of range; at set-up, if the Trainer has a second average; at
            the first update, if a buffer has changed its shape; at an optimizer step that goes past Lightning.
    """

    place = Place.AVERAGES

    def __init__(self, *, every_n_steps: int, start_step: int, **others: Any) -> None:
        super().__init__(**others)
        whole(type(self).__name__, "every_n_steps", every_n_steps, 1)
        whole(type(self).__name__, "start_step", start_step, 0)
        self.every_n_steps, self.start_step = every_n_steps, start_step
        self.updates = 0  # of the average
        self.average: dict[str, Tensor] = {}
        self._steps = 0  # since the average started
        self._global_step = 0  # when last looked at
        self._raw: dict[str, Tensor] = {}  # the training weights while the module does not train
        self._shown = False  # whether the module holds the average
        self._continues = False  # whether this fit goes on with the average and the training weights
        self._widened = False  # whether the average has a wider type than some of the weights
        self._measured = 0  # updates of the average that buffers were last measured for
        self._averaged: list[Tensor] = []  # the values of `average` during a fit
        self._shapes: list[torch.Size] = []  # of its buffers
        self._live: LiveTensors | None = None  # the module's tensors, during a fit
        self._files: Around | None = None
        self._masks: list[Masks] = []

    @abstractmethod
    def share(self, updates: int) -> float:
        """The share in (0, 1] of the current weights in the average, after `updates` earlier updates."""

    def begins(self, trainer: Trainer) -> bool:
        """Whether the average starts with the weights as they are now, at the training's start or after a step."""
        return trainer.global_step >= self.start_step

    def due(self, trainer: Trainer, steps: int) -> bool:
        """Whether the average is updated now, so many optimizer steps after it started."""
        return steps % self.every_n_steps == 0

    def plan(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse, before the first batch of a fit, what cannot work."""

    def updated(self, pl_module: LightningModule) -> None:
        """Called after an update of the average, while the module trains."""

    def remeasured(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
        """Buffers to take the place of averaged ones, by name; the module holds the average meanwhile."""
        return {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self._continues = False
        if self.off:
            return
        self._refuse_rivals(trainer)
        held = self.average if self._shown else self._raw
        # Nothing is changed before `on_fit_start`: what fails until then fails without a word to the average.
        if held and trainer.global_step == self._global_step:
            self._continues = LiveTensors(pl_module).hold(held)
        # Not the module's `on_save_checkpoint`: that hook, too, is to see what the file will hold.
        self._files = Around(trainer.strategy, "lightning_module_state_dict", self._with_average)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        if trainer.state.fn != "fit":
            return
        self._forget()
        saved = checkpoint["callbacks"].get(self.state_key)
        self._continues = saved is not None
        if saved is not None:
            self.updates, self._steps, self.average = saved["updates"], saved["steps"], saved["average"]
            self._raw, self._shown = saved["raw"], saved["updates"] > 0
            self._measured = saved.get("measured", 0)  # older files know no measuring

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if self._continues:
            # Also when switched off since: a file's `state_dict` is not what was trained.
            live = LiveTensors(pl_module)
            self._refuse_lost_parts(live)
            live.write(self._raw)
            self._raw, self._shown = {}, False
        if self.off or not self._continues:
            self._forget()
        if not self.off:
            refuse_uncounted_steps(self, trainer)
            self._live = LiveTensors(pl_module)
            self._masks = [other for other in callbacks_of(trainer) if isinstance(other, Masks)]
            if self.average:
                self._start_from(self._live, self.average)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._global_step = trainer.global_step
        if self._live is None:
            return
        self.plan(trainer, pl_module)
        if not self.average and self.begins(trainer):
            self._start_from(self._live, {})

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._live is None or (step := trainer.global_step) == self._global_step:
            return
        self._global_step = step
        if self.average:
            self._steps += 1
            if self.due(trainer, self._steps):
                self._update(self._live, self.share(self.updates))
                self.updated(pl_module)
            # An average of what a weight was before it was masked would not be sparse.
            for other in self._masks:
                for name, kept in other.kept_masks.items():
                    self.average[plain_name(name)].mul_(kept)
        elif self.begins(trainer):
            self._start_from(self._live, {})

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        if self._live is not None and self.updates:
            self._settle(self._live, trainer, pl_module)
            self._show(self._live)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self._hide()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if self._live is not None and self.updates:
            self._settle(self._live, trainer, pl_module)
        elif self._live is not None:
            rank_zero_warn(
                f"{type(self).__name__}: the training ended before the average took in any weights, so scores and "
                "files are those of the training weights; let the average start earlier, or train longer."
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        self._hide()
        if self._live is not None:
            self._raw = self._live.copies()
            self._global_step = trainer.global_step

        def leave() -> None:
            word.undo()
            self._leave()

        # Callbacks that hear of the exception after this one may still write checkpoints.
        word = last_word(trainer.strategy, "teardown", leave)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        if self._live is not None:
            self._show(self._live)
            self._global_step = trainer.global_step
        self._leave()

    def state_dict(self) -> dict[str, Any]:
        if not self.average:
            return {}
        raw = self._raw
        if not raw and self._live is not None:
            raw = {name: it.detach() for name, it in zip(self._live.names, self._live.read(), strict=True)}
        counts = {"updates": self.updates, "steps": self._steps, "measured": self._measured}
        return {**counts, "average": dict(self.average), "raw": raw}

    def _refuse_rivals(self, trainer: Trainer) -> None:
        kinds = (Averages, WeightAveraging, StochasticWeightAveraging)
        for other in (it for kind in kinds for it in self.rivals(trainer, kind)):
            raise ValueError(
                f"{type(self).__name__}: the Trainer also has {other.state_key}, and only one average can be scored "
                "and written to files; remove one of them."
            )

    def _refuse_lost_parts(self, live: LiveTensors) -> None:
        lost = [name for name in self._raw if is_added(name) and name not in live.names]
        if lost:
            raise ValueError(
                f"{type(self).__name__}: the checkpoint's training weights go together with {lost[0]}, which another "
                "callback added; give the Trainer that callback too, or start a new run from the file's weights."
            )

    def _forget(self) -> None:
        self.updates, self._steps, self._measured, self._shown = 0, 0, 0, False
        self.average, self._raw = {}, {}

    def _leave(self) -> None:
        self._live, self._masks = None, []
        self.average, self._raw, self._averaged = _on_cpu(self.average), _on_cpu(self._raw), []
        if self._files is not None:
            self._files.undo()
            self._files = None

    def _start_from(self, live: LiveTensors, average: dict[str, Tensor]) -> None:
        """Go on with `average` beside the module's tensors; what it lacks starts as it is in the module."""
        self.average, self._widened = {}, False
        for name, value in zip(live.names, live.read(), strict=True):
            half = value.dtype in (torch.float16, torch.bfloat16)
            start = average.get(name, value).detach()
            self.average[name] = start.to(value.device, torch.float32 if half else value.dtype, copy=True)
            self._widened |= half
        self._averaged = list(self.average.values())
        self._shapes = [self.average[name].shape for name in live.buffers]

    def _update(self, live: LiveTensors, share: float) -> None:
        current = live.read()
        if [it.shape for it in live.read_buffers()] != self._shapes:
            self._refuse_growth(live)
        if self._widened:
            current = [value.to(it.dtype) for value, it in zip(current, self._averaged, strict=True)]
        with torch.no_grad():
            torch._foreach_lerp_(self._averaged, current, share)
        self.updates += 1

    def _refuse_growth(self, live: LiveTensors) -> None:
        for name, shape, value in zip(live.buffers, self._shapes, live.read_buffers(), strict=True):
            if value.shape != shape:
                raise ValueError(
                    f"{type(self).__name__}: the buffer {name} had the shape {tuple(shape)} when the average started "
                    f"and has {tuple(value.shape)} now, and the two have no average; give it its full size from the "
                    "start, or register it with persistent=False."
                )

    def _settle(self, live: LiveTensors, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the average what is scored: measured buffers in it, and on all ranks rank 0's, which its files hold."""
        if self._measured != self.updates and not trainer.sanity_checking:
            self._show(live)
            try:
                found = self.remeasured(trainer, pl_module)
            finally:
                self._hide()
            for name in found.keys() & self.average.keys():
                self.average[name].copy_(found[name])
            self._measured = self.updates
        if trainer.world_size > 1:
            for name in live.buffers:
                dist.broadcast(self.average[name], 0)

    def _show(self, live: LiveTensors) -> None:
        self._raw = live.copies()
        if self.updates:
            live.write(self.average)
            self._shown = True

    def _hide(self) -> None:
        if self._live is not None and self._shown:
            self._live.write(self._raw)
            self._raw, self._shown = {}, False

    def _with_average(self, proceed: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The module's state as it is with the average in place of its tensors."""
        if self._live is None or self._shown or not self.updates:
            return proceed()
        current = self._live.read()
        own = [value.data for value in current]
        try:
            # Storage is exchanged, not copied: the returned state refers to the average and outlives the exchange.
            for value, name in zip(current, self._live.names, strict=True):
                value.data = self.average[name].to(value)
            return proceed()
        finally:
            for value, data in zip(current, own, strict=True):
                value.data = data


def _on_cpu(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in values.items()}

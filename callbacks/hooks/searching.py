"""The searching seam: a batch is mixed in the share that costs the module most, found before its step is taken.

The module's own step is computed for each share of a grid, without a trace and with the random streams that the step
will have, so the loss of the chosen one is the loss that is trained on. Public hooks used: those of `featured.py`,
`on_fit_start`, `on_train_start`, `on_train_batch_end`; the module's `training_step` is wrapped.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor

from ._around import Around
from ._checks import number
from ._mixed_labels import MixedTensor, resolved
from ._replay import Replay, read_streams, rewind
from .answering import Answering
from .featured import Featured
from .loss import Loss
from .method import callbacks_of
from .targets import Mix, Targets

__all__ = ["Searching"]


@dataclass
class _Found:
    """A batch that was searched.

    Args:
        images: The mixed ones that the step sees.
        batch: At the point beside the chosen one, mixed labels included.
        distance: From there to the chosen one.
        taken: Whether a step has seen it.
    """

    images: Tensor
    batch: Any
    distance: float
    taken: bool = False


class Searching(Featured):
    """Mixes at the worst of several points, and may add to the loss how it changes from there to the next one.

    The search runs the module's own `training_step` once for each point, inside what other callbacks do to the network
    and outside of the terms that they add to its loss. Buffers, metrics, logs and random streams are as if nobody had
    searched; what the step itself leaves in attributes of the module is not put back. In DDP each process searches for
    its own batch, all of them at the same batches.

    Args:
        reg_weight: What the change of the loss is multiplied by when it is added to it, >= 0; 0 leaves it out.
        others: Go to the next base class, among them `features`, `prob` and `targets`.

    Raises:
        ValueError: `reg_weight` is no such number, or there is no next point; at set-up, if the module optimises
            manually or another that mixes acts later; in the first batch, if `training_step` returns no loss or was
            given other images than those that were searched.
    """

    stands_alone = "it computes the module's own step before it mixes"

    def __init__(self, *, reg_weight: float, **others: Any) -> None:
        super().__init__(**others)
        number(type(self).__name__, "reg_weight", reg_weight, 0)
        self.reg_weight = reg_weight
        self._trainer: Trainer | None = None  # during a fit
        self._around: Around | None = None
        self._replay: Replay | None = None
        self._changing: tuple[Any, np.random.Generator] | None = None  # the batch that is changed, and its stream
        self._found: list[_Found] = []  # of this optimizer step
        self._found_at = -1

    @property
    @abstractmethod
    def points(self) -> Sequence[float]:
        """The grid."""

    @abstractmethod
    def partners(self, images: Tensor, labels: Tensor, draw: Any) -> Tensor:
        """Which sample each is mixed with, int64 `(B,)` on the images' device."""

    @abstractmethod
    def at(self, images: Tensor, partner: Tensor, point: float) -> Mix:
        """The mixture at a point of the grid."""

    @abstractmethod
    def change_between(self, loss: Tensor, beside: Tensor, distance: float) -> Tensor:
        """How much the loss changes between two points, a scalar.

        Args:
            loss: At the chosen point.
            beside: At the one beside it.
            distance: Between the two, above 0.
        """

    def coin(self, random: np.random.Generator) -> float:
        # The same on all ranks, which all compute the step again or none does: it may wait for the others.
        random.random()
        return np.random.default_rng((self.seed, self._batches)).random()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit" or self.off:
            return
        kind = type(self).__name__
        later = [it for it in cast(list[Targets], self.rivals(trainer, Targets)) if _turn(it) > _turn(self)]
        if later:
            raise ValueError(
                f"{kind}: {later[0].state_key} would mix the batch after it was searched, so the step would be taken "
                f"at another point; leave {kind} at targets='loss', which acts last, and give the other "
                "targets='sampled', or leave one of them out."
            )
        if not pl_module.automatic_optimization:
            raise ValueError(
                f"{kind}: {type(pl_module).__name__} optimises manually, so its training_step cannot be computed "
                "without stepping; use automatic optimization, or leave it out."
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if self.off:
            return
        twin = bool(self.rivals(trainer, Searching))
        label = f"train/smoothness/{self.state_key}" if twin else "train/smoothness"

        def step(proceed: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            return self._step_and_compare(pl_module, label, proceed, args, kwargs)

        own = pl_module.training_step
        self._around = Around(pl_module, "training_step", step)
        # Lightning reads there which arguments a wrapped `training_step` takes.
        vars(pl_module.training_step)["__wrapped__"] = getattr(own, "__wrapped__", own)
        self.undo_later(self._around.undo)
        self.undo_later(self._let_go)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if not self.off:
            self._trainer, self._replay = trainer, Replay(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if not all(found.taken for found in self._found):
            raise ValueError(
                f"{type(self).__name__}: training_step was given other images than those that were searched, so it was "
                "not taken at the worst point; leave out what changes or copies the batch in between."
            )

    def change(self, batch: Any, random: np.random.Generator) -> Any:
        assert self._trainer is not None
        same = self._found_at == self._trainer.global_step
        # A batch that was skipped is never taken.
        self._found = [it for it in self._found if same and it.taken]
        self._found_at = self._trainer.global_step
        self._changing = batch, random
        try:
            return super().change(batch, random)
        finally:
            self._changing = None

    def mix(self, images: Tensor, draw: Any) -> Mix:
        assert self._changing is not None and self._trainer is not None
        batch, random = self._changing
        partner = self.partners(images, self.fields.target(batch), draw)

        def mixed(point: float) -> tuple[Mix, Any]:
            mix = self.at(images, partner, point)
            labels = self._mixed(self.fields.target(batch), mix, deepcopy(random))
            return mix, self.fields.replaced(batch, mix.images, labels)

        losses = [self._loss_ahead(mixed(point)[1]) for point in self.points]
        # A loss that is not a number is no worst case.
        chosen = int(np.argmax(np.nan_to_num(losses, nan=-math.inf)))
        mix, searched = mixed(self.points[chosen])
        distance = 0.0
        if self.reg_weight:
            beside = chosen + 1 if chosen + 1 < len(self.points) else chosen - 1
            distance = abs(self.points[beside] - self.points[chosen])
            searched = mixed(self.points[beside])[1]
        self._found.append(_Found(mix.images, searched, distance))
        return mix

    def _loss_ahead(self, batch: Any) -> float:
        """The loss of the step that is about to be taken, if the batch were this one."""
        trainer, around, replay = self._trainer, self._around, self._replay
        assert trainer is not None and around is not None and replay is not None
        pl_module = trainer.lightning_module
        numbered = is_param_in_hook_signature(pl_module.training_step, "batch_idx", min_args=2)
        batch_idx = trainer.fit_loop.epoch_loop.batch_idx + 1
        # With a graph, for losses are mixed where they have a gradient.
        with replay.without_trace(), torch.enable_grad(), trainer.precision_plugin.train_step_context():
            output = self._computed(lambda it: around.inside(it, *(batch_idx,) * numbered), batch)
        loss = _loss_in(output)
        if output is not None and loss is None:
            raise ValueError(
                f"{type(self).__name__}: training_step returned {type(output).__name__} without a loss, so none is "
                "the highest; return a tensor, or a dict with a tensor under 'loss'."
            )
        return math.nan if loss is None else float(loss.detach())

    def _computed(self, step: Callable[[Any], Any], batch: Any) -> Any:
        """What `step` returns of a batch with labels as `_mixed` makes them."""
        labels = self.fields.target(batch)
        if not isinstance(labels, MixedTensor):
            return step(batch)
        with labels.mixture.live():
            fresh = MixedTensor.of(labels.own, labels.twin, labels.mixture, labels.mixture.lam)
            return resolved(step(self.fields.replaced(batch, self.fields.image(batch), fresh)))

    def _step_and_compare(
        self,
        pl_module: LightningModule,
        label: str,
        proceed: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        trainer, replay = pl_module.trainer, self._replay
        if not trainer.training or not self._found or replay is None:
            return proceed(*args, **kwargs)
        images = self.fields.image(args[0])
        # A wrapper of the module may hand on other objects around the same memory.
        found = next((it for it in self._found if _place(it.images) == _place(images)), None)
        if found is not None:
            found.taken = True
        if found is None or not self.reg_weight:
            return proceed(*args, **kwargs)
        streams = read_streams(trainer.strategy.root_device)
        output = resolved(proceed(*args, **kwargs))
        loss = _loss_in(output)
        if loss is None:
            return output
        with replay.without_trace(graph=True), _unheard(trainer):
            rewind(streams)
            beside = _loss_in(self._computed(lambda it: proceed(it, *args[1:], **kwargs), found.batch))
        if beside is None:
            return output
        change = self.change_between(loss, beside, found.distance)
        pl_module.log(label, change.detach())
        loss = loss + self.reg_weight * change
        return {**output, "loss": loss} if isinstance(output, Mapping) else loss

    def _let_go(self) -> None:
        self._trainer, self._around, self._replay, self._found = None, None, None, []


@contextmanager
def _unheard(trainer: Trainer) -> Iterator[None]:
    """Inside, those who add terms to the loss do not hear what parts of the network put out."""
    # Those who change it hear that the network is called twice, and say so.
    listening = [it for it in callbacks_of(trainer) if isinstance(it, Loss) and not isinstance(it, Answering)]
    heard = [it._outputs for it in listening]
    for it in listening:
        it._outputs = None
    try:
        yield
    finally:
        for it, outputs in zip(listening, heard, strict=True):
            it._outputs = outputs


def _turn(mixer: Targets) -> tuple[bool, str]:
    """By which those that mix act one after the other."""
    return mixer.acts_last, mixer.state_key


def _place(images: Tensor) -> tuple[int, torch.Size]:
    return images.data_ptr(), images.shape


def _loss_in(output: Any) -> Tensor | None:
    loss = output.get("loss") if isinstance(output, Mapping) else output
    return loss if isinstance(loss, Tensor) else None

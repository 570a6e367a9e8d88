"""What every callback of the house has: a neutral setting, a name, its place among the others and its undo.

A seam is an abstract subclass that owns the Lightning hooks of one place; a method is a final subclass of a seam that
holds its mathematics and no Lightning hook.
"""

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from enum import IntEnum
from typing import Any, ClassVar, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy

__all__ = ["Method", "Place", "callbacks_of"]


class Place(IntEnum):
    """Where in a step a callback acts; a Trainer calls its callbacks in this order, however they were listed."""

    NETWORK = 0
    BATCH = 1
    TARGETS = 2
    LOSS = 3
    ASCENT = 4
    MASKS = 5
    AVERAGES = 6
    SCHEDULE = 7
    OBSERVE = 8
    RUN = 9


class Method(Callback, ABC):
    """Base of the house's callbacks.

    Args:
        name: Tells two callbacks of one class apart, also in checkpoints; the command fills in the entry's key.

    Raises:
        ValueError: at set-up, if the Trainer has two of the class with one name, if the strategy is not one of
            `strategies`, or if a checkpoint holds state of the class that no callback of the Trainer claims.
    """

    place: ClassVar[Place]
    # Whether it is called before all others, wherever it acts.
    leads: ClassVar[bool] = False
    # Each of these settings switches the callback off; where there is none, a sentence that says why.
    neutral: ClassVar[Sequence[Mapping[str, Any]] | str]
    # Exceptions from "state dicts are those of a plain run": the reason, empty where there is none.
    adds_parameters: ClassVar[str] = ""
    changes_architecture: ClassVar[str] = ""
    # An exception from "batch norm counts and random streams are those of a plain run": the reason.
    rests: ClassVar[str] = ""
    # An exception from "steps and logged rows are those of a plain run": why an epoch may have fewer batches.
    shortens_epochs: ClassVar[str] = ""
    # What it needs of a module: that it takes images of `any size`, that forward answers `detections` in evaluation
    # mode, or that it has `drop paths`, `features(images)` or `sample(count)`. Tests train it on such modules.
    needs: ClassVar[Literal["", "any size", "drop paths", "features", "samples", "detections"]] = ""
    # Strategies that own parameters or gradients (FSDP, DeepSpeed) are refused where nothing proves a method on them.
    strategies: ClassVar[tuple[type[Strategy], ...]] = (SingleDeviceStrategy, DDPStrategy)

    def __init__(self, name: str | None = None) -> None:
        self.name = name
        self._undo = ExitStack()

    @property
    def state_key(self) -> str:
        """The class and the name, never a setting: a run may be resumed with another one."""
        kind = type(self).__qualname__
        return kind if self.name is None else f"{kind}[{self.name}]"

    @property
    def off(self) -> bool:
        """Whether a neutral setting holds; then nothing is installed."""
        settings = () if isinstance(self.neutral, str) else self.neutral
        return any(all(getattr(self, key) == value for key, value in it.items()) for it in settings)

    def rivals(self, trainer: Trainer, kind: type[Callback]) -> list[Callback]:
        """The Trainer's other callbacks of `kind` that are not switched off."""
        others = [it for it in callbacks_of(trainer) if isinstance(it, kind) and it is not self]
        return [it for it in others if not (isinstance(it, Method) and it.off)]

    def undo_later(self, undo: Callable[[], Any]) -> None:
        """Call `undo` at teardown or after an exception; the last one registered is called first."""
        self._undo.callback(undo)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        twins = [other for other in callbacks_of(trainer) if other.state_key == self.state_key]
        kind = type(self).__name__
        if len(twins) > 1:
            raise ValueError(
                f"{kind}: the Trainer has {len(twins)} callbacks with the state key {self.state_key!r}; remove all but "
                "one, or give each a name of its own."
            )
        if not isinstance(trainer.strategy, self.strategies):
            raise ValueError(
                f"{kind}: {type(trainer.strategy).__name__} keeps parameters and gradients to itself, and {kind} was "
                "not proved there; train on one device or with strategy='ddp', or leave it out."
            )
        _put_in_order(trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        kind = type(self).__qualname__
        claimed = {other.state_key for other in callbacks_of(trainer)}
        for key in checkpoint.get("callbacks", {}):
            if (key == kind or key.startswith(f"{kind}[")) and key not in claimed:
                saved = "without a name" if key == kind else f"with name={key[len(kind) + 1 : -1]!r}"
                raise ValueError(
                    f"{kind}: the checkpoint holds the state of one {saved}, which no callback of this Trainer claims; "
                    "give yours that name, or leave it out of the Trainer to drop the state."
                )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._undo.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._undo.close()


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """The Trainer's callbacks, in the order in which it calls them."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning declares it nowhere
    return callbacks


def _put_in_order(trainer: Trainer) -> None:
    """Sort the methods among themselves; callbacks of others keep their positions."""
    callbacks = callbacks_of(trainer)
    methods = [it for it in callbacks if isinstance(it, Method)]
    methods.sort(key=lambda it: (not it.leads, it.place, it.state_key))
    ordered = iter(methods)
    # A new list: Lightning is walking along the old one.
    in_order = [next(ordered) if isinstance(it, Method) else it for it in callbacks]
    trainer.callbacks = in_order  # type: ignore[attr-defined]  # Lightning declares it nowhere

"""What each callback costs a step when it is present and switched off."""

from collections.abc import Callable
from functools import partial
from tempfile import TemporaryDirectory

from lightning.pytorch import Callback

from lightning_vision.callbacks.hooks.method import callbacks_of
from lightning_vision.catalogue import entries
from lightning_vision.cli import VisionCLI
from lightning_vision.commands import fit

from .digits_loop import CONFIG, NO_FILES, QUIET
from .shipped_callbacks import callback_and_settings
from .side_by_side import Row, Side, take_turns

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Train one epoch of the shipped run on digits, without files, plain and with one callback after the other.

    Args:
        quick: One repetition of two steps, with three of the callbacks.
    """
    callbacks = dict(list(_switched_off().items())[: 3 if quick else None])
    with TemporaryDirectory() as folder:
        given = [*CONFIG, *QUIET, *NO_FILES, "--trainer.max_epochs", "1", "--trainer.default_root_dir", folder]
        given += ["--trainer.limit_train_batches", "2"] if quick else []
        sides = {"plain": _side(given)} | {name: _side(given, make) for name, make in callbacks.items()}
        times = take_turns(sides, *(1, 0) if quick else (31, 1))
    plain = times["plain"]["cpu"]
    return [
        Row.slowdown(f"an epoch with `{name}`, neutral", "without it", times[name]["cpu"], plain, "cpu", "<= 1.02")
        for name in callbacks
    ]


def _switched_off() -> dict[str, Callable[[], Callback]]:
    """By class name, all public callbacks that can be switched off, in their shipped setting but for the switch."""
    made: dict[str, Callable[[], Callback]] = {}
    for entry in entries():
        neutral = entry.load().neutral if entry.kind == "callback" else ""
        if not isinstance(neutral, str):
            kind, settings = callback_and_settings(entry.path.split(".")[-2])
            made[entry.name] = partial(kind, **settings | neutral[0])
    return made


def _side(given: list[str], *callbacks: Callable[[], Callback]) -> Side:
    def prepare() -> Callable[[], None]:
        cli = VisionCLI(fit.run, given)
        callbacks_of(cli.trainer).extend(make() for make in callbacks)
        return lambda: cli.trainer.fit(cli.model, datamodule=cli.datamodule)

    return prepare

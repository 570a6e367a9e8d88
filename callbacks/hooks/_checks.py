"""Checks of arguments and modules that several callbacks make, in one wording."""

from math import inf
from typing import TypeGuard

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

__all__ = ["above_zero", "factor", "flag", "momenta", "number", "takes_batches", "whole"]


def flag(owner: str, argument: str, value: object) -> None:
    """Refuse what is neither True nor False, for most other values count as True."""
    if not isinstance(value, bool):
        raise ValueError(f"{owner}: {argument} is {value!r}; give True or False.")


def whole(owner: str, argument: str, value: object, least: int) -> None:
    """Refuse what is no integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{owner}: {argument} is {value!r}; give a whole number of at least {least}.")


def number(owner: str, argument: str, value: object, low: float, high: float = inf) -> None:
    """Refuse what is no finite number from `low` to `high`."""
    if not (_is_number(value) and low <= value <= high and value != inf):
        wanted = f"a finite number of at least {low:g}" if high == inf else f"a number from {low:g} to {high:g}"
        raise ValueError(f"{owner}: {argument} is {value!r}; give {wanted}.")


def above_zero(owner: str, argument: str, value: object) -> None:
    """Refuse what is no finite number, or not above 0."""
    number(owner, argument, value, 0)
    if value == 0:
        raise ValueError(f"{owner}: {argument} is {value!r}; give a number above 0.")


def factor(owner: str, argument: str, value: object) -> None:
    """Refuse what is no number above 0 and at most 1."""
    if not (_is_number(value) and 0 < value <= 1):
        raise ValueError(f"{owner}: {argument} is {value!r}; give a factor above 0 and at most 1.")


def momenta(owner: str, base: object, highest: object) -> None:
    """Refuse what are no two momenta from `base_momentum` to `max_momentum`."""
    if not (_is_number(base) and _is_number(highest) and 0 <= base <= highest < 1):
        raise ValueError(
            f"{owner}: momentum goes from base_momentum={base!r} to max_momentum={highest!r}; give "
            "0 <= base_momentum <= max_momentum < 1."
        )


def takes_batches(owner: str, pl_module: LightningModule) -> None:
    """Refuse a `training_step` that fetches its batches itself, out of a callback's reach."""
    if is_param_in_hook_signature(pl_module.training_step, "dataloader_iter", explicit=True):
        raise ValueError(
            f"{owner}: training_step of {type(pl_module).__name__} takes `dataloader_iter`, so its batches cannot be "
            "reached; let it take `batch`."
        )


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)

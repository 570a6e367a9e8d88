"""What a check does about its findings: all processes hear of them, for one that raises alone leaves others waiting."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

__all__ = ["Action", "known_action", "tell"]

Action = Literal["error", "warn", "off"]


def known_action(owner: str, action: object) -> None:
    """Refuse what is no action."""
    if action not in get_args(Action):
        raise ValueError(f"{owner}: action is {action!r}; give 'error', 'warn' or 'off'.")


def tell(method: Any, trainer: Trainer, found: Sequence[str]) -> None:
    """Raise what was found, or say it, as the method's `action` has it.

    Args:
        method: A callback with `action`, `error` or `warn`.
        trainer: All of its processes make this call at the same time.
        found: Sentences; none if this process found nothing.

    Raises:
        RuntimeError: with `action="error"`, if any process has found something.
    """
    if not trainer.strategy.reduce_boolean_decision(bool(found), all=False):
        return
    kind = type(method).__name__
    text = f"{kind}: {found[0] if found else 'another process found something, which it says.'}"
    if len(found) > 1:
        numbered = [f"{number}. {sentence}" for number, sentence in enumerate(found, start=1)]
        text = "\n".join([f"{kind} found {len(found)} things.", *numbered])
    if method.action == "error":
        raise RuntimeError(text)
    rank_zero_warn(text)

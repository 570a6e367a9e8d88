"""Acting after every callback's and the module's own hook of a name: Lightning calls the module's hook last."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule

__all__ = ["LastWord"]


class LastWord:
    """Calls `action()` each time `pl_module`'s hook `name` has run; `undo` takes it off again.

    Several on one hook act in the order they came and can be taken off in any order.
    """

    def __init__(self, pl_module: LightningModule, name: str, action: Callable[[], None]) -> None:
        self.pl_module, self.name, self.action = pl_module, name, action
        own = vars(pl_module).get(name)
        shared: list[LastWord] | None = getattr(own, "last_words", None)
        self.stack = _wrap(pl_module, name) if shared is None else shared
        self.stack.append(self)

    def undo(self) -> None:
        """Take the action off, and with the last of them give the module its own hook back; twice does nothing."""
        if self not in self.stack:
            return
        self.stack.remove(self)
        wrapper = vars(self.pl_module).get(self.name)
        # A wrapper that somebody has wrapped in turn stays, without an action.
        if self.stack or getattr(wrapper, "last_words", None) is not self.stack:
            return
        delattr(self.pl_module, self.name)
        own = getattr(wrapper, "own", None)
        if own is not None:
            setattr(self.pl_module, self.name, own)


def _wrap(pl_module: LightningModule, name: str) -> list[LastWord]:
    """Put a wrapper around the hook; what is in the returned list acts after it."""
    hook, stack = getattr(pl_module, name), list[LastWord]()

    # A function, not an object with `__call__`: Lightning compares hooks by their `__code__`.
    def hook_then_actions(*args: Any, **kwargs: Any) -> Any:
        result = hook(*args, **kwargs)
        for word in tuple(stack):
            word.action()
        return result

    vars(hook_then_actions).update(last_words=stack, own=vars(pl_module).get(name))
    setattr(pl_module, name, hook_then_actions)
    return stack

"""Acting around a function of somebody else's object, such as a hook of the module or a step of the strategy.

Lightning calls callbacks before the module's hook of the same name and has no hook at all around a step, so a wrapper
in the object's own attributes is the only way in. Several share one wrapper and can be taken off in any order.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

__all__ = ["Around", "last_word"]


class Around:
    """Calls `action(proceed, *args, **kwargs)` in the place of `owner.name`; `proceed` is what was there before.

    Of several the one that came last lies outermost. `undo` takes this one off again.

    Args:
        owner: Whose function it is.
        name: The function's name.
        action: What is called instead.
    """

    def __init__(self, owner: Any, name: str, action: Callable[..., Any]) -> None:
        self.owner, self.name, self.action = owner, name, action
        shared: list[Around] | None = getattr(vars(owner).get(name), "around", None)
        self.stack = _wrap(owner, name) if shared is None else shared
        self.stack.append(self)

    def undo(self) -> None:
        """Take the action off, and with the last of them give the object its own function back; twice does nothing."""
        if self not in self.stack:
            return
        self.stack.remove(self)
        wrapper = vars(self.owner).get(self.name)
        # A wrapper that somebody has wrapped in turn stays, without an action.
        if self.stack or getattr(wrapper, "around", None) is not self.stack:
            return
        delattr(self.owner, self.name)
        own = getattr(wrapper, "own", None)
        if own is not None:
            setattr(self.owner, self.name, own)


def last_word(owner: Any, name: str, action: Callable[[], None]) -> Around:
    """Call `action()` each time `owner.name` has run; of several the one that came first acts first."""

    def proceed_then_act(proceed: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = proceed(*args, **kwargs)
        action()
        return result

    return Around(owner, name, proceed_then_act)


def _wrap(owner: Any, name: str) -> list[Around]:
    """Put a wrapper around the function; what is in the returned list acts, the first innermost."""
    function, stack = getattr(owner, name), list[Around]()

    # A function, not an object with `__call__`: Lightning compares hooks by their `__code__`.
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        call = function
        for around in stack:
            call = partial(around.action, call)
        return call(*args, **kwargs)

    vars(wrapper).update(around=stack, own=vars(owner).get(name))
    setattr(owner, name, wrapper)
    return stack

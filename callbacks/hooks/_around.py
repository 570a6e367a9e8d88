"""Acting around a function of somebody else's object, such as a hook of the module or a step of the strategy.

Lightning calls callbacks before the module's hook of the same name and has no hook at all around a step, so a wrapper
in the object's own attributes is the only way in. Several share one wrapper and can be taken off in any order.
"""

from collections.abc import Callable
from functools import partial
from types import CodeType
from typing import Any

__all__ = ["Around", "last_word"]


class Around:
    """Calls `action(proceed, *args, **kwargs)` in the place of `owner.name`; `proceed` is what was there before.

    Of several the one that came last lies outermost. `undo` takes this one off again.

    Args:
        owner: Whose function it is.
        name: The function's name.
        action: What is called instead.
        innermost: It lies inside of all others, whoever comes when.
    """

    def __init__(self, owner: Any, name: str, action: Callable[..., Any], innermost: bool = False) -> None:
        self.owner, self.name, self.action = owner, name, action
        wrapper = vars(owner).get(name)
        if not isinstance(wrapper, _Wrapper):
            wrapper = _Wrapper(owner, name)
            setattr(owner, name, wrapper)
        self.stack, self._function = wrapper.around, wrapper.function
        self.stack.insert(0 if innermost else len(self.stack), self)

    def inside(self, *args: Any, **kwargs: Any) -> Any:
        """Call what this one acts around, with the actions that lie inside of it, and without this one."""
        call = self._function
        for around in self.stack[: self.stack.index(self)]:
            call = partial(around.action, call)
        return call(*args, **kwargs)

    def undo(self) -> None:
        """Take the action off, and with the last of them give the object its own function back; twice does nothing."""
        if self not in self.stack:
            return
        self.stack.remove(self)
        wrapper = vars(self.owner).get(self.name)
        # A wrapper that somebody has wrapped in turn stays, without an action.
        if self.stack or not isinstance(wrapper, _Wrapper) or wrapper.around is not self.stack:
            return
        delattr(self.owner, self.name)
        if wrapper.own is not None:
            setattr(self.owner, self.name, wrapper.own)


def last_word(owner: Any, name: str, action: Callable[[], None]) -> Around:
    """Call `action()` each time `owner.name` has run; of several the one that came first acts first."""

    def proceed_then_act(proceed: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = proceed(*args, **kwargs)
        action()
        return result

    return Around(owner, name, proceed_then_act)


class _Wrapper:
    """Stands in the owner's attributes; what is in `around` acts, the first innermost."""

    def __init__(self, owner: Any, name: str) -> None:
        self.owner, self.name = owner, name
        self.function, self.own = getattr(owner, name), vars(owner).get(name)
        self.around: list[Around] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = self.function
        for around in self.around:
            call = partial(around.action, call)
        return call(*args, **kwargs)

    @property
    def __code__(self) -> CodeType:
        """By which Lightning tells a module's own hook from its base class's."""
        return type(self).__call__.__code__

    def __reduce__(self) -> tuple[Any, ...]:
        # What acts belongs to this owner alone: a deep copy of the owner, or its pickle, has its own function back.
        return _own_function, (self.owner, self.name, self.own)


def _own_function(owner: Any, name: str, own: Any) -> Any:
    """The function that a copy of the owner has: the class's, which is all it has yet, unless it was given another."""
    return getattr(owner, name) if own is None else own

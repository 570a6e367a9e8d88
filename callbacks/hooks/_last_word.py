"""Acting after every callback's and the module's own hook of a name: Lightning calls the module's hook last."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule

__all__ = ["LastWord"]


class LastWord:
    """Calls `action()` each time `pl_module`'s hook `name` has run; `undo` takes it off again."""

    def __init__(self, pl_module: LightningModule, name: str, action: Callable[[], None]) -> None:
        self.pl_module, self.name = pl_module, name
        self.own = vars(pl_module).get(name)
        hook = getattr(pl_module, name)

        def hook_then_action(*args: Any, **kwargs: Any) -> Any:
            result = hook(*args, **kwargs)
            action()
            return result

        setattr(pl_module, name, hook_then_action)

    def undo(self) -> None:
        """Give the module its own hook back; a second call does nothing."""
        if self.name not in vars(self.pl_module):
            return
        delattr(self.pl_module, self.name)
        if self.own is not None:
            setattr(self.pl_module, self.name, self.own)

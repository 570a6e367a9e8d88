"""Something else in the place of a module's forward, for one stage of a run."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from ._around import Around

__all__ = ["StandIn"]


class StandIn:
    """Calls `action(proceed, *args, **kwargs)` in the place of the module's forward, which is `proceed`, until undone.

    Args:
        owner: Class name of the callback, for messages.
        pl_module: Whose forward it is.
        action: What is called instead; what it calls of the module in turn reaches the module's own forward.
        way_out: What to do where the action cannot stand in, end of the messages.
    """

    def __init__(self, owner: str, pl_module: LightningModule, action: Callable[..., Any], way_out: str) -> None:
        self.owner, self.pl_module, self.action, self.way_out = owner, pl_module, action, way_out
        self.called = self._inside = False
        self.undo = Around(pl_module, "forward", self._forward).undo

    @torch.compiler.disable
    def _forward(self, proceed: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._inside:
            return proceed(*args, **kwargs)
        self._inside = self.called = True
        try:
            return self.action(proceed, *args, **kwargs)
        finally:
            self._inside = False

    def logits(self, what: str, value: Any) -> Tensor:
        """`value`, if it is logits `(B, K)`.

        Raises:
            ValueError: it is anything else.
        """
        if isinstance(value, Tensor) and value.ndim == 2 and value.is_floating_point():
            return value
        came = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"{self.owner}: {what} averages logits (B, K), and forward returned {came}; return logits from forward, or "
            f"{self.way_out}."
        )

    def must_have_been_called(self, what: str, step: str) -> None:
        """See that the module's step asked its forward.

        Raises:
            ValueError: it did not.
        """
        if not self.called:
            kind = type(self.pl_module).__name__
            raise ValueError(
                f"{self.owner}: {step} of {kind} did not call the module's forward, so {what} cannot stand in for it; "
                f"take logits from `self(images)` there, or {self.way_out}."
            )

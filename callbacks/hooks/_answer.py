"""Listening to what a module's forward answers."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from ._around import Around

__all__ = ["LastAnswer"]


class LastAnswer:
    """The last logits `(B, K)` that `pl_module(...)` returned; `undo` ends listening.

    Args:
        pl_module: Whose forward it is. What changes the answer (several views, an ensemble) must be in place by now.
    """

    def __init__(self, pl_module: LightningModule) -> None:
        self.logits: Tensor | None = None
        self.undo = Around(pl_module, "forward", self._listen).undo

    def take(self) -> Tensor | None:
        """The logits since this was last asked, None if there were none."""
        logits, self.logits = self.logits, None
        return logits

    @torch.compiler.disable
    def _listen(self, proceed: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        answer = proceed(*args, **kwargs)
        if isinstance(answer, Tensor) and answer.ndim == 2 and answer.is_floating_point():
            self.logits = answer.detach()
        return answer

"""The network seam: what a module is made of is changed before optimizers are configured and a strategy wraps it.

Public hook used: `setup`, in which Lightning asks callbacks before the module's own hook and before any file is loaded.
"""

from abc import abstractmethod
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from .method import Method, Place

__all__ = ["Network"]


class Network(Method):
    """Changes layers of a module at set-up of a fit and of each evaluation; they stay as they are afterwards.

    So optimizers and DDP see the changed network, and a file of it is loaded into one.

    Args:
        name: Part of the state key.
    """

    place = Place.NETWORK

    @abstractmethod
    def change(self, pl_module: LightningModule) -> str | None:
        """Change the module in place and tell what was done; None if it is changed already, which leaves it alone.

        All ranks call it, each on its own module, and must come to the same.
        """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self.off:
            return
        told = self.change(pl_module)
        if told is not None:
            rank_zero_info(told)

    def state_dict(self) -> dict[str, Any]:
        # So that a file tells of it.
        return super().state_dict() | ({} if self.off else {"changed": True})

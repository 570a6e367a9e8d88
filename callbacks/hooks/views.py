"""The views seam: in evaluation forward sees each image several times, in several ways, and answers once."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from ._checks import flag
from ._stand_in import StandIn
from .method import Method, Place

__all__ = ["Views"]


class Views(Method):
    """Makes `pl_module(images)` answer for several views of the images, in `test` and `predict`; never in training.

    The views go through the module's own forward one after the other, so memory is that of a plain evaluation. Steps,
    losses and metrics read what is returned as the logits. It is undone at the end of the evaluation and after an
    exception; weights, files and training are those of a run without it.

    Args:
        validate: Do the same in validations, those of a fit among them; what checkpoints and stopping monitor changes.
        others: Go to the next base class, among them `name`.

    Raises:
        ValueError: from the constructor, if `validate` is no flag; in the first batch, if forward does not take images
            `(B, C, H, W)` as its first argument, does not return logits `(B, K)`, or was not called.
    """

    place = Place.OBSERVE

    def __init__(self, *, validate: bool, **others: Any) -> None:
        super().__init__(**others)
        flag(type(self).__name__, "validate", validate)
        self.validate = validate
        self._stand_in: StandIn | None = None

    @abstractmethod
    def views_of(self, image: Tensor) -> Sequence[Tensor]:
        """The views of images `(B, C, H, W)`, each `(B, C, H', W')`."""

    @abstractmethod
    def average(self, pl_module: LightningModule) -> Callable[[Tensor], Tensor]:
        """What makes one answer `(B, K)` of the views' logits `(V, B, K)`; asked when an evaluation starts."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        if self.validate:
            self._stand(pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_test_start(trainer, pl_module)
        self._stand(pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_predict_start(trainer, pl_module)
        self._stand(pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        super().on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        self._must_have_been_called("validation_step")

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        self._must_have_been_called("test_step")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        super().on_predict_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        self._must_have_been_called("predict_step")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self._stand_down()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_test_end(trainer, pl_module)
        self._stand_down()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_predict_end(trainer, pl_module)
        self._stand_down()

    def _stand(self, pl_module: LightningModule) -> None:
        if not self.off:
            action = partial(self._forward, self.average(pl_module))
            self._stand_in = StandIn(type(self).__name__, pl_module, action, "leave the callback out")
            self.undo_later(self._stand_down)

    def _stand_down(self) -> None:
        if self._stand_in is not None:
            self._stand_in.undo()
            self._stand_in = None

    def _must_have_been_called(self, step: str) -> None:
        if self._stand_in is not None:
            self._stand_in.must_have_been_called("the mean of the views", step)

    def _forward(
        self, average: Callable[[Tensor], Tensor], proceed: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        image = args[0] if args else None
        if not isinstance(image, Tensor) or image.ndim != 4:
            came = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise ValueError(
                f"{type(self).__name__}: forward's first argument is {came} and no images (B, C, H, W) to make views "
                "of; call it as `self(images)`, or leave the callback out."
            )
        assert self._stand_in is not None
        answers = [proceed(view, *args[1:], **kwargs) for view in self.views_of(image)]
        return average(torch.stack([self._stand_in.logits("the mean of the views", it) for it in answers]))

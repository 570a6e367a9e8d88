"""Learners that compare what a network says to several views of an image."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .learner import SelfSupervisedLearner
from .views import View, views_for

__all__ = ["JointEmbedding", "embed"]


class JointEmbedding(SelfSupervisedLearner):
    """Base of learners of several views: a method puts its heads behind the backbone and says how answers `compare`.

    Args:
        views: Name of a recipe of views, or descriptions of each kind of view (`View`).
        **common: As `SelfSupervisedLearner`.

    Raises:
        ValueError: as `SelfSupervisedLearner`; `views` is no recipe, or gives fewer than two views.
    """

    def __init__(self, views: str | Sequence[View | Mapping[str, Any]] = "simclr", **common: Any) -> None:
        super().__init__(**common)
        self.views = views_for(views)
        if self.views.count < 2:
            raise ValueError(f"{type(self).__name__} compares views and `views` gives {self.views.count}; give two")

    @property
    def draws(self) -> int:
        return self.views.draws

    def losses(self, image: Tensor, uniform: Tensor) -> dict[str, Tensor]:
        answers = self.answers(self.views(image, uniform, *self.statistics()))
        # Similarities in half precision would round what a temperature then enlarges.
        with torch.autocast(image.device.type, enabled=False):
            return self.compare(*([one.float() for one in several] for several in answers))

    def answers(self, views: list[Tensor]) -> tuple[list[Tensor], ...]:
        """What goes to `compare`, for each branch a list with an answer `(B, D)` a view; one branch by default."""
        return (embed(self.network, views),)

    @abstractmethod
    def compare(self, *answers: list[Tensor]) -> dict[str, Tensor]:
        """The losses of float32 answers, as `losses` gives them."""


def embed(branch: Callable[[Tensor], Tensor], views: Sequence[Tensor]) -> list[Tensor]:
    """Answers `(B, D)` of a branch to each view `(B, C, h, w)`; views of one resolution share a forward pass."""
    answers: dict[int, Tensor] = {}
    for size in dict.fromkeys(view.shape[-2:] for view in views):
        same = [number for number, view in enumerate(views) if view.shape[-2:] == size]
        parts = branch(torch.cat([views[number] for number in same])).chunk(len(same))
        answers |= dict(zip(same, parts, strict=True))
    return [answers[number] for number in range(len(views))]

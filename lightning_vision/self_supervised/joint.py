"""Learners that compare what a network says to several views of an image."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_vision.inspection.at_rest import at_rest

from .learner import SelfSupervisedLearner
from .views import View, views_for

__all__ = ["JointEmbedding", "embed"]


class JointEmbedding(SelfSupervisedLearner):
    """Base of learners of several views: a method puts its heads behind the backbone and says how embeddings `compare`.

    Args:
        views: Name of a recipe of views, or descriptions of each kind of view (`View`).
        **common: As `SelfSupervisedLearner`.

    Raises:
        ValueError: as `SelfSupervisedLearner`; `views` is no recipe, gives fewer views than the method compares, or
            more, or views of a size that the backbone does not take.
    """

    fewest_images = 2
    # How many views the method compares; None is any number above one.
    compared_views: ClassVar[int | None] = None

    def __init__(self, views: str | Sequence[View | Mapping[str, Any]] = "simclr", **common: Any) -> None:
        super().__init__(**common)
        self.views = views_for(views)
        count, wanted = sum(view.count for view in self.views.views), self.compared_views
        if count < 2 or wanted not in (None, count):
            asked = wanted or "at least 2"
            raise ValueError(f"{type(self).__name__} compares {asked} views and `views` gives {count}; give {asked}")
        _check_sizes(self.backbone, self.views.views)

    def setup(self, stage: str) -> None:
        """As `SelfSupervisedLearner`.

        Raises:
            ValueError: as there; where the datamodule tells the images' size: the backbone does not take views of it,
                or its features are not `(B, D)`.
        """
        super().setup(stage)
        if stage != "fit" or (size := self.data_size()) is None:
            return
        _check_sizes(self.backbone, [replace(view, size=view.sides(*size)) for view in self.views.views])
        self._check_pooled(self.views.views[0].sides(*size))

    def _check_pooled(self, size: tuple[int, int]) -> None:
        """Ask the backbone for the features of an empty view."""
        body = self.backbone
        place: Any = next(body.parameters(), torch.empty(0))
        with at_rest(body):
            found: Any = body(torch.zeros(1, self.in_channels, *size, device=place.device, dtype=place.dtype))
        if getattr(found, "shape", None) != (1, self.feature_dim):
            given = f"a map {tuple(found.shape[1:])}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise ValueError(
                f"{type(self).__name__} compares features (B, {self.feature_dim}) and the {type(body).__name__} gives "
                f"{given} for each image; pool it to one row of numbers"
            )

    @property
    def draws(self) -> int:
        return self.views.draws

    def losses(self, image: Tensor, uniform: Tensor) -> dict[str, Tensor]:
        embeddings = self.embeddings(self.views(image, uniform, *self.statistics()))
        # Similarities in half precision would round what a temperature then enlarges.
        with torch.autocast(image.device.type, enabled=False):
            return self.compare(*([one.float() for one in several] for several in embeddings))

    def embeddings(self, views: list[Tensor]) -> tuple[list[Tensor], ...]:
        """What goes to `compare`, for each branch a list with an answer `(B, D)` a view; one branch by default."""
        return (embed(self.network, views),)

    @abstractmethod
    def compare(self, *embeddings: list[Tensor]) -> dict[str, Tensor]:
        """The losses of float32 embeddings, as `losses` gives them."""


def embed(branch: Callable[[Tensor], Tensor], views: Sequence[Tensor]) -> list[Tensor]:
    """Embeddings `(B, D)` of a branch to each view `(B, C, h, w)`; views of one resolution share a forward pass."""
    embeddings: dict[int, Tensor] = {}
    for size in dict.fromkeys(view.shape[-2:] for view in views):
        same = [number for number, view in enumerate(views) if view.shape[-2:] == size]
        parts = branch(torch.cat([views[number] for number in same])).chunk(len(same))
        embeddings |= dict(zip(same, parts, strict=True))
    return [embeddings[number] for number in range(len(views))]


def _check_sizes(backbone: nn.Module, views: Sequence[View]) -> None:
    """Refuse a transformer that knows the positions of one size when views are of others."""
    patches: Any = getattr(backbone, "patch_embed", None)
    if not getattr(patches, "strict_img_size", False):
        return
    fixed = tuple(patches.img_size)
    for view in views:
        if view.size is not None and view.sides(0, 0) != fixed:
            kind, sides = type(backbone).__name__, " x ".join(map(str, view.sides(0, 0)))
            raise ValueError(
                f"a view is {sides} pixels and the {kind} takes {fixed[0]} x {fixed[1]} only; give "
                "backbone_settings: {dynamic_img_size: true}"
            )

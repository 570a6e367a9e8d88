"""Images with boxes as the loader fetches them."""

from abc import abstractmethod

from torch import Tensor

from ..common._sets import ImageSet
from .annotations import Annotations

__all__ = ["BoxedImages"]


class BoxedImages(ImageSet):
    """Images whose `fetch` gives `Annotations` in the place of labels; for prediction they may hold no objects."""

    @abstractmethod
    def annotations(self, index: Tensor, epoch: int = 0) -> Annotations:
        """The objects of the samples at positions `index`, int64 `(B,)`, without their pixels; no masks."""

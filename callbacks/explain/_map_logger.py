"""What loggers of maps share: which class is explained, and the sheet of images beside their maps."""

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Literal

import numpy as np
from lightning.pytorch import LightningModule
from numpy.typing import NDArray
from torch import Tensor

from ..hooks._around import Around
from ..hooks._samples import Samples
from ..hooks.pictures import Pictures
from ._captions import answers, truth_of
from .sheet import contact_sheet, overlay

__all__ = ["MapLogger"]


class MapLogger(Pictures):
    """Logs a sheet of fixed samples: each image, its map, what the module said of it and what it is.

    Args:
        target: The class that a map explains: each image's `predicted` one, its `label`, or a class by number.
        samples: Images on the sheet, chosen once, spread over the classes, >= 1.
        every_n_epochs: While fitting, validations of every n-th epoch are drawn, from the first on, >= 0; `validate`
            and `test` always. Neutral: 0, which draws nothing.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, if batches are mappings; in other batches they come second.
        name: Part of the state key, and what the pictures are called.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        target: Literal["predicted", "label"] | int = "predicted",
        samples: int = 8,
        every_n_epochs: int = 1,
        image_key: str = "image",
        target_key: str = "target",
        name: str | None = None,
    ) -> None:
        super().__init__(
            samples=samples, every_n_epochs=every_n_epochs, image_key=image_key, target_key=target_key, name=name
        )
        whole_class = isinstance(target, int) and not isinstance(target, bool) and target >= 0
        if target not in ("predicted", "label") and not whole_class:
            raise ValueError(f"{type(self).__name__}: target is {target!r}; give 'predicted', 'label' or a class >= 0.")
        self.target = target

    @abstractmethod
    def explain(
        self, pl_module: LightningModule, images: Tensor, class_index: int | Tensor | None
    ) -> tuple[Tensor, Any]:
        """Maps, `(N, H, W)` or what `paint` takes of each image, and the answer: logits `(N, K)`, or detections.

        Args:
            pl_module: In eval mode; it takes a batch also where its loaders yield lists of images, as for detectors.
            images: `(N, C, H, W)` on the device.
            class_index: The class explained, one for all or int64 `(N,)`; None for each image's predicted one.
        """

    def paint(self, image: NDArray[np.uint8], values: NDArray[Any]) -> NDArray[np.uint8]:
        """One map as a picture `(H, W, 3)`; over its image unless a method says otherwise."""
        return overlay(image, values)

    def draw(self, pl_module: LightningModule, samples: Samples) -> Mapping[str, NDArray[np.uint8]]:
        asked = self._asked(samples)
        pieces = samples.pieces()
        found: list[tuple[Tensor, str]] = []
        with ExitStack() as stack:
            if samples.listed:
                around = Around(pl_module, "forward", lambda proceed, images: proceed(list(images)))
                stack.callback(around.undo)
            for images in pieces:
                begin = len(found)
                its = asked[begin : begin + len(images)] if isinstance(asked, Tensor) else asked
                its = its.to(pl_module.device) if isinstance(its, Tensor) else its
                try:
                    maps, answer = self.explain(pl_module, images.to(pl_module.device), its)
                except ValueError as error:
                    kind = type(self).__name__
                    if str(error).startswith(kind):
                        raise
                    # Of the function that makes maps, which does not know for whom.
                    raise ValueError(f"{kind}: {error}") from error
                told = answers(answer, samples, getattr(pl_module, "multilabel", None))
                found += zip(maps.float().cpu(), told, strict=True)
        cells = []
        for index, (image, (values, said), target) in enumerate(
            zip(samples.shown(), found, samples.targets, strict=True)
        ):
            own = int(asked[index]) if isinstance(asked, Tensor) else asked
            called = samples.object if isinstance(target, Mapping) else samples.called
            explained = "" if own is None else f"map of {called(own)}"
            words = filter(None, (said, truth_of(target, samples), explained))
            cells.append(([image, self.paint(image, values.numpy())], "\n".join(words)))
        return {"": contact_sheet(cells)}

    def _asked(self, samples: Samples) -> int | Tensor | None:
        if self.target == "predicted":
            return None
        if self.target != "label":
            return int(self.target)
        labels = samples.classes()
        if labels is None:
            raise ValueError(
                f"{type(self).__name__}: target='label' needs a class for each image, and the batch has none; say with "
                "target_key= where they stand, or take target='predicted'."
            )
        return labels

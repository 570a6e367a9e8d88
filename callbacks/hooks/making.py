"""The making seam: images that the module makes, the same numbers each time, without a trace.

Public hooks used: those of `evaluation.py`, `setup`.
"""

import random
from collections.abc import Iterator, Sequence
from inspect import signature
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from ._checks import whole
from ._metadata import Pixels, normalised_by
from ._teachers import statistics_of
from ._unnoticed import as_if_nobody_looked
from .averages import Averages
from .evaluation import Evaluation, Stage
from .method import callbacks_of

__all__ = ["Making"]


class Making(Evaluation):
    """Has the module make images in watched validations and tests.

    The module has a method `sample(count)` that returns normalised images `(count, C, H, W)`. If its signature names
    `label`, it is given the labels; `seed` and `first`, the seed and the number of the first image, so that an image
    can be a function of both and any process may make it. Without `first`, the number is added to the seed. The global
    random streams, which a `sample` may draw from instead, begin with that sum and are put back. It runs in evaluation
    mode, under the run's precision and without gradients, when all batches are over: averaged weights, if there are
    some, still stand in the module.

    Args:
        seed: Fixes the images, at least 0.
        others: Go to the next base class, among them `every_n_epochs` and `name`.

    Raises:
        ValueError: `seed` is no integer >= 0; at set-up, if the module has no `sample`; when images are made, sanity
            check included, if `sample` answers with something else than images.
    """

    needs = "samples"

    def __init__(self, *, seed: int, **others: Any) -> None:
        super().__init__(**others)
        whole(type(self).__name__, "seed", seed, 0)
        self.seed = seed

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if not self.off and not callable(getattr(pl_module, "sample", None)):
            raise ValueError(
                f"{type(self).__name__}: {type(pl_module).__name__} has no sample(count), so it makes no images; give "
                "it a method of that name which returns normalised images (count, C, H, W), or leave this callback out."
            )

    def batch_ends(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_index: int, stage: Stage
    ) -> None:
        """Batches are no matter here."""

    def made(
        self, trainer: Trainer, pl_module: LightningModule, pieces: Sequence[range], labels: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Images `(len(piece), C, H, W)`, float32, of the numbers of each piece.

        Args:
            trainer: It is in an evaluation.
            pl_module: Without a wrapper.
            pieces: Numbers of images that are made in one call.
            labels: Of all numbers, int64, which begin again behind the last one; None leaves them to the module.
        """
        for piece in pieces:
            given: dict[str, Any] = {}
            if labels is not None:
                given["label"] = labels[torch.tensor(piece) % len(labels)].to(pl_module.device)
            given |= {"seed": self.seed, "first": piece.start}
            with as_if_nobody_looked(trainer, pl_module), torch.no_grad():
                pl_module.eval()
                images = self._sampled(pl_module, len(piece), given)
            yield images

    @staticmethod
    def numbered(pl_module: LightningModule) -> bool:
        """Whether an image does not depend on those that are made in the same call."""
        return {"seed", "first"} <= _named(pl_module)

    def labelled(self, pl_module: LightningModule) -> int:
        """How many classes the module makes images of, each on demand; 0 if it knows of none."""
        classes = getattr(pl_module, "num_classes", 0)
        return classes if isinstance(classes, int) and "label" in _named(pl_module) else 0

    def normalised(self, trainer: Trainer, pl_module: LightningModule) -> Pixels | None:
        """How images are normalised, if datamodule or module say so."""
        return normalised_by(trainer) or statistics_of(pl_module)

    def circumstances(self, trainer: Trainer, pl_module: LightningModule) -> list[str]:
        """What the images that were just made depended on besides the seed, in words."""
        averages = [it for it in callbacks_of(trainer) if isinstance(it, (Averages, WeightAveraging))]
        shown = [type(it).__name__ for it in averages if not isinstance(it, Averages) or it.updates]
        calls = getattr(pl_module, "network_calls", None)
        told = [f"weights averaged by {shown[0]}" if shown else "weights as trained"]
        return [*told, f"{calls} network calls an image"] if isinstance(calls, int) else told

    def _sampled(self, pl_module: LightningModule, count: int, given: dict[str, Any]) -> Tensor:
        names, start = _named(pl_module), given["seed"] + given["first"]
        if "first" not in names:
            given = given | {"seed": start}
        random.seed(start)
        np.random.seed(start % 2**32)
        torch.manual_seed(start)
        images = pl_module.sample(count, **{key: it for key, it in given.items() if key in names})  # type: ignore[operator]  # refused at set-up
        if not isinstance(images, Tensor) or images.ndim != 4 or len(images) != count:
            got = tuple(images.shape) if isinstance(images, Tensor) else f"a {type(images).__name__}"
            raise ValueError(
                f"{type(self).__name__}: sample({count}) of {type(pl_module).__name__} answered {got}; let it return "
                "images (count, C, H, W)."
            )
        if not images.is_floating_point():
            raise ValueError(
                f"{type(self).__name__}: sample({count}) of {type(pl_module).__name__} answered {images.dtype}; let it "
                "return floating-point images that are normalised as those of its batches."
            )
        return images.detach().float()


def _named(pl_module: LightningModule) -> set[str]:
    """The names of what `sample` may be given."""
    return set(signature(pl_module.sample).parameters)  # type: ignore[arg-type]

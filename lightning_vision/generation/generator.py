"""What every module that makes images is built on: their size, their labels, draws that repeat, pixels."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Generator, Tensor

from lightning_vision.base.draws import seeded
from lightning_vision.base.module import VisionModule

from .draws import Draws

__all__ = ["ImageGenerator"]


class ImageGenerator(VisionModule, ABC):
    """Base of all modules that make images: a method says its `losses` and how it makes a batch.

    Logs `train/loss` and its terms (each with `_step` and `_epoch`), and the same under `val/` and `test/`.

    Args:
        num_classes: Labels are 0 .. num_classes - 1; 0 reads none.
        in_channels: C of the images; None means 3.
        image_size: H and W, pixels, or one number for both; None means 32.
        seed: Fixes every random draw of training and validation, at least 0.
        optimizer: Makes the optimizer from parameter groups.
        lr_scheduler: Makes the schedule from the optimizer; None keeps the learning rate.
        lr_interval: Whether the schedule counts epochs or optimizer steps.
        no_decay_norm_bias: Spare norms and biases from weight decay.

    Shape:
        Batches are `(image,)`, `(image, label, ...)` or a mapping with `image` and `target`: float32 `(B, C, H, W)`,
        normalised by what the datamodule says, and int64 `(B,)`.

    Raises:
        ValueError: a setting is out of its range.
    """

    compared: ClassVar[tuple[str, ...]] = ("in_channels",)

    def __init__(
        self,
        num_classes: int | None,
        in_channels: int | None,
        image_size: int | Sequence[int] | None,
        seed: int,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        lr_interval: Literal["epoch", "step"],
        no_decay_norm_bias: bool,
    ) -> None:
        super().__init__(optimizer, lr_scheduler, lr_interval, no_decay_norm_bias, 1.0, 1.0)
        self.save_hyperparameters()
        size = 32 if image_size is None else image_size
        self.image_size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        self.num_classes = num_classes or 0
        self.in_channels = 3 if in_channels is None else in_channels
        if self.num_classes < 0:
            raise ValueError(f"{type(self).__name__}: num_classes is {num_classes}; give 0, for no labels, or more")
        if seed < 0:
            raise ValueError(f"{type(self).__name__}: seed is {seed}; give a number of at least 0")
        self.seed = seed

    @abstractmethod
    def losses(self, image: Tensor, label: Tensor | None, random: Generator) -> dict[str, Tensor]:
        """What is minimised for a batch, by name; `loss` is the sum that is minimised.

        Args:
            image: Normalised images `(B, C, H, W)`.
            label: int64 `(B,)`, None where the module reads none.
            random: Draws all that is random, on the images' device.
        """

    @abstractmethod
    def make(self, draws: Draws, label: Tensor | None, **settings: Any) -> Tensor:
        """Normalised images `(B, C, H, W)`, one for each stream of `draws`.

        Args:
            draws: All that is random.
            label: int64 `(B,)`, None where the module reads none.
            **settings: Of the method.
        """

    def check_sampling(self) -> None:
        """Raise a ValueError for settings of the module with which no image can be made."""

    def sampling(self) -> dict[str, Any]:
        """The module's settings that images follow from besides weights, seed and label, as plain data."""
        return {}

    @torch.no_grad()
    def sample(
        self,
        count: int = 1,
        label: int | Sequence[int] | Tensor | None = None,
        seed: int = 0,
        first: int = 0,
        **how: Any,
    ) -> Tensor:
        """Make images, normalised as those of batches, `(count, C, H, W)`; `pixels` gives what can be looked at.

        An image is a function of the weights, the seed and its own number: those of `sample(10)` are those of
        `sample(4)` and `sample(6, first=4)`.

        Args:
            count: How many, at least 1.
            label: Of all, or of each; None takes the classes in turn, by the images' numbers.
            seed: Fixes all draws, at least 0.
            first: Number of the first image, at least 0.
            **how: Settings of the method, see `make`.

        Raises:
            ValueError: a number is out of its range, or labels do not fit.
        """
        if count < 1 or seed < 0 or first < 0:
            raise ValueError(
                f"sample(count={count}, seed={seed}, first={first}): give at least one image, and a seed and a first "
                "number that are not negative"
            )
        numbers = range(first, first + count)
        labels = self.labels_of(label, numbers)
        trains = self.training
        self.eval()
        try:
            return self.make(Draws(seed, numbers), labels, **how)
        finally:
            self.train(trains)

    def pixels(self, image: Tensor) -> Tensor:
        """uint8 `(B, C, H, W)` of normalised images; what lies beyond black and white is cut."""
        mean, std = (torch.tensor(it, device=image.device).view(-1, 1, 1) for it in self.statistics())
        return (image.float() * std + mean).clamp(0, 1).mul(255).round().to(torch.uint8)

    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation by which images are normalised; 0.5 each, for -1..1, where nobody has said."""
        told: Mapping[str, Any] = self.preprocessing or {}
        half = [0.5] * self.in_channels
        return list(told.get("mean", half)), list(told.get("std", half))

    def setup(self, stage: str) -> None:
        """As `VisionModule`.

        Raises:
            ValueError: as there; the datamodule's images have another size; or it has another number of classes.
        """
        super().setup(stage)
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        name, source = type(self).__name__, type(datamodule).__name__
        size = getattr(datamodule, "image_size", None)
        found = (size, size) if isinstance(size, int) else None if size is None else tuple(size)
        if stage != "predict" and found not in (None, self.image_size):
            raise ValueError(f"{name} has image_size={self.image_size} but {source} has {found}; make them agree")
        classes = getattr(datamodule, "num_classes", None)
        if stage != "predict" and self.num_classes and classes not in (None, self.num_classes):
            raise ValueError(
                f"{name} has num_classes={self.num_classes} but {source} has {classes}; make them agree, or give 0"
            )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        return self._step("train", batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._step("val", batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._step("test", batch, batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Make the images that a batch names: `{"index": (B,), "image": uint8 (B, C, H, W)}`.

        Args:
            batch: `number` int64 `(B,)`, `seed` int64 `(B,)`, all equal, and `label` int64 `(B,)` where the module
                reads labels.
            batch_idx: Plays no part.

        Raises:
            ValueError: the batch names no images.
        """
        if not isinstance(batch, Mapping) or "number" not in batch:
            raise ValueError(f"{type(self).__name__} makes images and says nothing of those it is given; run `sample`")
        draws = Draws(int(batch["seed"][0]), batch["number"].tolist())
        label = batch["label"] if self.num_classes else None
        return {"index": batch["number"], "image": self.pixels(self.make(draws, label))}

    def image_and_label(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        """The images of a batch, and its labels where the module reads them.

        Raises:
            ValueError: images have another size, or there are no labels to read.
        """
        if not isinstance(batch, Mapping):
            batch = dict(zip(("image", "target"), batch, strict=False))
        image: Tensor = batch["image"]
        expected = (self.in_channels, *self.image_size)
        if image.shape[1:] != expected:
            raise ValueError(
                f"{type(self).__name__} learns images of {expected} (C, H, W) and got {tuple(image.shape[1:])}; set "
                "in_channels and image_size"
            )
        if self.num_classes and "target" not in batch:
            raise ValueError(
                f"{type(self).__name__} has num_classes={self.num_classes} and the batches have no labels; give 0"
            )
        return image, batch["target"] if self.num_classes else None

    def batch_draws(self, image: Tensor, batch_idx: int, training: bool) -> Generator:
        """A batch's draws, on its device: a function of seed, rank, epoch (of evaluation none) and batch."""
        epoch = self.current_epoch + 1 if training else 0
        rank = self._trainer.global_rank if self._trainer else 0
        return seeded(self.seed, rank, epoch, batch_idx, device=image.device)

    def _step(self, stage: str, batch: Any, batch_idx: int) -> Tensor:
        image, label = self.image_and_label(batch)
        terms = self.losses(image, label, self.batch_draws(image, batch_idx, stage == "train"))
        self.scalars.log(stage, {name: term.detach() for name, term in terms.items()}, len(image))
        return terms["loss"]

    def labels_of(self, label: int | Sequence[int] | Tensor | None, numbers: Sequence[int]) -> Tensor | None:
        """Labels int64 `(B,)` of images by what was asked for, as `sample`; None where the module reads none.

        Raises:
            ValueError: labels do not fit.
        """
        if not self.num_classes:
            if label is not None:
                raise ValueError(f"{type(self).__name__} was trained without labels; leave label out")
            return None
        if label is None:
            label = [number % self.num_classes for number in numbers]
        given = torch.as_tensor(label, dtype=torch.int64, device=self.device)
        if given.ndim > 1 or (given.ndim == 1 and len(given) != len(numbers)):
            raise ValueError(
                f"there are labels of shape {tuple(given.shape)} for {len(numbers)} images; give one for each"
            )
        if wrong := [it for it in given.flatten().tolist() if not 0 <= it < self.num_classes]:
            raise ValueError(
                f"label {wrong[0]} is none of the {self.num_classes} classes; give 0 to {self.num_classes - 1}"
            )
        return given.expand(len(numbers))

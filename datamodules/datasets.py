"""Any torch Datasets as a datamodule."""

import random
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset

from lightning_vision.images import Resize, convert_image

from .augmentation.policies import Augment
from .common._draws import Stream, draw_bits
from .common._labels import check_labels, known_targets
from .common._loader import Sampler
from .common._sets import Fetched, ImageSet, SampleError
from .common.datamodule import VisionDataModule

__all__ = ["from_datasets"]


def from_datasets(
    train: Dataset | None = None,
    val: Dataset | None = None,
    test: Dataset | None = None,
    predict: Dataset | None = None,
    num_classes: int | None = None,
    class_names: list[str] | None = None,
    *,
    channels: int | None = None,
    image_size: tuple[int, int] | None = None,
    resize: Resize = "crop",
    mean: list[float] | None = None,
    std: list[float] | None = None,
    augment: Augment = "none",
    sampler: Sampler = "all",
    batch_size: int = 32,
    num_workers: int = 0,
    seed: int = 0,
    drop_last: bool = False,
    multiprocessing_context: Literal["fork", "spawn", "forkserver"] | None = None,
    labels_per_class: int | None = None,
) -> VisionDataModule:
    """Make a datamodule of map-style torch Datasets that give `(image, label)`.

    An image is a Pillow image, an array `(H, W)` or `(H, W, C)`, or a tensor `(H, W)` or `(C, H, W)`; uint8 in 0..255
    or floats in 0..1. A label is an integer, or one 0 or 1 a class where several apply. Random transforms are
    repeatable: before each sample, the streams of `random`, numpy and torch are seeded from (seed, epoch, sample), for
    training, or (seed, sample), and put back after the batch.

    Args:
        train: Training samples.
        val: Validation samples.
        test: Test samples.
        predict: Samples to predict, with or without label; by default those of `test`.
        num_classes: By default as many as `class_names`, or as the first dataset's `classes`.
        class_names: By default the first dataset's `classes`, or the numbers.
        channels: By default those of the first image.
        image_size: Height and width, pixels; by default those of the first image. uint8 images are resized.
        resize: `crop` or `squash`, as in `lightning_vision.images.convert_image`.
        mean: Subtracted on the device, per channel, of pixels in 0..1; by default 0.
        std: What is divided by, likewise; by default 1. With both defaults floats stay as they are.
        augment: What uint8 training images go through on the device: the name of a policy, a policy's YAML file, an
            `Augmentation`, or a list of these; "none" is neutral.
        sampler: `all` visits every training image once an epoch, `balanced` as many of every class, for which labels
            must be known without loading images.
        batch_size: Samples in a batch of one process.
        num_workers: Processes that fetch.
        seed: Fixes the order and the augmentation of every epoch.
        drop_last: Leave out of an epoch of training what does not fill a batch.
        multiprocessing_context: How workers start; None is the system's default.
        labels_per_class: Train on so many images of every class, chosen by `seed`, the same in every epoch; validation
            and test stay whole. None takes all.

    Raises:
        ValueError: no dataset was given, one is iterable-style or empty, or the number of classes is unknown; at
            set-up, images to augment are not uint8 or labels to balance are unknown; at set-up, or at the sample if the
            labels are not known before, a label is outside 0 .. num_classes - 1.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> images, labels = torch.zeros(6, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 2, 0, 1, 2])
        >>> data = from_datasets(TensorDataset(images, labels), num_classes=3, batch_size=4)
        >>> [len(target) for image, target, index in data.train_dataloader()]
        [4, 2]
    """
    given = {"train": train, "val": val, "test": test, "predict": predict}
    datasets = {split: dataset for split, dataset in given.items() if dataset is not None}
    if not datasets:
        raise ValueError("from_datasets needs at least one dataset")
    for split, dataset in datasets.items():
        if (
            isinstance(dataset, IterableDataset)
            or not hasattr(dataset, "__getitem__")
            or not hasattr(dataset, "__len__")
        ):
            raise ValueError(f"the {split} dataset {type(dataset).__name__} needs __getitem__ and __len__")
        if len(dataset) == 0:
            raise ValueError(f"the {split} dataset {type(dataset).__name__} is empty")
    classes = class_names or getattr(next(iter(datasets.values())), "classes", None)
    if num_classes is None and classes is None:
        raise ValueError("from_datasets cannot tell the number of classes; pass num_classes or class_names")
    if classes is None or (class_names is None and num_classes is not None and len(classes) != num_classes):
        classes = [str(number) for number in range(num_classes or 0)]
    if num_classes is not None and len(classes) != num_classes:
        raise ValueError(f"num_classes is {num_classes} but there are {len(classes)} class_names")
    loading = (batch_size, num_workers, seed, drop_last, multiprocessing_context, augment, sampler, labels_per_class)
    names = [str(name) for name in classes]
    return DatasetsModule(datasets, names, channels, image_size, resize, mean, std, *loading)


class DatasetsModule(VisionDataModule):
    """What `from_datasets` makes; its arguments, with the datasets by split, and those of the base in its order."""

    resize: Resize

    def __init__(
        self,
        datasets: dict[str, Dataset],
        class_names: list[str],
        channels: int | None,
        image_size: tuple[int, int] | None,
        resize: Resize,
        mean: list[float] | None,
        std: list[float] | None,
        *loading: Any,
    ) -> None:
        super().__init__(*loading)
        self.datasets, self.resize = datasets, resize
        self._class_names = class_names
        if channels is None or image_size is None:
            one = SampledImages(next(iter(datasets.values())), self.seed, channels, image_size, resize)
            shape = one.fetch(torch.zeros(1, dtype=torch.int64)).image.shape
            channels, image_size = shape[1], image_size or (shape[2], shape[3])
        self.in_channels, self.image_size = channels, image_size
        self._statistics = mean or [0.0] * channels, std or [1.0] * channels

    @property
    def class_names(self) -> list[str]:
        return self._class_names

    @property
    def statistics(self) -> tuple[list[float], list[float]]:
        return self._statistics

    def load(self) -> None:
        for split, dataset in self.datasets.items():
            images = SampledImages(
                dataset, self.seed, self.in_channels, self.image_size, self.resize, split == "train", split != "predict"
            )
            if images.targets is not None and split != "predict":
                check_labels(images.targets, self.num_classes, source=f"{split}: ")
            if split == "train" and self.augmentation is not None:
                pixels = images.fetch(torch.zeros(1, dtype=torch.int64)).image
                if pixels.dtype != torch.uint8 or self.in_channels not in (1, 3):
                    form = f"{str(pixels.dtype).removeprefix('torch.')} with {self.in_channels} channels"
                    raise ValueError(
                        f"augment works on uint8 images of 1 or 3 channels, those of the train dataset are {form}; "
                        "give uint8 or augment in the dataset's own transform"
                    )
            setattr(self, f"{split}_set", images)
        self.predict_set = self.predict_set or self.test_set


class SampledImages(ImageSet):
    """The samples of any map-style Dataset as batches.

    Args:
        dataset: Gives `(image, label)`, or images alone.
        seed: Seeds random transforms.
        channels: 1 or 3, or None for the image's own.
        image_size: Height and width, pixels, or None for the image's own.
        resize: `crop` or `squash`.
        varies: Random transforms differ from epoch to epoch.
        labelled: Labels are needed.
    """

    def __init__(
        self,
        dataset: Dataset,
        seed: int,
        channels: int | None,
        image_size: tuple[int, int] | None,
        resize: Resize,
        varies: bool = False,
        labelled: bool = False,
    ) -> None:
        self.dataset, self.seed, self.channels, self.image_size = dataset, seed, channels, image_size
        self.resize, self.varies, self.labelled = resize, varies, labelled
        self.targets = known_targets(dataset)

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # checked by from_datasets

    def part(self, positions: Tensor) -> ImageSet:
        subset: Dataset = Subset(self.dataset, positions.tolist())
        settings = (self.seed, self.channels, self.image_size, self.resize, self.varies, self.labelled)
        return SampledImages(subset, *settings)

    def fetch(self, index: Tensor, epoch: int = 0) -> Fetched:
        seeds = draw_bits(index, self.seed, epoch if self.varies else 0, Stream.SAMPLE)
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        try:
            samples = [self._sample(*pair) for pair in zip(index.tolist(), seeds.tolist(), strict=True)]
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])
        labels = [label for _, label in samples if label is not None]
        target = torch.stack(labels) if len(labels) == len(samples) else None
        return Fetched(torch.stack([image for image, _ in samples]), target, index)

    def _sample(self, position: int, seed: int) -> tuple[Tensor, Tensor | None]:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        position %= len(self)
        item = self.dataset[position]
        pair = isinstance(item, tuple | list) and len(item) > 1
        if self.labelled and not pair:
            raise SampleError(f"sample {position} is {type(item).__name__}, not (image, label)")
        image = item[0] if isinstance(item, tuple | list) else item
        return self._pixels(image, position), _label(item[1], position) if pair else None

    def _pixels(self, image: Any, position: int) -> Tensor:
        if isinstance(image, np.ndarray):
            image = torch.from_numpy(image[..., None] if image.ndim == 2 else image).permute(2, 0, 1)
        if isinstance(image, Tensor) and image.ndim == 2:
            image = image[None]
        if isinstance(image, Tensor) and image.ndim == 3:
            pixels = image.contiguous() if image.dtype == torch.uint8 else image.float().contiguous()
            wanted = self.channels or pixels.shape[0], *(self.image_size or pixels.shape[1:])
            if tuple(pixels.shape) == wanted:
                return pixels
            if image.dtype == torch.uint8 and len(pixels) in (1, 3):
                image = Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy())
            else:
                raise SampleError(
                    f"sample {position} has shape {tuple(pixels.shape)}, not {wanted}; let its transform resize it"
                )
        if isinstance(image, Image.Image):
            grey = image.mode in ("1", "L", "F") or image.mode.startswith("I")
            return convert_image(image, self.channels or (1 if grey else 3), self.image_size, self.resize)
        what = f"of shape {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise SampleError(f"sample {position} has no image but {what}; give a Pillow image, an array or a tensor")


def _label(label: Any, position: int) -> Tensor:
    try:
        tensor = torch.as_tensor(label)
    except (TypeError, ValueError, RuntimeError):
        tensor = torch.zeros(())
    if tensor.ndim == 1:
        return tensor.float()
    if tensor.ndim or tensor.is_floating_point():
        raise SampleError(f"sample {position} has the label {label!r}; give an integer or one 0 or 1 a class")
    return tensor.long()

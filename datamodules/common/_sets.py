"""Labelled images as the loader fetches them: a whole batch at once, from memory or from files."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_vision.images import BadImageError, Resize, read_image

from ..detection.annotations import Annotations

__all__ = ["ArrayImages", "Fetched", "FileImages", "ImageSet", "OnBadImage", "SampleError", "decode_each"]

OnBadImage = Literal["error", "skip"]
Decoded = TypeVar("Decoded")


class SampleError(ValueError):
    """A sample of the user's data that cannot be used; the message says which and why."""


@dataclass(frozen=True)
class Fetched:
    """A batch before transfer.

    Args:
        image: `(B, C, H, W)`, uint8 in 0..255, or floats that the user scaled.
        target: int64 `(B,)`, float32 `(B, K)` where several classes may apply, the `Annotations` of B images with
            boxes, or None without labels.
        index: Position of each sample in its set, as `ImageSet.fetch` was given it, int64 `(B,)`.
        skipped: Files that had to be left out, so that B is smaller.
    """

    image: Tensor
    target: Tensor | Annotations | None
    index: Tensor
    skipped: tuple[str, ...] = ()

    def pin_memory(self) -> "Fetched":
        """The same in page-locked memory; torch's DataLoader calls it, too."""
        target = None if self.target is None else self.target.pin_memory()
        return Fetched(self.image.pin_memory(), target, self.index.pin_memory(), self.skipped)


class ImageSet(Dataset[tuple[Tensor, ...]], ABC):
    """A map-style dataset that gives batches; also usable in a plain DataLoader, as samples (image, target, index)."""

    targets: Tensor | None = None
    """Labels of all samples where they are known: int64 `(N,)`, or 0 and 1, float32 `(N, K)`."""
    shown: Tensor | None = None
    """Which samples show which classes, where they may show several: rows of sample and class, int64 `(P, 2)`."""
    answers: str = "none"
    """Which teachers' answers are given in the place of labels: a checksum of them."""

    @abstractmethod
    def __len__(self) -> int: ...

    def part(self, positions: Tensor) -> "ImageSet":
        """A set of the samples at `positions`, int64 `(M,)`, in their order; random draws are those of the new places.

        Raises:
            NotImplementedError: sets of this kind have no parts.
        """
        raise NotImplementedError(f"{type(self).__name__} has no parts")

    @abstractmethod
    def fetch(self, index: Tensor, epoch: int = 0) -> Fetched:
        """The samples at positions `index`, int64 `(B,)`, as they are in `epoch`.

        Position `i + k * len(self)` is the k-th copy of sample i: the same image, with random draws of its own.
        """

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, ...]]:
        batch = self.fetch(torch.as_tensor(indices))
        parts = [part for part in (batch.image, batch.target, batch.index) if part is not None]
        return list(zip(*parts, strict=True))


class ArrayImages(ImageSet):
    """Images in memory, fetched by one gather.

    Args:
        images: uint8 `(N, C, H, W)`, 0..255.
        targets: int64 `(N,)`.
    """

    def __init__(self, images: Tensor, targets: Tensor) -> None:
        self.images, self.targets = images, targets

    def __len__(self) -> int:
        return len(self.images)

    def part(self, positions: Tensor) -> ImageSet:
        assert self.targets is not None
        return ArrayImages(self.images[positions], self.targets[positions])

    def fetch(self, index: Tensor, epoch: int = 0) -> Fetched:
        assert self.targets is not None
        sample = index % len(self)
        return Fetched(self.images.index_select(0, sample), self.targets.index_select(0, sample), index)


class FileImages(ImageSet):
    """Image files, decoded when they are fetched.

    Args:
        paths: One file a sample.
        targets: int64 `(N,)`, float32 `(N, K)` of 0 and 1 where several classes may apply, or None without labels.
        channels: 1 or 3.
        image_size: Height and width, pixels.
        resize: "crop" or "squash", as in `lightning_vision.images.convert_image`.
        on_bad_image: `error` stops at a file that cannot be decoded, `skip` leaves it out of its batch.
    """

    def __init__(
        self,
        paths: list[str],
        targets: Tensor | None,
        channels: int,
        image_size: tuple[int, int],
        resize: Resize = "crop",
        on_bad_image: OnBadImage = "error",
    ) -> None:
        self.paths, self.targets = paths, targets
        self.channels, self.image_size, self.resize, self.on_bad_image = channels, image_size, resize, on_bad_image

    def __len__(self) -> int:
        return len(self.paths)

    def part(self, positions: Tensor) -> ImageSet:
        paths = [self.paths[number] for number in positions.tolist()]
        targets = None if self.targets is None else self.targets[positions]
        return FileImages(paths, targets, self.channels, self.image_size, self.resize, self.on_bad_image)

    def fetch(self, index: Tensor, epoch: int = 0) -> Fetched:
        def read(number: int) -> Tensor:
            return read_image(self.paths[number], self.channels, self.image_size, self.resize)

        images, index, skipped = decode_each(read, index, self.paths, self.on_bad_image)
        target = None if self.targets is None else self.targets[index % len(self)]
        return Fetched(torch.stack(images), target, index, skipped)


def decode_each(
    read: Callable[[int], Decoded], index: Tensor, paths: list[str], on_bad_image: OnBadImage
) -> tuple[list[Decoded], Tensor, tuple[str, ...]]:
    """The images of a batch, where the damaged ones stop it or are left out.

    Args:
        read: Decodes the file at a position in `paths`.
        index: Positions of the samples, int64 `(B,)`, as `ImageSet.fetch` takes them.
        paths: The set's files.
        on_bad_image: `error` or `skip`.

    Returns:
        What could be used, whose positions, and the files left out.

    Raises:
        BadImageError: at a damaged file, or when none is left.
    """
    images, kept, skipped, problem = [], [], [], ""
    for position in index.tolist():
        number = position % len(paths)
        try:
            images.append(read(number))
            kept.append(position)
        except (BadImageError, FileNotFoundError) as error:
            if on_bad_image == "error":
                raise BadImageError(f"{error}; remove it or pass on_bad_image='skip'") from error
            problem = problem or str(error)
            skipped.append(paths[number])
    if not images:
        raise BadImageError(
            f"none of the {len(index)} images of a batch can be used: {problem}; "
            "remove them or pass a larger batch_size"
        )
    return images, torch.tensor(kept), tuple(skipped)

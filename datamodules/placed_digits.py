"""One handwritten digit somewhere on a canvas of noise or on a crop of a photograph."""

from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .common._draws import Stream, draw_bits, draw_integers, draw_uniform
from .common._loader import Sampler
from .common._sets import Fetched, ImageSet
from .common._split import stratified_split
from .common.datamodule import VisionDataModule
from .digits import read_digits, split_digits

__all__ = ["PlacedDigits"]

Canvas = Literal["plain", "photo"]

# Chosen so that on the plain canvas the nearest neighbour in raw pixels is right two times in three.
SIZES = {"plain": (14, 20), "photo": (12, 22)}
CONTRASTS = {"plain": (0.35, 1.0), "photo": (0.6, 1.0)}
NOISE = 0.08
BLOCK = 64


class PlacedDigits(VisionDataModule):
    """scikit-learn's digits, each at a random place, size and contrast on noise or on a photograph.

    A training image is a function of (seed, epoch, sample), validation and test images are fixed. The digits are split
    as in `Digits`; the photographs, two that scikit-learn ships, are cut into blocks of 64 pixels of which each belongs
    to one split, so no two splits share a digit or a pixel of background.

    Args:
        canvas: `plain` is 24x24 grey with noise, for self-supervision; `photo` is 32x32 RGB, a digit in black or white,
            whichever stands out, on a crop of a photograph: for methods that must find the digit.
        batch_size: Samples in a batch of one process.
        num_workers: Processes that draw images.
        sampler: `all` visits every training image once an epoch, `balanced` as many of every class.
        seed: Fixes the order and the images of every epoch.
        split_seed: Fixes which digits and blocks train, validate and test.
        drop_last: Leave out of an epoch of training what does not fill a batch.
        multiprocessing_context: How workers start; None is the system's default.
        labels_per_class: Train on so many images of every class, chosen by `split_seed`, the same in every epoch;
            validation and test stay whole. None takes all.

    Shape:
        uint8 `(B, 1, 24, 24)` or `(B, 3, 32, 32)`, normalised on the device by mean and standard deviation of the
        training images of epoch 0.

    Raises:
        ValueError: `canvas` is neither.

    Example:
        >>> digits = PlacedDigits(canvas="photo", batch_size=16)
        >>> image, target, index = next(iter(digits.val_dataloader()))
        >>> image.shape, digits.boxes("val", index).shape
        (torch.Size([16, 3, 32, 32]), torch.Size([16, 4]))
    """

    def __init__(
        self,
        canvas: Canvas = "plain",
        batch_size: int = 64,
        num_workers: int = 0,
        sampler: Sampler = "all",
        seed: int = 0,
        split_seed: int = 0,
        drop_last: bool = False,
        multiprocessing_context: Literal["fork", "spawn", "forkserver"] | None = None,
        labels_per_class: int | None = None,
    ) -> None:
        loading = (batch_size, num_workers, seed, drop_last, multiprocessing_context)
        super().__init__(*loading, sampler=sampler, labels_per_class=labels_per_class)
        if canvas not in SIZES:
            raise ValueError(f"canvas {canvas!r} must be 'plain' or 'photo'")
        self.canvas, self.split_seed = canvas, split_seed
        self.in_channels = 1 if canvas == "plain" else 3
        self.image_size = (24, 24) if canvas == "plain" else (32, 32)

    @property
    def class_names(self) -> list[str]:
        return list("0123456789")

    @cached_property
    def statistics(self) -> tuple[list[float], list[float]]:
        self.setup()
        images = self.all_train_images
        assert images is not None
        pixels = images.fetch(torch.arange(len(images))).image.double() / 255
        dims = (0, 2, 3)
        return pixels.mean(dims).tolist(), pixels.std(dims, correction=0).tolist()

    def load(self) -> None:
        digits, targets = read_digits()
        parts = split_digits(targets, self.split_seed)
        backgrounds = [None] * 3 if self.canvas == "plain" else _photo_blocks(self.split_seed)
        # The split is a key too, so that a digit's number alone does not repeat its place in another split.
        self.train_set, self.val_set, self.test_set = (
            PlacedImages(digits[part], targets[part], self.canvas, blocks, (self.seed, number), fixed=number > 0)
            for number, (part, blocks) in enumerate(zip(parts, backgrounds, strict=True))
        )
        self.predict_set = self.test_set

    def boxes(self, split: Literal["train", "val", "test"], index: Tensor, epoch: int = 0) -> Tensor:
        """Where the digits are: top, left, bottom, right (half open, pixels), int64 `(B, 4)`.

        Args:
            split: Whose samples are meant.
            index: Their positions in the split, int64 `(B,)`.
            epoch: Epoch of training; the other splits do not change.
        """
        images = self._images(split)
        assert isinstance(images, PlacedImages)
        return images.boxes(index, epoch)


class PlacedImages(ImageSet):
    """Digits on canvases, drawn when they are fetched.

    Args:
        digits: uint8 `(N, 1, 8, 8)`.
        targets: int64 `(N,)`.
        canvas: `plain` or `photo`.
        blocks: Pieces of photographs uint8 `(M, 3, 64, 64)`, for `photo`.
        keys: Keys of all draws.
        fixed: The same in every epoch.
    """

    def __init__(
        self,
        digits: Tensor,
        targets: Tensor,
        canvas: Canvas,
        blocks: Tensor | None,
        keys: tuple[int, ...],
        fixed: bool,
    ) -> None:
        self.digits, self.targets, self.canvas, self.blocks = digits, targets, canvas, blocks
        self.keys, self.fixed = keys, fixed
        self.side = 24 if canvas == "plain" else 32

    def __len__(self) -> int:
        return len(self.digits)

    def part(self, positions: Tensor) -> ImageSet:
        assert self.targets is not None
        kept = self.digits[positions], self.targets[positions]
        return PlacedImages(*kept, self.canvas, self.blocks, self.keys, self.fixed)

    def boxes(self, index: Tensor, epoch: int = 0) -> Tensor:
        keys = self._keys(epoch)
        low, high = SIZES[self.canvas]
        size = low + draw_integers(high - low + 1, index, *keys, Stream.SIZE)
        # A range that differs from sample to sample: scale a uniform draw and round down.
        free = (self.side - size + 1).float()
        top = (draw_uniform(index, *keys, Stream.ROW) * free).long()
        left = (draw_uniform(index, *keys, Stream.COLUMN) * free).long()
        return torch.stack([top, left, top + size, left + size], dim=1)

    def fetch(self, index: Tensor, epoch: int = 0) -> Fetched:
        keys, sample = self._keys(epoch), index % len(self)
        low, high = CONTRASTS[self.canvas]
        contrast = low + (high - low) * draw_uniform(index, *keys, Stream.CONTRAST)
        ink = place(self.digits[sample, 0].float() / 255, self.boxes(index, epoch), self.side) * contrast[:, None, None]
        if self.blocks is None:
            image = (0.15 + 0.7 * ink + NOISE * self._noise(index, keys))[:, None]
        else:
            background = self._crops(index, keys)
            colour = (background.mean((1, 2, 3)) < 0.5).float()[:, None, None, None]
            image = background + ink[:, None] * (colour - background)
        assert self.targets is not None
        return Fetched((image * 255).round().clamp(0, 255).to(torch.uint8), self.targets[sample], index)

    def _keys(self, epoch: int) -> tuple[int, ...]:
        return *self.keys, 0 if self.fixed else epoch

    def _noise(self, index: Tensor, keys: tuple[int, ...]) -> Tensor:
        """Uniform, mean 0 and variance 1, `(B, side, side)`; 64 bits make four pixels."""
        words = torch.arange(self.side**2 // 4)
        bits = draw_bits(index[:, None] * len(words) + words, *keys, Stream.NOISE)
        lanes = (bits[:, :, None] >> torch.tensor([0, 16, 32, 48])) & 0xFFFF
        return ((lanes.float() / 0xFFFF - 0.5) * 12**0.5).view(-1, self.side, self.side)

    def _crops(self, index: Tensor, keys: tuple[int, ...]) -> Tensor:
        assert self.blocks is not None
        steps = BLOCK - self.side + 1
        crop = draw_integers(len(self.blocks) * steps * steps, index, *keys, Stream.CROP)
        line = torch.arange(self.side)
        rows = (crop // steps % steps)[:, None] + line
        columns = (crop % steps)[:, None] + line
        block = (crop // steps**2)[:, None, None]
        pixels = self.blocks.permute(0, 2, 3, 1)[block, rows[:, :, None], columns[:, None, :]]
        return pixels.permute(0, 3, 1, 2).float() / 255


def place(digits: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Stretch each image bilinearly to fill its box on an empty canvas.

    Only elementwise arithmetic, which rounds alike wherever a sample stands in a batch.

    Args:
        digits: float `(B, 8, 8)`.
        boxes: Square, as `PlacedDigits.boxes` gives them, int64 `(B, 4)`.
        side: Height and width of the canvas, pixels.

    Returns:
        float `(B, side, side)`.
    """
    width = digits.shape[-1]
    framed = F.pad(digits, (1, 1, 1, 1))
    scale = width / (boxes[:, 2] - boxes[:, 0]).float()
    sample = torch.arange(len(digits))
    for axis in (0, 1):
        centre = torch.arange(side) + 0.5 - boxes[:, axis, None]
        position = (centre * scale[:, None] + 0.5).clamp(0, width + 1)
        first = position.floor().clamp(max=width)
        weight = (position - first)[:, :, None]
        lines = framed[sample[:, None], first.long()], framed[sample[:, None], first.long() + 1]
        # Rows first; transposed, the second round does the columns and turns the picture back.
        framed = (lines[0] * (1 - weight) + lines[1] * weight).transpose(1, 2)
    return framed


def _photo_blocks(seed: int) -> list[Tensor]:
    """Blocks of scikit-learn's two photographs for train, val and test, each uint8 `(M, 3, 64, 64)`."""
    from sklearn.datasets import load_sample_images

    photos = [torch.from_numpy(photo.copy()) for photo in load_sample_images().images]
    cut = [photo.unfold(0, BLOCK, BLOCK).unfold(1, BLOCK, BLOCK).flatten(0, 1) for photo in photos]
    number = torch.cat([torch.full((len(blocks),), photo) for photo, blocks in enumerate(cut)])
    return [torch.cat(cut)[part] for part in stratified_split(number, (0.6, 0.2, 0.2), seed)]

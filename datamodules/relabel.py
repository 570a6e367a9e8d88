"""Training images with the soft labels of their own crops, pooled out of a teacher's label maps.

Yun et al. 2021, arXiv:2101.05022. Letters: B samples, K classes, k `top_k` of them in each cell of a map, h and w cells
of a map, H and W pixels of the image that it was made of.
"""

from pathlib import Path
from typing import final

import torch
from torch import Tensor
from torchvision.ops import roi_align

from .common._answered import Answered, answered, unpacked
from .common._answers import AnswerStore
from .common._fingerprint import fingerprint
from .common._loader import Batch
from .common._sets import Fetched, ImageSet, SampleError
from .common.datamodule import VisionDataModule

__all__ = ["ReLabel", "cell_shares", "label_pooling", "top_label_pooling", "top_scores"]

# Sums of whole numbers come out alike in any order of adding, which scatter has none of on an accelerator. A half
# precision score is below 2^16 and the shares of a box add up to 1, so 2^40 of them stay below 2^63.
UNIT = 2.0**40


def label_pooling(maps: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """LabelPooling: the soft label of a box of an image, out of the scores of every cell of its map.

    The scores of the box are averaged by RoIAlign, at as many places as the box has cells, and go through a softmax. Of
    the whole image it is the softmax of the map's mean.

    Args:
        maps: Scores before the softmax, `(B, K, h, w)`.
        boxes: Left, top, right and bottom, pixels of the image, `(B, 4)`. Where left is the larger the box is mirrored,
            which no mean notices; what lies beyond the image is left out, and a box without any of it is uniform.
        size: H and W.

    Returns:
        Probabilities `(B, K)`.

    Example:
        >>> left_and_right = torch.tensor([[[[9.0, 0.0]], [[0.0, 9.0]]]])
        >>> boxes = torch.tensor([[0.0, 0.0, 4.0, 8.0]])
        >>> label_pooling(left_and_right, boxes, (8, 8)).argmax(1)
        tensor([0])
    """
    number = torch.arange(len(maps), device=maps.device)[:, None]
    cells = _in_cells(boxes, size, (maps.shape[2], maps.shape[3]))
    pooled = roi_align(maps, torch.cat([number, cells], 1).to(maps.dtype), 1, aligned=True)
    return pooled.flatten(1).softmax(1)


def top_label_pooling(
    classes: Tensor, scores: Tensor, boxes: Tensor, size: tuple[int, int], num_classes: int
) -> Tensor:
    """`label_pooling` of maps of which each cell tells its highest scores alone; the others count as 0.

    It never makes the K maps: the work is that of h w k numbers an image, not of h w K.

    Args:
        classes: Which ones each cell tells, int64 `(B, h, w, k)`.
        scores: Theirs, float32 of the same shape.
        boxes: See `label_pooling`.
        size: H and W.
        num_classes: K.

    Returns:
        Probabilities `(B, K)`, the same bits on every run of a device.
    """
    shares = cell_shares(boxes, size, (classes.shape[1], classes.shape[2]))
    parts = (shares.unsqueeze(3).double() * scores * UNIT).round().long()
    pooled = parts.new_zeros(len(classes), num_classes).scatter_add_(1, classes.flatten(1), parts.flatten(1))
    return (pooled.double() / UNIT).float().softmax(1)


def cell_shares(boxes: Tensor, size: tuple[int, int], map_size: tuple[int, int]) -> Tensor:
    """What each cell of a map counts in the mean that RoIAlign takes of a box, `(B, h, w)`, of sum 1.

    Args:
        boxes: See `label_pooling`.
        size: H and W.
        map_size: h and w.

    Example:
        >>> cell_shares(torch.tensor([[0.0, 0.0, 4.0, 8.0]]), (8, 8), (1, 2))
        tensor([[[1., 0.]]])
    """
    left, top, right, bottom = _in_cells(boxes, size, map_size).unbind(1)
    # Places and weights of a row are those of every other, so two lines of cells tell all of them.
    down, across = _line_shares(top, bottom, map_size[0]), _line_shares(left, right, map_size[1])
    return down[:, :, None] * across[:, None, :]


def top_scores(maps: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The highest scores of each cell and whose they are, counted from the mean of the others.

    What is added to all scores of a cell moves no softmax. So those that are left out, which count as 0 when a box is
    pooled, count as their mean.

    Args:
        maps: Scores before the softmax, `(B, K, h, w)`.
        top_k: k, 1 to K; K leaves none out, and scores count from the mean of all.

    Returns:
        Classes int64 and scores, both `(B, h, w, k)`, the highest first.
    """
    cells = maps.permute(0, 2, 3, 1)
    scores, classes = cells.topk(top_k)
    counted = cells if top_k == cells.shape[3] else cells.scatter(3, classes, 0.0)
    return classes, scores - counted.sum(3, keepdim=True) / (cells.shape[3] - top_k or top_k)


@final
class ReLabel(Answered):
    """Any datamodule whose training images have the soft labels of their own crops, out of a store of label maps.

    A store, which `lightning_vision relabel` makes, holds what a teacher said of every cell of each training image.
    Images are augmented as those of `data`; the part of an image that its crop shows is pooled out of its map, and the
    softmax of that, probabilities `(B, K)`, is the target. A crop beside the object then has the label of what it
    shows. Nothing is mirrored in the label, for a box is pooled as a mean. Training accuracy is agreement with the
    teacher; validation, test and prediction are those of `data`.

    Args:
        data: The datamodule that the store was made with; batch size, workers, sampler and augmentation are its own.
            The augmentation may be another one than it was then.
        store: Folder of the store.
        seed: Fixes order and augmentation of every epoch; None is the seed of `data`.

    Shape:
        image float32 `(B, C, H, W)` normalised, target float32 `(B, num_classes)`; in evaluation as `data`.

    Raises:
        ValueError: `data` is no datamodule with one label an image; at set-up of a fit, the store is missing,
            unfinished or damaged, or was made with other classes, images or normalisation, or the augmentation turns or
            bends images, so that what is left of one is no box.

    Example:
        >>> from lightning_vision.datamodules import Digits
        >>> ReLabel(Digits(shift=1), "store").num_classes
        10

    Reference: Yun et al. 2021, arXiv:2101.05022

    BibTeX:
        @inproceedings{yun2021relabel,
          title = {Re-labeling {ImageNet}: from Single to Multi-Labels, from Global to Localized Labels},
          author = {Yun, Sangdoo and Oh, Seong Joon and Heo, Byeongho and Han, Dongyoon and Choe, Junsuk and
            Chun, Sanghyuk},
          booktitle = {Conference on Computer Vision and Pattern Recognition},
          year = {2021},
          eprint = {2101.05022},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        Scores of a cell count from the mean of those that are not stored; the authors store them as they are and put 0
        in the place of the others, which depends on what a teacher adds to all of its scores. Boxes are clipped to the
        image, for windows may reach into padding. The label of an erased image is that of its whole box.

    See also:
        `Reinforced`, whose teacher answers to some augmentations of each image; `CutMix`, which mixes these labels.
    """

    command = "relabel"

    def __init__(self, data: VisionDataModule, store: str | Path, seed: int | None = None) -> None:
        super().__init__(data, store, seed)

    def answered_set(self, images: ImageSet, store: AnswerStore) -> ImageSet:
        if self.augmentation is not None:
            try:
                size = self.data.train_size or self.data.image_size
                self.augmentation.source_boxes(torch.zeros(1, self.augmentation.draws), size)
            except ValueError as error:
                raise ValueError(f"ReLabel pools the box that a crop shows, but {error}") from error
        return MappedImages(images, store)

    def expected(self, store: AnswerStore) -> dict[str, object]:
        return fingerprint(self.data, 0, augmented=False)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment (in training) and normalise; the maps become the soft labels of what the images still show."""
        if not answered(batch):
            return super().on_after_batch_transfer(batch, dataloader_idx)
        image, maps, index = batch
        size = (image.shape[2], image.shape[3])
        boxes = torch.tensor([[0.0, 0.0, size[1], size[0]]], device=image.device).expand(len(image), 4)
        if (drawn := self._drawn(index)) is not None:
            augmentation, uniform = drawn
            boxes = augmentation.source_boxes(uniform, size)
            image = augmentation.apply(image, uniform)
        return self.normalise(image), top_label_pooling(*unpacked(maps), boxes, size, self.num_classes)

    def _title(self, label: Tensor) -> str:
        if label.ndim < 3:
            return super()._title(label)
        whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        pooled = top_label_pooling(*unpacked(label[None]), whole, (1, 1), self.num_classes)[0]
        return f"{self.class_names[int(pooled.argmax())]} {float(pooled.max()):.2f}"


class MappedImages(ImageSet):
    """Images with the rows of a store of label maps in the place of labels.

    Args:
        images: The training set.
        store: Maps of its images.
    """

    def __init__(self, images: ImageSet, store: AnswerStore) -> None:
        self.images, self.store = images, store
        self.targets, self.answers = images.targets, f"{store.index['checksum']:08x}"

    def __len__(self) -> int:
        return len(self.images)

    def fetch(self, index: Tensor, epoch: int = 0) -> Fetched:
        fetched = self.images.fetch(index, epoch)
        try:
            maps = self.store.packed(fetched.index % len(self))
        except IndexError as error:
            raise SampleError(
                f"training image {error} could not be decoded when the store in {self.store.folder} was made, now it "
                "can; make the store again"
            ) from error
        return Fetched(fetched.image, maps, fetched.index, fetched.skipped)


def _in_cells(boxes: Tensor, size: tuple[int, int], map_size: tuple[int, int]) -> Tensor:
    """Boxes as left, top, right and bottom in cells of a map, within it."""
    cells = boxes.new_tensor([map_size[1] / size[1], map_size[0] / size[0]])
    corners = torch.stack([boxes[:, :2], boxes[:, 2:]]) * cells
    corners = corners.clamp(min=0).minimum(boxes.new_tensor([map_size[1], map_size[0]]))
    return torch.cat([corners.amin(0), corners.amax(0)], 1)


def _line_shares(first: Tensor, last: Tensor, cells: int) -> Tensor:
    """What each of the cells in a line counts in the mean from `first` to `last`, `(B, cells)`."""
    each = torch.eye(cells, device=first.device)[None, :, :, None]
    none, one = torch.zeros_like(first), torch.ones_like(first)
    return roi_align(each, torch.stack([none, none, first, one, last], 1), 1, aligned=True).flatten(1)

"""Open Images' mean average precision, over an epoch and over all ranks."""

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torchmetrics import Metric

from ._coco_rows import COLUMNS, append_batch, image_numbers, merged
from ._open_images_counts import Ancestry, Protocol, Verification, average_precisions
from ._packed import Packed

__all__ = ["OpenImagesMAP"]

Found = Mapping[str, Tensor]

VERIFIED = {"told": ("u1", 1), "verified": ("i4", 3)}
"""Of each image whether anything is said of its classes; and image, label, whether the class is there."""


@final
class OpenImagesMAP(Metric):
    """Mean average precision at an overlap of one half as the Open Images Challenge counts it, of boxes.

    In each image only classes count that were verified there, as present or as absent, or that have a box; detections
    of others neither help nor harm. A box around a group of objects is found by any detections of which at least half
    lies inside: the best of them counts once, the others are ignored, and a group that none finds is missed. A box of a
    class is one of its ancestors', too. Boxes are judged in the pixels of the original images, and images are told
    apart by `image_id`. Use it as `CocoMAP`: `reset`, `update` with each batch, `compute` on all ranks, then
    `per_class`. Every rank makes the same three collective calls; rank 0 alone computes.

    Args:
        num_classes: K; labels are 1..K.
        protocol: `open_images`: a detection goes to the object that it overlaps most, and is false where a better one
            has taken that; precision is averaged over recall exactly, as VOC does since 2010. `coco`: it goes to the
            best object that is left, the best 100 of an image and class count, and precision is averaged over 101
            recalls; without groups and where all is verified that is COCO's mAP at 0.5.
        group_weight: What a group is worth beside an object, 0..1: 1 is the Challenge's; 0 ignores groups and what lies
            in them, as the metric of Open Images V2 does, and as COCO does crowds.
        ancestors: For each label 1..K the labels of its ancestors, `OpenImages.ancestors`: boxes, detections and what
            is present count for these, too, and what is absent for its descendants. None where the data say all that
            already and the detector has learned it.

    Raises:
        ValueError: an argument is out of its range; in `update`, a label is outside 1..K, or `verified` is not K wide.

    Example:
        >>> metric = OpenImagesMAP(num_classes=2)
        >>> box, unsure = torch.tensor([[0.0, 0.0, 9.0, 9.0]]), torch.tensor([1.0, torch.nan])
        >>> found = {"boxes": box.repeat(2, 1), "labels": torch.tensor([1, 2]), "scores": torch.tensor([0.5, 0.9])}
        >>> metric.update([found], [{"boxes": box, "labels": torch.tensor([1]), "verified": unsure}])
        >>> metric.compute()["map_50"]
        tensor(1.)

    Reference: Kuznetsova et al. 2020, arXiv:1811.00982
    """

    full_state_update = False

    def __init__(
        self,
        num_classes: int,
        protocol: Protocol = "open_images",
        group_weight: float = 1.0,
        ancestors: Sequence[Sequence[int]] | None = None,
    ) -> None:
        # As in CocoMAP: ranks gather by calls of their own.
        super().__init__(sync_on_compute=False, compute_with_cache=False)
        if num_classes < 1 or not 0 <= group_weight <= 1:
            raise ValueError(
                f"OpenImagesMAP: num_classes is {num_classes} and group_weight {group_weight}; give at least 1 class, "
                "and a weight in 0..1"
            )
        if protocol not in ("open_images", "coco"):
            raise ValueError(f"OpenImagesMAP: protocol is {protocol!r}; give open_images or coco")
        if ancestors is not None:
            _check_ancestors(ancestors, num_classes)
        self.num_classes, self.protocol, self.group_weight = num_classes, protocol, group_weight
        self.ancestry = None if ancestors is None else Ancestry(ancestors)
        self._rows, self._result = Packed(COLUMNS | VERIFIED), np.zeros((2, 0))

    def forward(self, *_: Any, **__: Any) -> None:
        """Refused: average precision of one batch is no part of an epoch's.

        Raises:
            TypeError: always.
        """
        raise TypeError("OpenImagesMAP has no value for a batch; call update with each batch and compute at the end")

    def reset(self) -> None:
        """Begin an epoch: forget the images of an earlier or an interrupted one."""
        super().reset()
        self._rows, self._result = Packed(COLUMNS | VERIFIED), np.zeros((2, 0))

    def update(self, results: Sequence[Found], targets: Sequence[Found]) -> None:
        """Count the images of a batch.

        Args:
            results: Of each image `boxes` `(D, 4)` left, top, right, bottom in the batch's pixels, `labels` and
                `scores` `(D,)`.
            targets: Of each image `boxes` and `labels` and, where they are known, `iscrowd` (groups), `image_id`,
                `placement`, `size` and `verified`, float `(K,)`: 1 present, 0 absent, NaN unknown; without it every
                class counts.
        """
        first, tables = len(self._rows["images"]), [it["verified"] for it in targets if "verified" in it]
        if wrong := [tuple(table.shape) for table in tables if table.shape != (self.num_classes,)]:
            raise ValueError(f"verified has shape {wrong[0]}; give a number for each of the {self.num_classes} classes")
        append_batch(self._rows, results, targets, self.num_classes, masks=False)
        told = np.array(["verified" in it for it in targets], dtype=bool)
        self._rows.append("told", told[:, None])
        if tables:
            answers = torch.stack(tables).float().cpu().numpy()
            image, label = np.nonzero(~np.isnan(answers))
            number = first + np.flatnonzero(told)[image]
            self._rows.append("verified", np.column_stack([number, label + 1, answers[image, label] > 0.5]))

    def compute(self) -> dict[str, Tensor]:
        """`map_50`, the mean over the classes that have an object, a float32 scalar in 0..1; -1 where none has.

        Raises:
            RuntimeError: on other ranks, rank 0 could not.
        """
        together = dist.is_available() and dist.is_initialized()
        # One that takes tensors of the host spares the accelerator all of this.
        device = torch.device("cpu") if not together or "gloo" in str(dist.get_backend()) else self.device
        parts = self._rows.gathered(device)
        result = torch.full((2, self.num_classes), torch.nan, dtype=torch.float64)
        try:
            if parts is not None:
                result = torch.from_numpy(self._judge(parts))
        finally:  # other ranks wait also where this fails
            if together:
                result = result.to(device)
                dist.broadcast(result, 0)
        self._result = result.cpu().numpy()
        if np.isnan(self._result).any():
            raise RuntimeError(
                "OpenImagesMAP: rank 0 could not compute the average precision; its own message says why"
            )
        defined = self._result[0][self._result[0] >= 0]
        return {"map_50": torch.tensor(float(defined.mean()) if len(defined) else -1.0)}

    def per_class(self, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """After `compute`, for each class `class`, `support`, what its objects and groups are worth, and `map_50`, -1
        where it has none."""
        return [
            {"class": name, "support": worth, "map_50": precision}
            for name, precision, worth in zip(class_names, *self._result.tolist(), strict=True)
        ]

    def _judge(self, parts: Sequence[Packed]) -> np.ndarray:
        pairs, _, repeated = merged(parts, masks=False)
        if repeated:
            rank_zero_warn(f"{repeated} images came more than once by their `image_id`; OpenImagesMAP counts each once")
        number, kept = image_numbers([part["images"] for part in parts])
        starts = np.cumsum([0, *(len(part["images"]) for part in parts)])
        told = np.zeros(number.max(initial=-1) + 1, bool)
        told[number[kept]] = np.concatenate([part["told"] for part in parts])[kept, 0] > 0
        rows = np.concatenate([part["verified"] for part in parts])
        seen_as = rows[:, 0] + np.repeat(starts[:-1], [len(part["verified"]) for part in parts])
        rows, seen_as = rows[kept[seen_as]], seen_as[kept[seen_as]]
        verification = Verification(told, number[seen_as], rows[:, 1].astype(int), rows[:, 2] > 0)
        found = average_precisions(
            *pairs[""], verification, self.num_classes, self.protocol, self.group_weight, self.ancestry
        )
        return np.stack(found)


def _check_ancestors(ancestors: Sequence[Sequence[int]], num_classes: int) -> None:
    if len(ancestors) != num_classes:
        raise ValueError(f"OpenImagesMAP: ancestors has {len(ancestors)} entries for {num_classes} classes")
    for label, above in enumerate(ancestors, 1):
        if len({*above, label}) != len(above) + 1 or not all(1 <= it <= num_classes for it in above):
            raise ValueError(
                f"OpenImagesMAP: the ancestors of label {label} are {list(above)}; give other labels in "
                f"1..{num_classes}, each once"
            )

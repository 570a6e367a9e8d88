"""COCO's mean average precision, over an epoch and over all ranks."""

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any, final

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torchmetrics import Metric

from ._coco_counts import evaluate, scalar_names
from ._coco_rows import append_batch, empty_rows, merged
from ._packed import Packed

__all__ = ["CocoMAP"]

Found = Mapping[str, Tensor]


@final
class CocoMAP(Metric):
    """Mean average precision as COCO's own evaluation counts it, of boxes and, where asked, of masks.

    `reset` it when an epoch of evaluation begins, `update` it with each batch, then call `compute` on all ranks; after
    that `per_class`, `table` and `seconds` say more of that epoch. Boxes are judged in the pixels of the original
    images; detections of an object inside a crowd neither help nor harm. Images are told apart by `image_id`, so one
    that a sampler repeats counts once. Nothing of it is in a checkpoint, for no evaluation is resumed in its middle.

    Every rank makes the same three collective calls whatever it has seen; rank 0 alone computes.

    Args:
        num_classes: K; labels are 1..K.
        masks: Judge masks too, under names that begin with `segm_`.
        max_detections: Of each image and class the best so many count, COCO's is 100; `mar_` of that name says how
            many objects they find.

    Raises:
        ValueError: an argument is no positive number; in `update`, a label is outside 1..K or there are no masks.

    Example:
        >>> metric = CocoMAP(num_classes=3)
        >>> box, label = torch.tensor([[2.0, 2.0, 12.0, 8.0]]), torch.tensor([3])
        >>> found = {"boxes": box, "labels": label, "scores": torch.tensor([0.9])}
        >>> metric.update([found], [{"boxes": box, "labels": label}])
        >>> metric.compute()["map"]
        tensor(1.)

    Reference: Lin et al. 2014, arXiv:1405.0312
    """

    full_state_update = False

    def __init__(self, num_classes: int, masks: bool = False, max_detections: int = 100) -> None:
        # Lists as state, which torchmetrics would gather one by one, hang where ranks have seen unequal numbers of
        # images; and a cached result would keep one rank from calls that the others make.
        super().__init__(sync_on_compute=False, compute_with_cache=False)
        if num_classes < 1 or max_detections < 1:
            raise ValueError(
                f"CocoMAP: num_classes is {num_classes} and max_detections {max_detections}; give at least 1 of each"
            )
        self.num_classes, self.masks, self.max_detections = num_classes, masks, max_detections
        self.detections = sorted({min(most, max_detections) for most in (1, 10, max_detections)})
        self.names = [prefix + name for prefix in self._kinds for name in scalar_names(self.detections)]
        self.seconds = 0.0
        self._since = perf_counter()
        self._rows = empty_rows(masks)
        self._result = np.zeros(0)

    def forward(self, *_: Any, **__: Any) -> None:
        """Refused: average precision of one batch is no part of an epoch's.

        Raises:
            TypeError: always.
        """
        raise TypeError("CocoMAP has no value for a batch; call update with each batch and compute at the end")

    def reset(self) -> None:
        """Begin an epoch: forget the images of an earlier or an interrupted one."""
        super().reset()
        self.seconds, self._since = 0.0, perf_counter()
        self._rows, self._result = empty_rows(self.masks), np.zeros(0)

    def update(self, results: Sequence[Found], targets: Sequence[Found]) -> None:
        """Count the images of a batch.

        Args:
            results: Of each image `boxes` `(D, 4)` left, top, right, bottom in the batch's pixels, `labels` and
                `scores` `(D,)` and, where masks are judged, `masks` `(D, H, W)` or `(D, 1, H, W)`.
            targets: Of each image `boxes` and `labels` and, where they are known, `iscrowd`, `area` in square pixels
                of the original image, `image_id`, `placement`, `size` and `masks`.
        """
        start = perf_counter()
        append_batch(self._rows, results, targets, self.num_classes, self.masks)
        self.seconds += perf_counter() - start

    def compute(self) -> dict[str, Tensor]:
        """Averages over all classes, float32 scalars in 0..1; -1 where there is nothing to find.

        `map` over overlaps of 0.5 to 0.95, `map_50`, `map_75`, `map_small` (objects below 32^2 pixels of the original
        image), `map_medium`, `map_large` (above 96^2), and the recall of the best 1, 10 and `max_detections` of each
        image: `mar_1`, `mar_10`, `mar_100`, `mar_small`, `mar_medium`, `mar_large`.

        Raises:
            RuntimeError: on other ranks, rank 0 could not.
        """
        start = perf_counter()
        together = dist.is_available() and dist.is_initialized()
        # One that takes tensors of the host spares the accelerator all of this.
        device = torch.device("cpu") if not together or "gloo" in str(dist.get_backend()) else self.device
        parts = self._rows.gathered(device)
        kinds, each = len(self._kinds), len(scalar_names(self.detections))
        result = torch.full((1 + kinds * (each + 4 * self.num_classes) + self.num_classes,), torch.nan).double()
        try:
            if parts is not None:
                result[1:] = torch.from_numpy(self._judge(parts))
                result[0] = 1
        finally:  # other ranks wait also where this fails
            if together:
                result = result.to(device)
                dist.broadcast(result, 0)
        if result[0] != 1:
            raise RuntimeError("CocoMAP: rank 0 could not compute the average precision; its own message says why")
        self._result = result[1:].cpu().numpy()
        self.seconds += perf_counter() - start
        return {name: torch.tensor(value) for name, value in zip(self.names, self._scalars(), strict=True)}

    def per_class(self, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """After `compute`, for each class `class`, `support` (objects, crowds apart), `map`, `map_50`, `map_75` and
        `mar_100`, with masks also `segm_map` and so on; -1 where there is nothing to find."""
        kinds, each = len(self._kinds), len(scalar_names(self.detections))
        classes = self._result[kinds * each : -self.num_classes].reshape(kinds, self.num_classes, 4)
        support = self._result[-self.num_classes :]
        names = ("map", "map_50", "map_75", f"mar_{self.max_detections}")
        return [
            {"class": name, "support": int(support[label])}
            | {
                prefix + score: float(classes[kind, label, place])
                for kind, prefix in enumerate(self._kinds)
                for place, score in enumerate(names)
            }
            for label, name in enumerate(class_names)
        ]

    def table(self) -> str:
        """After `compute`, COCO's lines, and what share of the time since `reset` evaluation took."""
        lines = []
        for name, value in zip(self.names, self._scalars(), strict=True):
            kind, _, rest = name.removeprefix("segm_").partition("_")
            precision = kind == "map"
            overlap = f"0.{rest}" if precision and rest.isdigit() else "0.50:0.95"
            most = int(rest) if not precision and rest.isdigit() else self.max_detections
            area = rest if rest.isalpha() else "all"
            title = "Average Precision (AP)" if precision else "Average Recall    (AR)"
            masks = " of masks" if name.startswith("segm_") else ""
            lines.append(f"{title}{masks} @[ IoU={overlap:9} | area={area:>6} | maxDets={most:3} ] = {value:.3f}")
        share = self.seconds / max(perf_counter() - self._since, 1e-9)
        return "\n".join([*lines, f"evaluated in {self.seconds:.2f} s, {share:.0%} of the epoch"])

    @property
    def _kinds(self) -> tuple[str, ...]:
        return ("", "segm_") if self.masks else ("",)

    def _scalars(self) -> list[float]:
        return [float(value) for value in self._result[: len(self.names)]]

    def _judge(self, parts: Sequence[Packed]) -> np.ndarray:
        """The scalars of boxes, then of masks; the classes' of boxes, then of masks; objects of each class."""
        pairs, images, repeated = merged(parts, self.masks)
        if repeated:
            rank_zero_warn(f"{repeated} images came more than once by their `image_id`; CocoMAP counts each once")
        scores = [evaluate(*pairs[kind], images, self.num_classes, self.detections) for kind in self._kinds]
        known = pairs[""][0]
        support = np.bincount(known.label[known.value == 0], minlength=self.num_classes + 1)[1:]
        return np.concatenate([*(whole for whole, _ in scores), *(each.ravel() for _, each in scores), support])

"""What is said of a detector's findings while it is validated and tested, apart from what it learns."""

from time import perf_counter
from typing import Any, ClassVar, Literal

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_vision.base.module import VisionModule

from .coco_metric import CocoMAP

__all__ = ["EvaluatedDetector"]


class EvaluatedDetector(VisionModule):
    """Base of detectors, judged by COCO's numbers in `val_map` and `test_map`, which a subclass makes.

    Args:
        optimizer: As `VisionModule`.
        lr_scheduler: As `VisionModule`.
        lr_interval: As `VisionModule`.
        no_decay_norm_bias: As `VisionModule`.
    """

    judged_by: ClassVar[str] = "val/map"
    val_map: CocoMAP
    test_map: CocoMAP

    def __init__(
        self,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        lr_interval: Literal["epoch", "step"],
        no_decay_norm_bias: bool,
    ) -> None:
        super().__init__(optimizer, lr_scheduler, lr_interval, no_decay_norm_bias, 1.0, 1.0)
        self.per_class: list[dict[str, Any]] = []
        self.coco_table = ""
        self._fit_since = self._judged = 0.0

    def setup(self, stage: str) -> None:
        """Compare sizes and masks with the datamodule and take over its preprocessing.

        Raises:
            ValueError: as `VisionModule.setup`; Mask R-CNN would learn from a datamodule that gives no masks; the
                trainer would round boxes to half precision, in which pixels beyond 256 have no places of their own.
        """
        super().setup(stage)
        if (precision := str(self.trainer.precision)) in ("16-true", "bf16-true"):
            mixed = precision.replace("true", "mixed")
            raise ValueError(f"precision {precision} rounds boxes by pixels; train a detector with precision {mixed}")
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if self.val_map.masks and stage != "predict" and getattr(datamodule, "masks", True) is False:
            source = type(datamodule).__name__
            raise ValueError(f"mask_rcnn draws masks and {source} gives none; pass it masks=True, or take faster_rcnn")

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        return self._evaluate(batch, self.val_map)

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        return self._evaluate(batch, self.test_map)

    def on_fit_start(self) -> None:
        self._fit_since, self._judged = perf_counter(), 0.0

    def on_fit_end(self) -> None:
        # Told and not logged: what is logged of a run is equal whenever it runs.
        if self._judged:
            share = self._judged / (perf_counter() - self._fit_since)
            rank_zero_info(f"Average precision took {self._judged:.1f} s, {share:.1%} of the fit")

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.val_map.reset()

    def on_test_epoch_start(self) -> None:
        super().on_test_epoch_start()
        self.test_map.reset()

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self._finish("val", self.val_map)

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        self._finish("test", self.test_map)
        self.per_class, self.coco_table = self.test_map.per_class(self.class_names), self.test_map.table()

    @property
    def class_names(self) -> list[str]:
        """Names of the K classes, label 1 first; their numbers where no datamodule has named them."""
        names = (self.preprocessing or {}).get("class_names")
        return list(names) if names else [str(k) for k in range(1, self.num_classes + 1)]

    @property
    def category_ids(self) -> list[int]:
        """What the source calls the K classes, label 1 first; the labels themselves where no datamodule has said it."""
        return list((self.preprocessing or {}).get("category_ids") or range(1, self.num_classes + 1))

    def _evaluate(self, batch: Any, metric: CocoMAP) -> dict[str, Any]:
        images, targets = batch
        results = self(images)
        metric.update(results, targets)
        return {"results": results, "targets": targets}

    def _finish(self, stage: str, metric: CocoMAP) -> None:
        values = {f"{stage}/{name}": value.to(self.device) for name, value in metric.compute().items()}
        # Equal on all ranks, of which their maximum is exact; without `sync_dist` Lightning advises to set it.
        self.log_dict(values, sync_dist=True, reduce_fx="max")
        self._judged += metric.seconds

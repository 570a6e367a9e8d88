"""What a classifier gets wrong: which classes it confuses, and which images it is most sure and wrong about."""

from pathlib import Path
from typing import Any, Literal, final

from lightning.pytorch import LightningModule, Trainer

from ..hooks._checks import whole
from ..hooks._class_counts import check_counts, class_counts
from ..hooks._metadata import Pixels
from ..hooks.best_report import BestReport
from ..hooks.evaluation import Stage
from ._tally import ClassTally
from .long_tail import shot_accuracy

__all__ = ["ClassificationReport"]


@final
class ClassificationReport(BestReport):
    """Writes confusion matrix, per-class table and the worst mistakes of the best validation and of a test.

    It looks at the logits that the module's forward gives in a validation or test step, of any module, and at the
    labels of the batch. When a fit ends, the report of its best validation is written, when a `test` or `validate`
    ends, that one's: `val_per_class.csv`, `val_confusion.png` and `val_mistakes.png` (or `test_...`) in `report/`
    beside the run's checkpoints, which is the first logger's folder or `default_root_dir`; the worst classes and the
    most frequent confusions are printed. Over several processes the counts are sums. Training sees nothing of it.

    Three attributes of a module are heeded where it has them, as this project's classifier does: `multilabel`, whether
    an image may have several labels; `calibration`, which is called on the logits; and `thresholds`, the probability
    above which each label is there, as it stands at the end of the validation or test.

    Args:
        monitor: Logged value by which the best validation of a fit is told; None reports the latest.
        mode: `min` if a small value of `monitor` is good, `max` if a large one.
        worst: Mistakes on the sheet, images, >= 0; 0 makes none. They are kept as uint8 of at most 96 pixels a side.
        every_n_epochs: While fitting, only validations of every n-th epoch take part, from the first on, >= 0.
            Neutral: 0, which also silences tests.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, if batches are mappings; in other batches they come second.
        long_tail: Training images of a class below which it is one of few shots, and above which one of many, as [20,
            100]; then loggers get the accuracy of the many, the medium and the few as `val/shots/many` and so on, after
            every watched validation and test. None leaves it out.
        class_counts: Training images of each class for that; None asks the datamodule's `class_counts`, or the labels
            of the training set.
        name: Part of the state key.

    Shape:
        Logits `(B, K)`, of which a single one decides between the classes 0 and 1; labels int `(B,)` (outside 0..K-1
        are passed over), or 0 and 1 `(B, K)` for several labels an image, where each counts as a decision, yes above
        its threshold, else above a half, and there is no confusion matrix, but average precision; with one label
        (`multilabel` False) the largest of the K is the class. Images `(B, C, H, W)`, normalised by the datamodule's
        `mean` and `std` if it has them; others give no sheet. With several labels N images take 5 N K bytes of the
        CPU's memory until the evaluation ends.

    Raises:
        ValueError: an argument out of its range; a second one in the Trainer; in the first batch, sanity check
            included, if a step asks forward for no logits or labels do not fit them; after the first validation, if
            nothing is logged under `monitor`, or `long_tail` needs class counts that nobody tells, or there are
            several labels an image.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import ClassificationReport
        >>> trainer = Trainer(callbacks=[ClassificationReport(worst=12)], accelerator="cpu", logger=False)

    See also:
        `lightning_vision.classification.ImageClassifier`, which logs F1 and calibration as numbers.
    """

    def __init__(
        self,
        monitor: str | None = "val/loss",
        mode: Literal["min", "max"] = "min",
        worst: int = 24,
        every_n_epochs: int = 1,
        image_key: str = "image",
        target_key: str = "target",
        long_tail: list[int] | None = None,
        class_counts: list[int] | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(
            monitor=monitor,
            mode=mode,
            every_n_epochs=every_n_epochs,
            image_key=image_key,
            target_key=target_key,
            name=name,
        )
        whole("ClassificationReport", "worst", worst, 0)
        if long_tail is not None:
            if not isinstance(long_tail, (list, tuple)) or len(long_tail) != 2:
                raise ValueError(f"ClassificationReport: long_tail is {long_tail!r}; give two numbers, as [20, 100].")
            whole("ClassificationReport", "the first of long_tail", long_tail[0], 1)
            whole("ClassificationReport", "the second of long_tail", long_tail[1], long_tail[0])
        check_counts("ClassificationReport", "class_counts", class_counts)
        self.worst, self.long_tail, self.class_counts = worst, long_tail, class_counts

    def ready(self, trainer: Trainer) -> None:
        if self.long_tail is not None:
            class_counts("ClassificationReport", trainer, self.class_counts, "class_counts")

    def tally(self, pl_module: LightningModule, names: list[str] | None, pixels: Pixels | None) -> ClassTally:
        return ClassTally(self.worst, names, pixels, pl_module)

    def reported(self, trainer: Trainer, report: dict[str, Any], stage: Stage) -> None:
        if self.long_tail is None:
            return
        if report["multilabel"]:
            raise ValueError(
                "ClassificationReport: long_tail parts images by their one class, and these have several labels; leave "
                "it out."
            )
        training = class_counts("ClassificationReport", trainer, self.class_counts, "class_counts")
        shots = shot_accuracy(report["counts"], training, *self.long_tail)
        for logger in trainer.loggers if trainer.is_global_zero else ():
            logger.log_metrics(
                {f"{stage}/shots/{shot}": accuracy for shot, (accuracy, _) in shots.items()}, trainer.global_step
            )

    def write(self, report: dict[str, Any], stage: Stage, heading: str, folder: Path) -> None:
        # Here, for matplotlib takes a while to import and most runs end elsewhere.
        from PIL import Image

        from ._sheets import confusion_sheet, mistake_sheet
        from ._table import told, write_csv

        write_csv(report, folder / f"{stage}_per_class.csv")
        if len(report["confusions"]) or not report["multilabel"]:
            Image.fromarray(confusion_sheet(report)).save(folder / f"{stage}_confusion.png")
        if report["images"] is not None:
            Image.fromarray(mistake_sheet(report)).save(folder / f"{stage}_mistakes.png")
        print(f"{told(report, heading)}\nin {folder}")

"""The task of naming what an image shows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from lightning_vision import backbones
from lightning_vision.base.hyperparameters import is_description, rebuild
from lightning_vision.base.module import VisionModule
from lightning_vision.base.param_groups import classifier_names, required_classifier
from lightning_vision.base.weights import load_weights

from ._file_predictions import predict_files
from .balancing import Balancing
from .bit import zero_classifier
from .label_metrics import LabelMetrics
from .losses import BinaryCrossEntropy, CrossEntropy, Focal, make_loss
from .metrics import EpochMetrics, accuracies, accuracy, label_accuracy
from .targets import image_and_target, known_labels
from .thresholds import NO_CHOICE

if TYPE_CHECKING:
    from .calibration import Calibration

__all__ = ["ImageClassifier"]


class ImageClassifier(VisionModule):
    """Trains a network to name what an image shows.

    Logs `train/loss` and `train/acc` (each with `_step` and `_epoch`), and under `val/` and `test/`: `loss`, `acc`,
    `f1` (macro), `ece` (calibration error) and, with more than five classes, `acc_top5`. After a test `per_class` holds
    a row for each class. `loss="bce"` means several labels an image; `acc` is then the share of right decisions, and
    `map`, mean average precision, is logged too.

    Args:
        backbone: Name of a network (`lightning_vision list backbones`, or any of timm's), or a module that maps images
            `(B, C, H, W)` to logits `(B, K)`. A module can be described as `{"class_path", "init_args"}`.
        num_classes: K; the command takes it from the datamodule.
        in_channels: C; the command takes it from the datamodule, elsewhere None means 3.
        pretrained: Start from timm's weights for `backbone`, from its hub.
        weights: Start from a file: safetensors, a torch file or a checkpoint. It goes before `pretrained`, so it is
            all that must be given where there is no network.
        loss: `cross_entropy`, `bce` (several labels), `focal`, or a module called with logits and target.
        label_smoothing: Share of the target spread over all classes, 0..1; neutral 0.
        class_weights: Weight of each class in the loss, K numbers, or `balanced`: from the training images that a fit
            finds, n / (K n_k) for each class; with `bce` each label's yes weighs (n - n_k) / n_k times its no, which is
            torch's `pos_weight`. Before its first fit such a module evaluates unweighted.
        logit_adjustment: tau, the factor on the log of each class's share of the training images that is added to the
            logits of training (`LogitAdjustment`), for `cross_entropy`; evaluation sees plain logits. Neutral 0.
        optimizer: Makes the optimizer from parameter groups.
        lr_scheduler: Makes the schedule from the optimizer; None keeps the learning rate.
        lr_interval: Whether the schedule counts epochs or optimizer steps.
        no_decay_norm_bias: Spare norms, biases and what timm's network lists from weight decay.
        layer_decay: Factor on the learning rate for each layer below the classifier, fraction; neutral 1.
        head_lr_multiple: Factor on the learning rate of the classifier; neutral 1.
        freeze_backbone: Train only the classifier; everything else stays in evaluation mode.
        drop_rate: Dropout before the classifier, fraction; neutral 0.
        drop_path_rate: Stochastic depth, fraction; neutral 0.
        zero_head: Start the classifier at zero, as Big Transfer does when it fine-tunes.
        backbone_settings: Further arguments of the backbone's constructor, for example `img_size: 24`; those with which
            a network was pretrained, where a file of its own is to fit.

    Shape:
        Batches are `(image, target)` or a mapping with these keys: image float32 `(B, C, H, W)` normalised, target
        int64 `(B,)` or probabilities `(B, K)`.

    Raises:
        ValueError: an argument is missing, unknown or does not fit another one.
        FileNotFoundError: `weights` names no file.

    Example:
        >>> module = ImageClassifier("resnet8_cifar", num_classes=10, in_channels=1)
        >>> module(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    superseded = MappingProxyType({"pretrained": False, "weights": None})

    def __init__(
        self,
        backbone: str | nn.Module,
        num_classes: int | None = None,
        in_channels: int | None = None,
        pretrained: bool = False,
        weights: str | None = None,
        loss: Literal["cross_entropy", "bce", "focal"] | nn.Module = "cross_entropy",
        label_smoothing: float = 0.0,
        class_weights: list[float] | Literal["balanced"] | None = None,
        logit_adjustment: float = 0.0,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        no_decay_norm_bias: bool = True,
        layer_decay: float = 1.0,
        head_lr_multiple: float = 1.0,
        freeze_backbone: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        zero_head: bool = False,
        backbone_settings: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(optimizer, lr_scheduler, lr_interval, no_decay_norm_bias, layer_decay, head_lr_multiple)
        self.save_hyperparameters()
        if num_classes is None:
            raise ValueError("ImageClassifier needs num_classes; from Python pass it, for example num_classes=10")
        self.num_classes, self.in_channels = num_classes, 3 if in_channels is None else in_channels
        self.freeze_backbone = freeze_backbone
        self.per_class: list[dict[str, Any]] = []
        self.calibration: Calibration | None = None
        if is_description(backbone):
            backbone = rebuild(backbone, nn.Module)()
        self.network = backbones.create(
            backbone,
            num_classes=self.num_classes,
            in_channels=self.in_channels,
            pretrained=pretrained and weights is None,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            **(backbone_settings or {}),
        )
        # An ensemble of checkpoints brings theirs along.
        self.preprocessing = getattr(self.network, "preprocessing", None)
        if weights is not None:
            load_weights(self.network, weights)
        if zero_head:
            zero_classifier(self.network)
        if freeze_backbone:
            self._freeze()
        if is_description(loss):
            loss = rebuild(loss, nn.Module)()
        self.criterion = make_loss(loss, self.num_classes, label_smoothing, class_weights, logit_adjustment)
        self.balancing = Balancing(class_weights == "balanced", logit_adjustment)
        self.multilabel = isinstance(self.criterion, (BinaryCrossEntropy, nn.BCEWithLogitsLoss))
        # An ensemble's members were trained for one kind of labels, which only the loss tells from the other.
        if getattr(self.network, "multilabel", self.multilabel) is not self.multilabel:
            kind, criterion = type(self.network).__name__, type(self.criterion).__name__
            given = "one label an image and {} expects several; leave loss='bce' out"
            if not self.multilabel:
                given = "several labels an image and {} expects one; pass loss='bce'"
            raise ValueError(f"the {kind} given as backbone gives {given.format(criterion)}")
        metrics = LabelMetrics if self.multilabel else EpochMetrics
        self.val_metrics, self.test_metrics = metrics(self.num_classes), metrics(self.num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Logits `(B, K)` of normalised images `(B, C, H, W)`."""
        logits: Tensor = self.network(image)
        return logits

    def train(self, mode: bool = True) -> "ImageClassifier":
        """Switch to training; a frozen backbone stays in evaluation, with the statistics of its batch norms."""
        super().train(mode)
        if self.freeze_backbone:
            self.network.eval()
            for name in classifier_names(self.network):
                self.network.get_submodule(name.removesuffix(".")).train(mode)
        return self

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        image, target = image_and_target(batch)
        logits = self(image)
        loss = self._loss(self.balancing(logits), target)
        known = known_labels(target, self.num_classes, self.multilabel)
        acc = label_accuracy(logits, known) if self.multilabel else accuracy(logits.detach(), known)
        self.scalars.log("train", {"loss": loss, "acc": acc}, len(image))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate("val", batch, self.val_metrics)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate("test", batch, self.test_metrics)

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """`{"index": (B,), "probabilities": (B, K), "target": (B,)}`; index and target where the batch has them."""
        if not isinstance(batch, Mapping):
            batch = dict(zip(("image", "target"), batch, strict=False))
        kept = {name: batch[name] for name in ("index", "target") if name in batch}
        return {**kept, "probabilities": self.probabilities(batch["image"])}

    def probabilities(self, image: Tensor) -> Tensor:
        """Calibrated probabilities `(B, K)` of normalised images `(B, C, H, W)`; several labels stand alone."""
        return self._probabilities(self._calibrated(image))

    def predict(
        self, paths: Sequence[str | Path] | str | Path, batch_size: int = 64, top_k: int = 5
    ) -> list[dict[str, Any]]:
        """Name what image files show; scaling and normalisation are those of training and travel in the checkpoint.

        Args:
            paths: Files of any size and mode.
            batch_size: Images at once.
            top_k: Classes to list for each image.

        Returns:
            One record a file, see `records.prediction_records`; `index` counts the files.

        Raises:
            ValueError: the module has met no datamodule, or a file is no image.
            FileNotFoundError: a file does not exist.
        """
        return predict_files(self, paths, batch_size, top_k)

    @property
    def thresholds(self) -> list[float] | None:
        """Above which probability each label is said to be there, K numbers; None with one label an image.

        A half, until the first validation's end chooses them for the largest F1 of each label.
        """
        return self.val_metrics.thresholds

    @thresholds.setter
    def thresholds(self, chosen: list[float] | None) -> None:
        self.val_metrics.thresholds = self.test_metrics.thresholds = chosen

    @property
    def class_names(self) -> list[str]:
        """Names of the K classes; their numbers where no datamodule has named them."""
        names = (self.preprocessing or {}).get("class_names")
        return list(names) if names else [str(k) for k in range(self.num_classes)]

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        if isinstance(self.val_metrics, LabelMetrics) and not self.trainer.sanity_checking:
            self.thresholds = self.val_metrics.best_thresholds()
        self._finish("val", self.val_metrics)

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        self.per_class = self.test_metrics.per_class(self.class_names)
        self._finish("test", self.test_metrics)

    def setup(self, stage: str) -> None:
        """Compare sizes with the datamodule and take over its preprocessing; a fit that balances also its class counts.

        Raises:
            ValueError: the datamodule has another number of classes or channels or several labels an image where the
                loss expects one, or cannot tell the counts; its sampler balances already.
        """
        super().setup(stage)
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        one_label = isinstance(self.criterion, (CrossEntropy, Focal, nn.CrossEntropyLoss))
        if one_label and getattr(datamodule, "multilabel", False) is True:
            source, loss = type(datamodule).__name__, type(self.criterion).__name__
            raise ValueError(f"{source} has several labels an image and {loss} expects one; pass loss='bce'")
        if stage == "fit" and self.balancing.wanted_by:
            counts = self.trainer.strategy.broadcast(self.balancing.count(datamodule, self.num_classes))
            self.balancing.use(counts, self.criterion, self.device)

    def on_fit_start(self) -> None:
        if self.calibration is not None:
            rank_zero_warn(
                "the calibration belongs to weights that this fit changes, so it is dropped; calibrate again after it"
            )
            self.calibration = None
        if self.multilabel and not self.trainer.ckpt_path:
            self.thresholds = [NO_CHOICE] * self.num_classes

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["calibration"] = None if self.calibration is None else self.calibration.state()
        checkpoint["class_counts"], checkpoint["thresholds"] = self.balancing.training_counts, self.thresholds

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.calibration = None
        if state := checkpoint.get("calibration"):
            from .calibration import Calibration

            self.calibration = Calibration.from_state(state).to(self.device)
        if self.balancing.wanted_by and (counts := checkpoint.get("class_counts")):
            self.balancing.use(counts, self.criterion, self.device)
        if self.multilabel:
            self.thresholds = checkpoint.get("thresholds") or [NO_CHOICE] * self.num_classes

    def _calibrated(self, image: Tensor) -> Tensor:
        """Logits as evaluation and prediction see them: those of the network, or what its calibration makes of them."""
        logits: Tensor = self(image) if self.calibration is None else self.calibration.logits(self, image)
        return logits

    def _evaluate(self, stage: str, batch: Any, metrics: EpochMetrics | LabelMetrics) -> None:
        image, target = image_and_target(batch)
        logits = self._calibrated(image)
        known = known_labels(target, self.num_classes, self.multilabel)
        right = {"acc": label_accuracy(logits, known)} if self.multilabel else accuracies(logits, known)
        self.scalars.log(stage, {"loss": self._loss(logits, target), **right}, len(image))
        metrics.update(self._probabilities(logits), known)

    def _finish(self, stage: str, metrics: EpochMetrics | LabelMetrics) -> None:
        values = {f"{stage}/{name}": value for name, value in metrics.compute().items()}
        # Equal on all ranks, of which their maximum is exact; without `sync_dist` Lightning advises to set it.
        self.log_dict(values, sync_dist=True, reduce_fx="max")
        metrics.reset()

    def _probabilities(self, logits: Tensor) -> Tensor:
        return logits.float().sigmoid() if self.multilabel else logits.float().softmax(1)

    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        if logits.ndim != 2 or logits.shape[1] != self.num_classes:
            shape = tuple(logits.shape)
            raise ValueError(f"the backbone gives logits of shape {shape}, not (B, {self.num_classes}) for num_classes")
        try:
            loss: Tensor = self.criterion(logits, target)
        except IndexError as error:  # how torch tells of a label outside the range, on the CPU
            found, last = f"{int(target.min())}..{int(target.max())}", self.num_classes - 1
            raise ValueError(f"the labels of this batch lie in {found}, outside 0..{last} of num_classes") from error
        return loss

    def _freeze(self) -> None:
        head = required_classifier(self.network, "freeze_backbone")
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name.startswith(head))
        self.train(self.training)

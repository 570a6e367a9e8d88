"""Detectors as a LightningModule."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, final

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_vision.base.hyperparameters import is_description, rebuild

from ._evaluation import EvaluatedDetector
from ._file_predictions import predict_files
from .architectures import Architecture, build_detector
from .coco_metric import CocoMAP
from .network import DetectionNetwork
from .published import published_architecture, published_size
from .settings import DetectorSettings
from .targets import learnable_targets
from .weights import start_from

__all__ = ["ObjectDetector"]


@final
class ObjectDetector(EvaluatedDetector):
    """Finds objects in images: one of seven architectures on any of timm's networks, judged by COCO's mAP.

    Logs `train/loss` and its terms (each with `_step` and `_epoch`), and under `val/` and `test/` what COCO reports:
    `map`, `map_50`, `map_75`, `map_small`, ..., `mar_100`. A fit tells at its end what share of its time that took;
    after a test `per_class` holds a row for each class and `coco_table` COCO's lines. Crowds are no objects to learn
    from and are left out of the loss.

    Args:
        architecture: What finds the objects.
        backbone: Name of a network that timm builds with `features_only=True`, of one of torchvision's detectors, such
            as `fcos_resnet50_fpn`, which is then built whole, or a module that maps images `(B, C, H, W)` to a list or
            dictionary of maps. A module can be described as `{"class_path", "init_args"}`.
        num_classes: K, the background not counted; the command takes it from the datamodule.
        in_channels: C; the command takes it from the datamodule, elsewhere None means 3.
        image_size: Height and width of the images, pixels, or one number for both, which sizes of anchors follow; the
            command takes it from the datamodule, elsewhere None means 512.
        strides: Maps of the network that are looked at, pixels; None is the architecture's own, without those too
            coarse for the image (`default_strides`). Strides beyond the network's coarsest are added by layers.
        object_sizes: Smallest and largest object, fractions of the image's shorter side; sizes of anchors, default
            boxes and ranges of regression are spread between them.
        pyramid_channels: Channels of the feature pyramid, or of the maps that are added to a network's.
        options: What an architecture alone has: keyword arguments of the function of its name.
        pretrained: Start the backbone from timm's weights, from its hub.
        weights: Start from a file (safetensors, a torch file or a checkpoint), or from weights that torchvision
            publishes for a `backbone` of its own, such as `FCOS_ResNet50_FPN_Weights.COCO_V1`. Layers that depend on K
            start fresh where K differs.
        freeze_backbone: Leave the backbone's parameters and statistics as they are.
        freeze_norm: Leave batch norms of the backbone as they are, as detectors do whose batches are small.
        score_threshold: Detections below are dropped, 0..1.
        nms_threshold: Of detections of a class that overlap by more, intersection over union, the best stays.
        max_detections: At most so many an image.
        optimizer: Makes the optimizer from parameter groups.
        lr_scheduler: Makes the schedule from the optimizer; None keeps the learning rate.
        lr_interval: Whether the schedule counts epochs or optimizer steps.
        no_decay_norm_bias: Spare norms and biases from weight decay.

    Shape:
        Batches are `(images, targets)`: images float32 `(B, C, H, W)` normalised, or a list of `(C, H, W)`; targets a
        list of dictionaries with `boxes` `(N, 4)` and `labels` `(N,)` in 1..K. See `DetectionNetwork`.

    Raises:
        ValueError: an argument is missing, unknown or does not fit another one.
        FileNotFoundError: `weights` names no file.

    Example:
        >>> module = ObjectDetector("fcos", "test_resnet", num_classes=10, image_size=64).eval()
        >>> sorted(module(torch.zeros(1, 3, 64, 64))[0])
        ['boxes', 'labels', 'scores']
    """

    superseded = MappingProxyType({"pretrained": False, "weights": None})
    network: DetectionNetwork

    def __init__(
        self,
        architecture: Architecture = "fcos",
        backbone: str | nn.Module = "resnet50",
        num_classes: int | None = None,
        in_channels: int | None = None,
        image_size: int | tuple[int, int] | None = None,
        strides: list[int] | None = None,
        object_sizes: tuple[float, float] = (0.04, 1.0),
        pyramid_channels: int = 256,
        options: dict[str, Any] | None = None,
        pretrained: bool = False,
        weights: str | None = None,
        freeze_backbone: bool = False,
        freeze_norm: bool = False,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        max_detections: int = 100,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        no_decay_norm_bias: bool = True,
    ) -> None:
        super().__init__(optimizer, lr_scheduler, lr_interval, no_decay_norm_bias)
        self.save_hyperparameters()
        if num_classes is None:
            raise ValueError("ObjectDetector needs num_classes; from Python pass it, for example num_classes=10")
        self.num_classes, self.in_channels = num_classes, 3 if in_channels is None else in_channels
        own_size = published_size(backbone) if isinstance(backbone, str) and published_architecture(backbone) else 512
        size = own_size if image_size is None else image_size
        sides = (size, size) if isinstance(size, int) else size
        for name, pair in (("image_size", sides), ("object_sizes", object_sizes)):
            if len(pair) != 2:
                raise ValueError(f"{name}={pair} has {len(pair)} numbers; give two")
        settings = DetectorSettings(
            num_classes,
            (sides[0], sides[1]),
            (object_sizes[0], object_sizes[1]),
            pyramid_channels,
            score_threshold,
            nms_threshold,
            max_detections,
        )
        if is_description(backbone):
            backbone = rebuild(backbone, nn.Module)()
        self.network = build_detector(
            architecture, backbone, settings, strides, self.in_channels, pretrained and weights is None, options
        )
        if weights is not None:
            self.preprocessing = start_from(self.network, weights, backbone, settings)
        # torchvision's own detectors have their anchors whatever the image's size.
        self.image_size = (
            None if isinstance(backbone, str) and published_architecture(backbone) else settings.image_size
        )
        self.freeze_backbone, self.freeze_norm = freeze_backbone, freeze_norm
        for module in self._frozen():
            module.requires_grad_(False)
            module.eval()  # now: a Trainer leaves modules in the mode in which it finds them
        masks = architecture == "mask_rcnn"
        self.val_map, self.test_map = (CocoMAP(num_classes, masks, max_detections) for _ in range(2))

    def train(self, mode: bool = True) -> "ObjectDetector":
        """Switch to training; what is frozen stays in evaluation, with the statistics of its batch norms."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def forward(self, images: Any) -> list[dict[str, Tensor]]:
        """Detections of normalised images `(B, C, H, W)`, or of a list of them; see `DetectionNetwork.detect`."""
        found: list[dict[str, Tensor]] = self.network(images)
        return found

    def setup(self, stage: str) -> None:
        """Compare sizes with the datamodule and take over its preprocessing.

        Raises:
            ValueError: as `EvaluatedDetector.setup`; anchors would follow another size than that of the images.
        """
        super().setup(stage)
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        found = getattr(datamodule, "image_size", None)
        given = (found, found) if isinstance(found, int) else found and tuple(found)
        if stage == "fit" and None not in (self.image_size, given) and self.image_size != given:
            source = type(datamodule).__name__
            raise ValueError(
                f"anchors follow image_size={self.image_size} and {source} has image_size={given}; make them agree"
            )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, targets = batch
        losses = self.network.losses(images, learnable_targets(images, targets, self.num_classes))
        loss = torch.stack(list(losses.values())).sum()
        self.scalars.log("train", {"loss": loss, **losses}, len(images))
        return loss

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """`{"index": (B,), "results": ..., "target": ...}`, lists of B; index and target where the batch has them."""
        if not isinstance(batch, Mapping):
            batch = dict(zip(("image", "target"), batch, strict=False))
        kept = {name: batch[name] for name in ("index", "target") if name in batch}
        return {**kept, "results": self(batch["image"])}

    def predict(self, paths: Sequence[str | Path] | str | Path, batch_size: int = 16) -> list[dict[str, Any]]:
        """Find objects in image files of any size, which are prepared as those of training were.

        Args:
            paths: The files, or one.
            batch_size: Images at once.

        Returns:
            One record a file, see `records.detection_records`, with boxes in the file's pixels.

        Raises:
            ValueError: the module has met no datamodule, a file is no image, or `batch_size` is below 1.
            FileNotFoundError: a file does not exist.
        """
        return predict_files(self, paths, batch_size)

    def _frozen(self) -> list[nn.Module]:
        """The modules that stay in evaluation mode."""
        if self.freeze_backbone:
            return [self.network.backbone]
        return [it for it in self.network.backbone.modules() if self.freeze_norm and isinstance(it, _BatchNorm)]

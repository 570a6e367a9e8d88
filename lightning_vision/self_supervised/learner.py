"""What every self-supervised learner is built on: a backbone, its features, draws that repeat, parts that follow."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_vision import backbones
from lightning_vision.base.draws import seeded
from lightning_vision.base.hyperparameters import is_description, rebuild
from lightning_vision.base.module import VisionModule
from lightning_vision.base.weights import load_weights

from .gather import apart

__all__ = ["SelfSupervisedLearner", "freeze_pooling"]


class SelfSupervisedLearner(VisionModule, ABC):
    """Base of all learners: a method adds its heads to `self.network` behind the backbone, and says its `losses`.

    Logs `train/loss` and its terms (each with `_step` and `_epoch`), and the same under `val/` and `test/`. Labels are
    never read.

    Args:
        backbone: Name of a network (`lightning_vision list backbones`, or any of timm's), or a module that maps images
            `(B, C, H, W)` to features `(B, D)` and says D as `num_features`.
        in_channels: C; the command takes it from the datamodule, elsewhere None means 3.
        pretrained: Start from timm's weights for `backbone`, from its hub.
        weights: Start the backbone from a file; it goes before `pretrained`.
        backbone_settings: Further arguments of the backbone's constructor, for example `img_size: 24`.
        channels_last: Keep the backbone's weights, and so its maps, in the order that convolutions are fastest in.
        seed: Fixes every random draw of the method.
        optimizer: Makes the optimizer from parameter groups.
        lr_scheduler: Makes the schedule from the optimizer; None keeps the learning rate.
        lr_interval: Whether the schedule counts epochs or optimizer steps.
        no_decay_norm_bias: Spare norms, biases and what timm's network lists from weight decay.

    Shape:
        Batches are `(image, ...)` or a mapping with `image`: float32 `(B, C, H, W)`, normalised by what the datamodule
        says; where no datamodule says it, images count as numbers in 0..1.

    Raises:
        ValueError: an argument is unknown or does not fit another one, or the backbone gives no features.
        FileNotFoundError: `weights` names no file.
    """

    # Labels may be there, nobody asks how many kinds.
    compared: ClassVar[tuple[str, ...]] = ("in_channels",)
    superseded = MappingProxyType({"pretrained": False, "weights": None})
    # Images that a process's batch needs in training; more than one where images are compared.
    fewest_images: ClassVar[int] = 1
    network: nn.Sequential

    def __init__(
        self,
        backbone: str | nn.Module = "resnet18",
        in_channels: int | None = None,
        pretrained: bool = False,
        weights: str | None = None,
        backbone_settings: dict[str, Any] | None = None,
        channels_last: bool = False,
        seed: int = 0,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        no_decay_norm_bias: bool = True,
    ) -> None:
        super().__init__(optimizer, lr_scheduler, lr_interval, no_decay_norm_bias, 1.0, 1.0)
        self.save_hyperparameters()
        self.in_channels = 3 if in_channels is None else in_channels
        self.backbone_settings = dict(backbone_settings or {})
        self.seed = seed
        if is_description(backbone):
            backbone = rebuild(backbone, nn.Module)()
        body = backbones.create(
            backbone,
            num_classes=0,
            in_channels=self.in_channels,
            pretrained=pretrained and weights is None,
            **self.backbone_settings,
        )
        if weights is not None:
            load_weights(body, weights)
        if channels_last:
            body.to(memory_format=torch.channels_last)
        self.feature_dim = feature_dim_of(body)
        self.network = nn.Sequential()
        self.network.add_module("backbone", body)
        self._followed: RemovableHandle | None = None

    def setup(self, stage: str) -> None:
        """As `VisionModule`.

        Raises:
            ValueError: as there, or batches of the datamodule have fewer images than the method compares.
        """
        super().setup(stage)
        data: Any = getattr(self.trainer, "datamodule", None)
        size, images = getattr(data, "batch_size", None), getattr(data, "train_set", None)
        if stage != "fit" or self.fewest_images < 2 or not isinstance(size, int):
            return
        if size < self.fewest_images:
            raise ValueError(self._too_few("a batch", size))
        if images is None or getattr(data, "drop_last", False):
            return
        # Of several processes the first ones may have one image more than the others.
        world = self.trainer.world_size
        rests = {count % size for count in (len(images) // world, -(-len(images) // world))} - {0}
        if rests and min(rests) < self.fewest_images:
            raise ValueError(self._too_few("the last batch of an epoch", min(rests)))

    @property
    def backbone(self) -> nn.Module:
        """The network that is kept when pretraining is over."""
        return self.network.get_submodule("backbone")

    def features(self, image: Tensor) -> Tensor:
        """Features `(B, D)` of normalised images `(B, C, H, W)`, as the backbone pools them."""
        features: Tensor = self.backbone(image)
        return features

    def forward(self, image: Tensor) -> Tensor:
        return self.features(image)

    @abstractmethod
    def losses(self, image: Tensor, uniform: Tensor) -> dict[str, Tensor]:
        """What the method minimises for a batch, by name; `loss` is the sum that is minimised.

        Args:
            image: Normalised images `(B, C, H, W)`.
            uniform: The method's draws, `(B, draws)` in [0, 1), on the CPU.
        """

    @property
    @abstractmethod
    def draws(self) -> int:
        """How many uniform numbers an image asks for."""

    def follow(self, step: int) -> None:
        """Called once after each optimizer step, whose number from 0 is `step`; momentum branches move here."""

    def uniforms(self, image: Tensor, batch_idx: int, training: bool) -> Tensor:
        """A batch's draws, on the CPU: a function of seed, rank, epoch (of evaluation none) and batch."""
        epoch = self.current_epoch if training else -1
        rank = self._trainer.global_rank if self._trainer else 0
        return torch.rand(len(image), self.draws, generator=seeded(self.seed, rank, epoch + 1, batch_idx))

    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation by which images were normalised; 0 and 1 where nobody has said."""
        told: Mapping[str, Any] = self.preprocessing or {}
        return (
            list(told.get("mean", [0.0] * self.in_channels)),
            list(told.get("std", [1.0] * self.in_channels)),
        )

    def data_size(self) -> tuple[int, int] | None:
        """Height and width that the datamodule says its images have, pixels; None where it does not."""
        found = getattr(getattr(self.trainer, "datamodule", None), "image_size", None)
        if isinstance(found, int):
            return found, found
        return None if found is None else (found[0], found[1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._step("train", batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._step("val", batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._step("test", batch, batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """`{"index": (B,), "features": (B, D), "target": (B,)}`; index and target where the batch has them."""
        if not isinstance(batch, Mapping):
            batch = dict(zip(("image", "target"), batch, strict=False))
        kept = {name: batch[name] for name in ("index", "target") if name in batch}
        return {**kept, "features": self.features(batch["image"])}

    def on_train_start(self) -> None:
        # torch's hook and not Lightning's: a step that a scaler leaves out moves nothing.
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        self._followed = optimizer.register_step_post_hook(lambda *_: self.follow(self.trainer.global_step))

    def on_train_end(self) -> None:
        if self._followed is not None:
            self._followed.remove()
            self._followed = None

    def _step(self, stage: str, batch: Any, batch_idx: int) -> Tensor:
        image: Tensor = batch["image"] if isinstance(batch, Mapping) else batch[0]
        if stage == "train" and len(image) < self.fewest_images:
            raise ValueError(self._too_few("this batch", len(image)))
        with nullcontext() if stage == "train" else apart():
            terms = self.losses(image, self.uniforms(image, batch_idx, stage == "train"))
        self.scalars.log(stage, {name: term.detach() for name, term in terms.items()}, len(image))
        return terms["loss"]

    def _too_few(self, which: str, count: int) -> str:
        kind, fewest = type(self).__name__, self.fewest_images
        return f"{which} has {count} image and {kind} needs {fewest}; give drop_last=True or larger batches"


def freeze_pooling(backbone: nn.Module) -> None:
    """Freeze what timm's transformers have behind the features of patches: no loss of patches reaches it."""
    for part in ("fc_norm", "attn_pool", "head"):
        if isinstance(module := getattr(backbone, part, None), nn.Module):
            module.requires_grad_(False)


def feature_dim_of(backbone: nn.Module) -> int:
    """D of the features `(B, D)` that a network without a classifier gives.

    Raises:
        ValueError: the network does not say.
    """
    # timm's `head_hidden_size` counts the layers that some networks have between the pooled map and the classifier.
    dim = getattr(backbone, "head_hidden_size", None) or getattr(backbone, "num_features", None)
    if not isinstance(dim, int):
        kind = type(backbone).__name__
        raise ValueError(f"the {kind} given as backbone does not say how wide its features are; give it `num_features`")
    return dim

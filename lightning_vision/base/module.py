"""What every task is built on: logging, optimizer, checkpoints and preprocessing, apart from network and loss."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .checkpoints import PlainCheckpoints
from .hyperparameters import rebuild
from .param_groups import check_rates_kept, layer_scales, parameter_groups, undecayed
from .scalar_log import ScalarLog

__all__ = ["VisionModule", "changed_preprocessing", "shortened"]

PREPROCESSING = ("class_names", "channels", "image_size", "resize", "mean", "std")


class VisionModule(PlainCheckpoints):
    """Base of all tasks: a task builds `self.network`, computes a loss and hands its scalars to `self.scalars`.

    A subclass that overrides a hook calls that of this class too.

    Args:
        optimizer: Makes the optimizer from parameter groups.
        lr_scheduler: Makes the schedule from the optimizer; None keeps the learning rate.
        lr_interval: Whether the schedule counts epochs or optimizer steps.
        no_decay_norm_bias: Spare norms, biases and what timm's network lists from weight decay.
        layer_decay: Factor on the learning rate for each layer below the classifier, fraction; neutral 1.
        head_lr_multiple: Factor on the learning rate of the classifier; neutral 1.
    """

    network: nn.Module
    num_classes: int
    # What a schedule watches that does not say so itself, `ReduceLROnPlateau` for one.
    judged_by: ClassVar[str] = "val/loss"
    # Sizes that module and datamodule must agree on.
    compared: ClassVar[tuple[str, ...]] = ("num_classes", "in_channels")
    in_channels: int
    # What a raw image needs, the keys of `PREPROCESSING`; from the datamodule.
    preprocessing: dict[str, Any] | None = None

    def __init__(
        self,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        lr_interval: Literal["epoch", "step"],
        no_decay_norm_bias: bool,
        layer_decay: float,
        head_lr_multiple: float,
    ) -> None:
        super().__init__()
        self.optimizer = rebuild(optimizer, Optimizer)
        self.lr_scheduler = rebuild(lr_scheduler, LRScheduler)
        self.lr_interval = lr_interval
        self.no_decay_norm_bias = no_decay_norm_bias
        self.layer_decay = layer_decay
        self.head_lr_multiple = head_lr_multiple
        self.scalars = ScalarLog(self)

    def setup(self, stage: str) -> None:
        """Compare sizes with the datamodule and take over its preprocessing.

        Raises:
            ValueError: the datamodule has another number of classes or channels, or a module that was trained is
                measured on data whose classes have other names or another order.
        """
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        for size in self.compared if stage != "predict" else ():
            own, found = getattr(self, size), getattr(datamodule, size, None)
            if found not in (None, own):
                ours, theirs = type(self).__name__, type(datamodule).__name__
                raise ValueError(f"{ours} has {size}={own} but {theirs} has {size}={found}; make them agree")
        if stage in ("validate", "test") and not self.trainer.ckpt_path:  # with one, when its state is there
            self._compare_preprocessing()
        found = getattr(datamodule, "preprocessing", None)
        # A stranger's datamodule may call a transform by this name.
        wanted = stage == "fit" or self.preprocessing is None
        if wanted and isinstance(found, Mapping) and found.keys() >= set(PREPROCESSING):
            self.preprocessing = dict(found)

    def configure_optimizers(self) -> Any:
        """One group for each distinct (lr, weight decay), and the schedule.

        Raises:
            ValueError: as `optimizer_for`.
        """
        return self.optimizer_for("")

    def optimizer_for(self, part: str) -> Any:
        """An optimizer, and its schedule, of the parameters whose names begin with `part`, as Lightning takes them.

        Raises:
            ValueError: the optimizer refuses its settings, nothing is left to train, or the schedule would undo the
                groups' learning rates.
        """
        try:
            # Defaults of the optimizer, before there are groups; two dimensions because Muon takes nothing else.
            defaults = self.optimizer([nn.Parameter(torch.zeros(1, 1))]).defaults
        except (TypeError, ValueError) as error:
            raise ValueError(f"the optimizer refuses its settings: {error}") from error
        spared = undecayed(self.network) if self.no_decay_norm_bias else set()
        scales = layer_scales(self.network, self.layer_decay, self.head_lr_multiple)
        groups = parameter_groups(
            ((name, parameter) for name, parameter in self.named_parameters() if name.startswith(part)),
            defaults["lr"],
            defaults.get("weight_decay", 0.0),
            {f"network.{name}" for name in spared},
            {f"network.{name}": scale for name, scale in scales.items()},
        )
        if not groups:
            what = f" of {part.removesuffix('.')}" if part else ""
            raise ValueError(f"{type(self).__name__}: all parameters{what} are frozen, so there is nothing to train")
        optimizer = self.optimizer(groups)
        if self.lr_scheduler is None:
            return optimizer
        rates = [float(group["lr"]) for group in groups]
        scheduler = self.lr_scheduler(optimizer)
        check_rates_kept(optimizer, rates, scheduler)
        monitor = getattr(scheduler, "monitor", self.judged_by)
        if getattr(scheduler, "mode", None) == "min" and monitor.endswith("/map"):
            raise ValueError(
                f"{type(scheduler).__name__} waits for {monitor} to fall, which is to rise; pass mode='max'"
            )
        schedule = {"scheduler": scheduler, "interval": self.lr_interval, "monitor": monitor}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_train_epoch_start(self) -> None:
        self.scalars.start("train")

    def on_validation_epoch_start(self) -> None:
        self.scalars.start("val")

    def on_test_epoch_start(self) -> None:
        self.scalars.start("test")

    def on_train_epoch_end(self) -> None:
        self.scalars.finish("train")

    def on_validation_epoch_end(self) -> None:
        self.scalars.finish("val")

    def on_test_epoch_end(self) -> None:
        self.scalars.finish("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["preprocessing"] = self.preprocessing
        checkpoint["sums"] = self.scalars.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the checkpoint's preprocessing.

        Raises:
            ValueError: a checkpoint is measured on data whose classes have other names or another order.
        """
        self.preprocessing = checkpoint.get("preprocessing", self.preprocessing)
        if self._trainer is not None and self.trainer.state.fn in ("validate", "test"):
            self._compare_preprocessing()
        if "sums" in checkpoint:
            self.scalars.load(checkpoint["sums"])

    def _compare_preprocessing(self) -> None:
        """Hold what the checkpoint was trained on against what the datamodule gives."""
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        source = type(datamodule).__name__
        for name, (trained, given) in changed_preprocessing(self.preprocessing, datamodule).items():
            if name == "class_names":
                ours, theirs = shortened(trained), shortened(given)
                raise ValueError(
                    f"the checkpoint was trained on the classes {ours}, {source} has {theirs}; give its data"
                )
            rank_zero_warn(
                f"the checkpoint was trained with {name} {trained}, {source} gives {given}, and so it is measured; "
                f"predictions use {trained}"
            )


def changed_preprocessing(trained: Mapping[str, Any] | None, datamodule: Any) -> dict[str, tuple[Any, Any]]:
    """What of a checkpoint's preprocessing a datamodule does otherwise, then and now, by name; nothing if unknown."""
    found = getattr(datamodule, "preprocessing", None)
    if trained is None or not isinstance(found, Mapping) or not found.keys() >= set(PREPROCESSING):
        return {}
    # Files hold lists where datamodules have tuples.
    pairs = {name: (trained[name], found[name]) for name in PREPROCESSING}
    return {name: (old, new) for name, (old, new) in pairs.items() if _plain(old) != _plain(new)}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def shortened(names: Sequence[str], most: int = 5) -> str:
    """The first `most` names, and dots where there are more."""
    return ", ".join([*names[:most], *(["..."] if names[most:] else [])])

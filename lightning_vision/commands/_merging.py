"""What `soup` and `neon` share: reading checkpoints, scoring state dicts, and files of merged weights."""

import ast
import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_vision.base.weights import load_checkpoint, module_from_checkpoint
from lightning_vision.commands._report import require
from lightning_vision.commands._trial import trial_trainer

__all__ = [
    "Judge",
    "average_in",
    "hushed",
    "module_of",
    "monitored",
    "moving_statistics",
    "refuse_other_images",
    "write_merged",
]

Mode = Literal["min", "max"]
# What belongs to the training of one ingredient, to its decisions, or to weights that are no longer there.
DROPPED = ("callbacks", "optimizer_states", "lr_schedulers", "loops", "sums", "MixedPrecision")
REFITTED = ("calibration", "thresholds")
STATISTICS = ("running_mean", "running_var")


def module_of(cli: Any, path: str) -> LightningModule:
    """The module that a checkpoint names, or the configured one where it names none."""
    if load_checkpoint(path).get("class_path") is not None:
        return module_from_checkpoint(path)
    require(cli, "model")
    configured: LightningModule = cli.model
    return configured


def refuse_other_images(paths: Sequence[str], contents: Sequence[Mapping[str, Any]]) -> None:
    """Refuse checkpoints whose classes or whose preparation of images differ.

    Raises:
        ValueError: they do.
    """
    first = contents[0].get("preprocessing") or {}
    for path, content in zip(paths[1:], contents[1:], strict=True):
        other = content.get("preprocessing") or {}
        for name in first.keys() & other.keys():
            if _plain(first[name]) != _plain(other[name]):
                raise ValueError(
                    f"{paths[0]} was trained with {name} {first[name]} and {path} with {other[name]}; merge "
                    "checkpoints of the same classes and images"
                )


def monitored(
    contents: Sequence[Mapping[str, Any]], monitor: str | None, mode: Mode | None
) -> tuple[str, Literal["min", "max"]]:
    """The metric that decides and whether small or large is good: as typed, or as the checkpoints' savers have it.

    Raises:
        ValueError: no metric was typed and no checkpoint tells of one.
    """
    known: dict[str, Mode] = {}
    for key in (key for content in contents for key in content.get("callbacks", {})):
        if key.startswith("ModelCheckpoint{"):
            said = ast.literal_eval(key.removeprefix("ModelCheckpoint"))
            if said.get("monitor"):
                known.setdefault(said["monitor"], said["mode"])
    if monitor is None and not known:
        raise ValueError("the checkpoints do not say what they were chosen by; give --monitor, such as val/acc")
    monitor = monitor or next(iter(known))
    return monitor, mode or known.get(monitor) or ("min" if "loss" in monitor else "max")


def average_in(content: Mapping[str, Any]) -> str | None:
    """Which callback's average of the weights a checkpoint holds as its `state_dict`; None for trained weights."""
    states = content.get("callbacks", {})
    return next((key for key, it in states.items() if isinstance(it, dict) and {"average", "raw"} <= it.keys()), None)


def moving_statistics(states: Sequence[Mapping[str, Tensor]]) -> list[str]:
    """Names of the batch norms' statistics that differ; what is the same in all was at rest in all trainings."""
    first = states[0]
    found = [name for name in first if name.endswith(STATISTICS)]
    return [name for name in found if not all(torch.equal(first[name], other[name]) for other in states[1:])]


def write_merged(content: Mapping[str, Any], state: Mapping[str, Tensor], origin: dict[str, Any], path: Path) -> None:
    """Write a checkpoint of merged weights that loads as any other and has nothing to resume.

    Args:
        content: Of the ingredient whose hyper-parameters and preprocessing the file takes.
        state: Merged weights.
        origin: What they were made of, plain data, under `merged`.
        path: It appears when it is complete.
    """
    kept = {name: value for name, value in content.items() if name not in DROPPED}
    kept |= {name: None for name in REFITTED if name in content}
    part = path.with_name(f".{path.name}.part")
    torch.save({**kept, "state_dict": dict(state), "merged": origin}, part)
    part.replace(path)


def _plain(value: Any) -> Any:
    # Files hold lists where datamodules have tuples.
    return list(value) if isinstance(value, tuple) else value


class Judge:
    """Scores state dicts on the validation split and, where there is one, the test split of the configured data.

    Args:
        cli: Its trainer's settings are used, without files and logs.
        module: Takes the weights; it scores without a calibration, which belongs to one file.
        monitor: Metric that decides.
        moving: Names of batch norms' statistics that are measured again for merged weights, on the training split.

    Raises:
        ValueError: there is no validation split.
    """

    def __init__(self, cli: Any, module: LightningModule, monitor: str, moving: Sequence[str]) -> None:
        self.cli, self.module, self.monitor, self.datamodule = cli, module, monitor, cli.datamodule
        self.moving = {name.rpartition(".")[0] for name in moving}
        for name in REFITTED:
            if getattr(module, name, None) is not None:
                setattr(module, name, None)
        self.stages = [stage for stage in ("validate", "test") if self._offers(stage)]
        if "validate" not in self.stages:
            source = type(self.datamodule).__name__
            raise ValueError(f"{source} has no validation split, on which merged weights are compared; give it one")

    def metrics(self, state: Mapping[str, Tensor], module: LightningModule | None = None) -> dict[str, float]:
        """All metrics of a state dict, or of another module as it is, by their names.

        Raises:
            ValueError: the metric that decides is not among them.
        """
        judged = module or self.module
        if module is None:
            judged.load_state_dict(state)
        found: dict[str, float] = {}
        for stage in self.stages:
            with hushed():
                trainer = self._trainer()
                run = trainer.validate if stage == "validate" else trainer.test
                found |= dict(run(judged, datamodule=self.datamodule, verbose=False)[0])
        if self.monitor not in found:
            raise ValueError(f"--monitor {self.monitor}: the model does not log it; it logs {', '.join(sorted(found))}")
        return found

    def score(self, state: Mapping[str, Tensor]) -> float:
        """The metric that decides, with statistics measured for these weights."""
        return self.metrics(self.settled(state))[self.monitor]

    def settled(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same weights with batch norm's statistics measured for them: what torch's `update_bn` gives."""
        if not self.moving:
            return dict(state)
        self.module.load_state_dict(state)
        layers = [part for name, part in self.module.named_modules() if name in self.moving]
        limit = self.cli.config_init["trainer"].get("limit_train_batches")
        with isolate_rng(), hushed():
            trainer = self._trainer(_Measuring(layers), limit_val_batches=limit)
            seed_everything(0, verbose=False)
            trainer.validate(self.module, datamodule=_training_as_validation(self.datamodule), verbose=False)
        measured = self.module.state_dict()
        names = [f"{layer}.{name}" for layer in self.moving for name in STATISTICS]
        return {**state, **{name: measured[name].detach().cpu().clone() for name in names}}

    def _trainer(self, *more: Callback, **settings: Any) -> Trainer:
        quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False}
        return trial_trainer(self.cli, *more, **quiet, **{key: it for key, it in settings.items() if it is not None})

    def _offers(self, stage: str) -> bool:
        split, step = ("val", "validation_step") if stage == "validate" else ("test", "test_step")
        if not is_overridden(f"{split}_dataloader", self.datamodule):
            return False
        self.datamodule.prepare_data()
        self.datamodule.setup(stage)
        absent = getattr(self.datamodule, f"{split}_set", self) is None
        return not absent and is_overridden(step, self.module)


@contextmanager
def hushed() -> Iterator[None]:
    """Without what Lightning says of an evaluation, for it would say it of each."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)


class _Measuring(Callback):
    """Batch norms average the statistics of all batches in equal shares while the rest of the module evaluates."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self.layers = [layer for layer in layers if isinstance(layer, _BatchNorm)]
        self.momenta = [layer.momentum for layer in self.layers]

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for layer in self.layers:
            layer.reset_running_stats()
            layer.momentum = None
            layer.train()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for layer, momentum in zip(self.layers, self.momenta, strict=True):
            layer.momentum = momentum
            layer.eval()


def _training_as_validation(datamodule: LightningDataModule) -> LightningDataModule:
    """The same data with the training split in the place of validation: prepared as there, not augmented."""
    twin: Any = copy.copy(datamodule)

    def loader() -> Any:
        twin.setup("fit")
        return twin.train_dataloader()

    twin.val_dataloader = loader
    return twin

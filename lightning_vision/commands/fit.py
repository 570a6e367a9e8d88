"""Train, and keep the best and the last checkpoint."""

import json
import shlex
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only

from lightning_vision.callbacks.hooks.method import callbacks_of
from lightning_vision.callbacks.probes.backbone_file import BackboneFile
from lightning_vision.classification.classifier import ImageClassifier
from lightning_vision.commands._class_table import class_rows, gaps, known_counts, uneven
from lightning_vision.commands._report import effective, print_table, require
from lightning_vision.datamodules.common.datamodule import VisionDataModule
from lightning_vision.datamodules.detection.datamodule import DetectionDataModule
from lightning_vision.generation.generator import ImageGenerator

CONTINUES = True
# How long a run is and where it starts.
FIT_ONLY = ("--ckpt_path", "--trainer.max_epochs", "--trainer.max_steps", "--model.weights", "--model.pretrained")


def run(cli: Any, ckpt_path: str | None = None) -> None:
    """Train the model on the datamodule.

    Args:
        ckpt_path: Checkpoint to go on from: a file, or `last` for the newest one under the config's folder. The run
            goes on in the checkpoint's own folder.
    """
    require(cli, "model", "data")
    cli.trainer.callbacks += [_CheckData(), _Announce()]
    cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=ckpt_path, weights_only=True)
    _report(cli)


class _CheckData(Callback):
    """Refuses, when the data is loaded and nothing is trained yet, what no training can come of.

    Raises:
        ValueError: a classifier's images are all of one class, or the best checkpoint is chosen by images that are not
            there.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        datamodule: Any = getattr(trainer, "datamodule", None)
        classes = known_counts(datamodule).get("train", {})
        multilabel = getattr(datamodule, "multilabel", False)
        if len(classes) == 1 and isinstance(pl_module, ImageClassifier) and not multilabel:
            (only,) = classes
            raise ValueError(f"all images are of one class, {only!r}; a classifier needs at least two to tell apart")
        monitored = any((saver.monitor or "").startswith("val/") for saver in _savers(trainer))
        if monitored and isinstance(datamodule, VisionDataModule) and datamodule.val_set is None:
            fraction = hasattr(datamodule, "val_fraction")
            way_out = "add images or raise --data.val_fraction" if fraction else "give the data images for it"
            raise ValueError(f"no image is left for validation, by which the best checkpoint is chosen; {way_out}")


class _Announce(Callback):
    """Says once what is trained on and what is really optimised with, when configs, flags and data have met."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        datamodule: Any = getattr(trainer, "datamodule", None)
        if counts := known_counts(datamodule):
            _show_data(counts, datamodule, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Before a schedule has set the first step's rates, so these are the ones that were asked for.
        for optimizer in trainer.optimizers:
            rank_zero_info(f"Optimizer: {effective(optimizer)}")


@rank_zero_only
def _show_data(counts: dict[str, dict[str, int]], datamodule: Any, module: Any) -> None:
    title = "images with each label" if getattr(datamodule, "multilabel", False) else "images of each class"
    if isinstance(datamodule, DetectionDataModule):
        title = "objects of each class"
    print_table(title, class_rows(counts))
    said = [getattr(datamodule, "split_origin", ""), *gaps(counts)]
    open_to_weights = isinstance(module, ImageClassifier) and module.hparams.get("class_weights", "") is None
    if open_to_weights and getattr(datamodule, "sampler", None) != "balanced":
        said.append(uneven(counts["train"]))
    print("".join(f"  {sentence}\n" for sentence in said if sentence), end="", flush=True)


@rank_zero_only
def _report(cli: Any) -> None:
    trainer: Trainer = cli.trainer
    metrics = trainer.callback_metrics.items()
    if rows := {name: f"{float(value):.4f}" for name, value in sorted(metrics) if name.startswith("val/")}:
        if hasattr(cli.model, "coco_table"):
            # COCO's -1, where there is no such object to find, is no score.
            rows = {name: "-" if value == "-1.0000" else value for name, value in rows.items()}
        print_table("validation, last epoch", rows)
    written = {"run folder": str(cli.run_dir or trainer.log_dir or trainer.default_root_dir)}
    for saver in _savers(trainer):
        for path in filter(None, (saver.best_model_path, saver.last_model_path)):
            best = saver.monitor if path == saver.best_model_path else None
            written[Path(path).stem] = f"{path} ({best} {saver.best_model_score:.4f})" if best else path
    files_of_weights = [it for it in callbacks_of(trainer) if isinstance(it, BackboneFile) and it.written]
    written |= {Path(it.filename).stem: str(it.written) for it in files_of_weights}
    # Of another part the names are not those of the network by itself.
    starts = [it.written for it in files_of_weights if it.written and it.module in (None, "backbone")]
    if (media := Path(written["run folder"], "media")).is_dir():
        written["pictures"] = str(media)
    print_table("written", written)
    monitored = sorted(_savers(trainer), key=lambda saver: saver.monitor is None)
    if files := [path for saver in monitored for path in (saver.best_model_path, saver.last_model_path) if path]:
        checkpoint = f"--ckpt_path {shlex.quote(_nearby(files[0]))}"
        words = _for_a_test(cli.words)
        use = f"predict {checkpoint} --sheet 24 --images FOLDER"
        if isinstance(cli.model, ImageGenerator):
            use = f"sample {checkpoint} --num 64 --out samples"
        following = {
            "measure it": shlex.join(["lightning_vision", "test", *words]) + f" {checkpoint}",
            "use it": f"lightning_vision {use}",
        }
        if isinstance(cli.model, ImageClassifier):
            following["look into it"] = f"lightning_vision explain {checkpoint} --images FOLDER"
        if starts:
            following["fine-tune it"] = f"lightning_vision fit --config CONFIG {_started_from(cli.model, starts[0])}"
        print_table("next", following)


def _started_from(module: Any, path: Path) -> str:
    """What a classifier's run is told to begin with the backbone in a file."""
    words = []
    if isinstance(backbone := module.hparams.get("backbone"), str):
        words += ["--model.backbone", backbone]
    if settings := getattr(module, "backbone_settings", None):
        words += ["--model.backbone_settings", json.dumps(settings)]
    return shlex.join([*words, "--model.weights", _nearby(path)])


def _savers(trainer: Trainer) -> list[ModelCheckpoint]:
    return [saver for saver in trainer.checkpoint_callbacks if isinstance(saver, ModelCheckpoint)]


def _for_a_test(words: list[str]) -> list[str]:
    """The words of this fit but for those that say nothing to a test."""
    kept: list[str] = []
    following = iter(words)
    for word in following:
        flag, equals, _ = word.partition("=")
        if flag not in FIT_ONLY:
            kept.append(word)
        elif not equals:
            next(following, None)
    return kept


def _nearby(path: str | Path) -> str:
    """`path` as seen from here."""
    absolute = Path(path).absolute()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute)

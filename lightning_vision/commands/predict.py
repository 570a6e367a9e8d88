"""Write what a checkpoint says about images to a JSON Lines and a CSV file."""

import json
import shutil
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_vision.classification.records import prediction_records
from lightning_vision.commands._files import output_folder, saved_preprocessing
from lightning_vision.commands._prediction_files import CSV, JSONL, PNG, captions, merge
from lightning_vision.commands._report import print_table, require
from lightning_vision.datamodules.common.datamodule import VisionDataModule
from lightning_vision.datamodules.image_folder import ImageFolder


def run(
    cli: Any,
    ckpt_path: str | None = None,
    images: str | None = None,
    batch_size: int | None = None,
    num_workers: int | None = None,
    on_bad_image: Literal["error", "skip"] | None = None,
    top_k: int = 5,
    sheet: int = 0,
    output: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Predict the datamodule's test split, or the image files of a folder.

    Args:
        ckpt_path: Checkpoint whose weights predict; without it the freshly built model does.
        images: Image file, or folder searched with all its sub-folders; prepared as the checkpoint was trained.
        batch_size: Files of `images` at once on each rank, 64 if not given.
        num_workers: Processes that decode files of `images`, 0 if not given.
        on_bad_image: Stop at a file of `images` that cannot be decoded (`error`, if not given), or leave it out.
        top_k: Classes to list for each image, most probable first.
        sheet: Images to draw with what was predicted, mistakes first, to `predictions.png`.
        output: Folder for the files; without it the run's folder or the current one.
        overwrite: Replace the files of an earlier prediction.

    Returns:
        `jsonl`, `csv` and, with `sheet`, `png`: the paths written, and `count`, the images predicted.

    Raises:
        ValueError: there is nothing to predict, or an option is missing or goes with another one.
        FileExistsError: a file exists and `overwrite` is off.
    """
    if top_k < 1:
        raise ValueError(f"--top_k {top_k}: at least one class must be listed")
    reading = {"batch_size": batch_size, "num_workers": num_workers, "on_bad_image": on_bad_image}
    reading = {name: value for name, value in reading.items() if value is not None}
    if images is None:
        require(cli, "data")
        if reading:
            name = next(iter(reading))
            raise ValueError(f"--{name} goes with --images; the configured data takes --data.{name}")
    elif ckpt_path is None:
        raise ValueError("--images needs --ckpt_path, the checkpoint that says how to prepare an image")
    require(cli, "model")
    datamodule = cli.datamodule if images is None else _files(cli, images, str(ckpt_path), reading)
    if sheet and not isinstance(datamodule, VisionDataModule):
        raise ValueError(f"--sheet {sheet}: {type(datamodule).__name__} is not of this package and cannot draw one")
    names = (JSONL, CSV, PNG) if sheet else (JSONL, CSV)
    writer = PredictionWriter(output_folder(cli, output, names, overwrite), top_k)
    if cli.run_dir is None:  # nobody asked for logs, and there is nothing to log
        cli.trainer.loggers = []
        cli.trainer.callbacks = [item for item in cli.trainer.callbacks if not isinstance(item, SaveConfigCallback)]
    cli.trainer.callbacks.append(writer)
    try:
        cli.trainer.predict(
            cli.model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True, return_predictions=False
        )
    finally:
        writer.clean_up()
    files = {"jsonl": str(writer.folder / JSONL), "csv": str(writer.folder / CSV)}
    if not Path(files["jsonl"]).exists():
        raise ValueError("nothing was predicted, for --trainer.limit_predict_batches is 0")
    with open(files["jsonl"], encoding="utf-8") as lines:
        count = sum(1 for _ in lines)
    if sheet:
        files["png"] = str(writer.folder / PNG)
    if cli.trainer.is_global_zero:
        if sheet:
            positions, titles = captions(Path(files["jsonl"]), sheet)
            datamodule.plot("predict", path=files["png"], positions=positions, titles=titles)
        print_table("written", {"images": str(count), **files})
    return {**files, "count": count}


class PredictionWriter(Callback):
    """Writes predictions while they are made: each rank a part, which rank 0 merges in dataset order at the end.

    Memory holds one batch. The parts lie in a hidden folder; the final files appear when they are complete.

    Args:
        folder: Gets `predictions.jsonl` and `predictions.csv`; all ranks must see it, rank 0's choice counts.
        top_k: Classes to list for each image, most probable first.
    """

    def __init__(self, folder: Path, top_k: int) -> None:
        self.folder, self.top_k = folder, top_k
        self._part: IO[str] | None = None
        self._last = -1
        self._names: list[str] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Ranks that start later find a folder for a new run of their own.
        self.folder = trainer.strategy.broadcast(self.folder)
        self._scratch.mkdir(exist_ok=True)
        self._part = self._part_of(trainer.global_rank).open("w", encoding="utf-8")

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not isinstance(outputs, Mapping) or "probabilities" not in outputs:
            raise ValueError(f"{type(pl_module).__name__}.predict_step must return a mapping with `probabilities`")
        datamodule = getattr(trainer, "datamodule", None)
        index = self._index(trainer, outputs)
        paths = getattr(datamodule, "predict_paths", None)
        files = [paths[i] for i in index] if paths else [None] * len(index)
        numbers = [str(label) for label in range(outputs["probabilities"].shape[1])]
        self._names = getattr(pl_module, "class_names", numbers)
        thresholds = getattr(pl_module, "thresholds", None)
        records = prediction_records(outputs["probabilities"], index, self._names, files, self.top_k, thresholds)
        targets = outputs["target"].tolist() if "target" in outputs else [None] * len(index)
        names = getattr(datamodule, "class_names", self._names)
        assert self._part is not None
        for record, target in zip(records, targets, strict=True):
            truth = _truth(target, names) if thresholds is None else _truths(target, names)
            self._part.write(json.dumps(record | truth) + "\n")

    def on_predict_end(self, trainer: Trainer, pl_module: Any) -> None:
        assert self._part is not None
        self._part.close()
        trainer.strategy.barrier("every part is written")
        if trainer.is_global_zero:
            merge([self._part_of(rank) for rank in range(trainer.world_size)], self._scratch, self._names)
            for name in (JSONL, CSV):
                (self._scratch / name).replace(self.folder / name)
        trainer.strategy.barrier("the parts are merged")

    @rank_zero_only
    def clean_up(self) -> None:
        """Remove the parts."""
        shutil.rmtree(self._scratch, ignore_errors=True)

    @property
    def _scratch(self) -> Path:
        return self.folder / ".predictions"

    def _part_of(self, rank: int) -> Path:
        return self._scratch / f"rank_{rank}.jsonl"

    def _index(self, trainer: Trainer, outputs: Mapping[str, Any]) -> list[int]:
        start = self._last + 1
        source = type(getattr(trainer, "datamodule", None)).__name__
        if "index" in outputs:
            index: list[int] = outputs["index"].tolist()
        elif trainer.world_size == 1:
            index = list(range(start, start + len(outputs["probabilities"])))
        else:
            raise ValueError(f"batches of {source} have no `index` to merge the processes by; use --trainer.devices 1")
        if any(later <= earlier for earlier, later in pairwise([self._last, *index])):
            raise ValueError(f"{source} predicts samples twice or out of order; give it one loader, without shuffling")
        self._last = index[-1]
        return index


def _truth(target: Any, names: Sequence[str]) -> dict[str, Any]:
    """A label and its name; -1 is a label that nobody knows, and one that the data does not name has no name."""
    name = names[target] if isinstance(target, int) and 0 <= target < len(names) else None
    return {"target": None if target == -1 else target, "target_name": name}


def _truths(target: Any, names: Sequence[str]) -> dict[str, Any]:
    """Several labels an image as 0 and 1, and the names of those that are there."""
    if not isinstance(target, list):
        known = _truth(target, names)
        return known | {"target_name": None if known["target_name"] is None else [known["target_name"]]}
    there = [name for name, label in zip(names, target, strict=True) if label > 0.5]
    return {"target": [int(label > 0.5) for label in target], "target_name": there}


def _files(cli: Any, images: str, ckpt_path: str, reading: dict[str, Any]) -> ImageFolder:
    told = saved_preprocessing(cli, ckpt_path)
    prepared = {name: told[name] for name in ("channels", "image_size", "resize", "mean", "std")}
    datamodule = ImageFolder(predict_root=images, **{"batch_size": 64, **prepared, **reading})
    datamodule.setup()
    return datamodule

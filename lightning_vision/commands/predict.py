"""Write what a checkpoint says about images to files: classes, objects in COCO's form, features, or colours."""

from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.cli import SaveConfigCallback

from lightning_vision.commands._colour_files import ColourFiles
from lightning_vision.commands._detection_files import DetectionFiles
from lightning_vision.commands._feature_files import FeatureFiles
from lightning_vision.commands._files import output_folder, saved_preprocessing
from lightning_vision.commands._prediction_files import LabelFiles
from lightning_vision.commands._prediction_writer import PNG, PredictionFiles, PredictionWriter
from lightning_vision.commands._report import print_table, require
from lightning_vision.datamodules.coco_detection import CocoDetection
from lightning_vision.datamodules.common.datamodule import VisionDataModule
from lightning_vision.datamodules.image_folder import ImageFolder
from lightning_vision.detection.detector import ObjectDetector
from lightning_vision.generation.colourisation import ColourisationGAN
from lightning_vision.generation.generator import ImageGenerator
from lightning_vision.self_supervised.learner import SelfSupervisedLearner


def run(
    cli: Any,
    ckpt_path: str | None = None,
    images: str | None = None,
    batch_size: int | None = None,
    num_workers: int | None = None,
    on_bad_image: Literal["error", "skip"] | None = None,
    top_k: int | None = None,
    sheet: int = 0,
    output: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Predict the datamodule's test split, or the image files of a folder.

    Args:
        ckpt_path: Checkpoint whose weights predict; without it the freshly built model does.
        images: Image file, or folder searched with all its sub-folders; prepared as the checkpoint was trained.
        batch_size: Files of `images` at once on each rank, if not given 64, for detectors 16.
        num_workers: Processes that decode files of `images`, 0 if not given.
        on_bad_image: Stop at a file of `images` that cannot be decoded (`error`, if not given), or leave it out.
        top_k: Classes to list for each image, most probable first, 5 if not given; for classifiers.
        sheet: Images to draw with what was predicted, of classifiers mistakes first, to `predictions.png`.
        output: Folder for the files; without it the run's folder or the current one.
        overwrite: Replace the files of an earlier prediction.

    Returns:
        `jsonl`, `csv` (of a detector `json`, of a learner without labels `npy`, of colours the folder `colourised`)
        and, with `sheet`, `png`: the paths written, and `count`, the images predicted.

    Raises:
        ValueError: there is nothing to predict, or an option is missing or goes with another one.
        FileExistsError: a file exists and `overwrite` is off.
    """
    if top_k is not None and top_k < 1:
        raise ValueError(f"--top_k {top_k}: at least one class must be listed")
    if sheet < 0:
        raise ValueError(f"--sheet {sheet}: give how many images to draw, 0 for none")
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
    if isinstance(cli.model, ImageGenerator):
        raise ValueError(f"{type(cli.model).__name__} makes images and says nothing of those it is given; run `sample`")
    detects, learns = isinstance(cli.model, ObjectDetector), isinstance(cli.model, SelfSupervisedLearner)
    if detects and top_k is not None:
        raise ValueError(
            f"--top_k {top_k} goes with classifiers; how many objects are listed say --model.max_detections and "
            "--model.score_threshold beside the --config that it was trained with"
        )
    colours = isinstance(cli.model, ColourisationGAN)
    if (learns or colours) and top_k is not None:
        raise ValueError(f"--top_k {top_k} goes with classifiers; {type(cli.model).__name__} knows no classes")
    datamodule = cli.datamodule if images is None else _files(cli, images, str(ckpt_path), reading)
    if sheet and not isinstance(datamodule, VisionDataModule):
        raise ValueError(f"--sheet {sheet}: {type(datamodule).__name__} is not of this package and cannot draw one")
    written: PredictionFiles = LabelFiles(5 if top_k is None else top_k)
    if detects or learns or colours:
        written = DetectionFiles() if detects else FeatureFiles() if learns else ColourFiles()
    names = [*written.names.values(), *([PNG] if sheet else [])]
    writer = PredictionWriter(output_folder(cli, output, names, overwrite), written)
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
    files = {kind: str(writer.folder / name) for kind, name in written.names.items()}
    if not Path(files["jsonl"]).exists():
        raise ValueError("nothing was predicted, for --trainer.limit_predict_batches is 0")
    with open(files["jsonl"], encoding="utf-8") as lines:
        count = sum(1 for _ in lines)
    if sheet:
        files["png"] = str(writer.folder / PNG)
    if cli.trainer.is_global_zero:
        if sheet:
            written.draw(datamodule, Path(files["jsonl"]), sheet, Path(files["png"]))
        print_table("written", {"images": str(count), **files})
    return {**files, "count": count}


def _files(cli: Any, images: str, ckpt_path: str, reading: dict[str, Any]) -> VisionDataModule:
    told = saved_preprocessing(cli, ckpt_path)
    prepared = {name: told[name] for name in ("channels", "image_size", "resize", "mean", "std")}
    datamodule: VisionDataModule
    if isinstance(cli.model, ObjectDetector):
        datamodule = CocoDetection(predict_root=images, **{"batch_size": 16, **prepared, **reading})
    else:
        datamodule = ImageFolder(predict_root=images, **{"batch_size": 64, **prepared, **reading})
    datamodule.setup()
    return datamodule

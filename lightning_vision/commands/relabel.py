"""Store what a teacher says of every place of the training images, so that crops learn from labels of their own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins.precision import Precision
from torch import Tensor

from lightning_vision.classification.calibration import Calibration
from lightning_vision.classification.classifier import ImageClassifier
from lightning_vision.classification.score_maps import score_maps
from lightning_vision.commands._answering import begun, file_digest, filled, read_teacher, usable
from lightning_vision.commands._folders import prepare_folder
from lightning_vision.commands._report import print_table, require, require_one_process
from lightning_vision.datamodules.common._answers import ANSWERS, AnswerStore
from lightning_vision.datamodules.common._fingerprint import fingerprint
from lightning_vision.datamodules.common.datamodule import VisionDataModule
from lightning_vision.datamodules.relabel import top_label_pooling, top_scores
from lightning_vision.images import rescale, scale_and_shift

# By how much the mean of a teacher's map may differ from its answer, as a share of the largest score: half precision.
TOLERANCE = 0.02


def run(
    cli: Any,
    teacher: str,
    top_k: int = 5,
    image_size: int | None = None,
    output: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Let a teacher score every cell of each training image and store the label maps (Yun et al. 2021).

    An interrupted command goes on where it was when it is run again; a finished one only reports.

    Args:
        teacher: Checkpoint of an ImageClassifier, or the name of a network of timm's with weights for these classes.
        top_k: Classes whose scores are stored of each cell, the highest ones.
        image_size: Shorter side of the images that the teacher is shown, pixels; larger ones make finer maps. Where it
            is not given they are as the data has them.
        output: Folder of the store; `relabel` below the trainer's root if not given.
        overwrite: Replace a store of another teacher, other settings or data.

    Returns:
        `store`, its folder; `images`, how many; `map_size`, cells of a map; `bytes_per_image`; `agreement`, the share
        of images whose stored map names the teacher's own class; `elsewhere`, the share of cells that name another
        class than their image; where labels are known `accuracy` of the teacher.

    Raises:
        ValueError: an option is out of its range, several processes; the data are not of this package, have no training
            images or several labels an image; the teacher is no ImageClassifier of these classes and channels, its file
            holds code, its answer is not the mean of its scores in every cell, or these are no numbers; the store is
            damaged or the folder cannot be written to.
        FileNotFoundError: there is neither such a checkpoint nor such a network.
        FileExistsError: another store is in the folder and `overwrite` is off.
    """
    require(cli, "data")
    require_one_process(cli, "relabel")
    data = usable(cli.datamodule, "relabelled")
    if not 1 <= top_k <= data.num_classes or (image_size is not None and image_size < 1):
        raise ValueError(
            f"--top_k {top_k} must be between 1 and the {data.num_classes} classes and --image_size {image_size} at "
            "least 1 pixel"
        )
    annotator = _annotator(teacher, data, image_size, cli.trainer)
    folder = Path(output or Path(cli.trainer.default_root_dir) / "relabel").absolute()
    assert data.train_set is not None
    spread = torch.linspace(0, len(data.train_set) - 1, 2).long()
    shown = data.train_set.fetch(spread).image.to(annotator.module.device)
    annotator.check(shown)
    with torch.inference_mode():
        size = list(annotator(shown).shape[2:])
    prepare_folder(folder, "choose another --output")
    wanted = {
        "command": "relabel",
        "samples": len(data.train_set),
        "num_samples": 1,
        "top_k": top_k,
        "num_classes": data.num_classes,
        "map_size": size,
        "image_size": image_size,
        "teacher": annotator.origin,
        "data": fingerprint(data, 0, augmented=False),
    }
    store = begun(folder, wanted, overwrite)

    def answer(batch: dict[str, Any]) -> tuple[Tensor, Tensor, dict[str, float]]:
        maps = annotator(batch["image"])
        classes, scores = top_scores(maps, top_k)
        scores = scores.half().float()
        if not scores.isfinite().all():
            raise ValueError(
                f"{teacher} gives scores that are no numbers, or none that half precision holds; give another"
            )
        return classes, scores, _tallied(classes, scores, maps.mean((2, 3)), data.num_classes, batch.get("target"))

    filled(store, data, annotator.module.device, answer)
    return _report(store)


@dataclass(frozen=True)
class _Annotator:
    """A teacher, what it takes, and what it says of every cell.

    Args:
        module: At rest, on its device.
        origin: What tells it from others.
        mean: Of its images, in 0..1.
        std: Likewise.
        image_size: Shorter side of the images that it is shown, pixels; None leaves them.
        precision: Of its forward; images are prepared outside of it, as in training.
    """

    module: ImageClassifier
    origin: str
    mean: list[float]
    std: list[float]
    image_size: int | None
    precision: Precision

    def __call__(self, image: Tensor) -> Tensor:
        """Scores of every cell, float32 `(B, K, h, w)`.

        Args:
            image: uint8 `(B, C, H, W)`, or floats of the user's.
        """
        seen = self._prepared(image)
        with self.precision.forward_context():
            maps = score_maps(self.module.network, seen)
        return (self.module.calibration or Calibration())(maps)

    def check(self, image: Tensor) -> None:
        """Compare the mean of the maps with what the teacher says.

        Raises:
            ValueError: they differ.
        """
        with torch.inference_mode():
            with self.precision.forward_context():
                said = self.module.network(self._prepared(image)).float()
            said = (self.module.calibration or Calibration())(said)
            apart = float((self(image).mean((2, 3)) - said).abs().max())
        if not apart <= TOLERANCE * max(float(said.abs().max()), 1):
            kind = type(self.module.network).__name__
            raise ValueError(
                f"the mean of what {kind} says of every cell is {apart:.2g} away from what it says of the "
                "image, so it does more than averaging between its maps and its classifier; give another teacher, such "
                "as a resnet50"
            )

    def _prepared(self, image: Tensor) -> Tensor:
        unit = 255 if image.dtype == torch.uint8 else 1
        seen = rescale(image, *scale_and_shift(self.mean, self.std, image.device, unit))
        if self.image_size is not None:
            ratio = self.image_size / min(seen.shape[2:])
            size = [round(side * ratio) for side in seen.shape[2:]]
            seen = F.interpolate(seen, size, mode="bilinear", antialias=True)
        return (self.module.calibration or Calibration()).perturb(seen)


def _annotator(teacher: str, data: VisionDataModule, image_size: int | None, trainer: Any) -> _Annotator:
    """The teacher of a checkpoint or of timm's, on the trainer's device.

    Raises:
        ValueError: it does not fit the data.
        FileNotFoundError: there is neither.
    """
    if Path(teacher).is_file() or not timm.is_model(teacher):
        module, origin = read_teacher(teacher, data), file_digest(teacher)
        told = module.preprocessing or {"mean": data.mean, "std": data.std}
    else:
        settings = timm.get_pretrained_cfg(teacher) if timm.is_model_pretrained(teacher) else None
        fits = settings is not None and (settings.num_classes, 3) == (data.num_classes, data.in_channels)
        if settings is None or not fits:
            known = "no weights" if settings is None else f"weights for {settings.num_classes} classes and 3 channels"
            raise ValueError(
                f"timm has {known} of {teacher}, and {type(data).__name__} has {data.num_classes} classes and "
                f"{data.in_channels} channels; give a checkpoint of an ImageClassifier of these images"
            )
        module = ImageClassifier(teacher, data.num_classes, data.in_channels, pretrained=True).eval()
        origin, told = f"timm {teacher}", {"mean": list(settings.mean), "std": list(settings.std)}
    module.requires_grad_(False).to(trainer.strategy.root_device)
    return _Annotator(module, origin, told["mean"], told["std"], image_size, trainer.precision_plugin)


def _tallied(classes: Tensor, scores: Tensor, own: Tensor, num_classes: int, target: Tensor | None) -> dict[str, float]:
    """Sums over a batch from which the report is made."""
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=scores.device).expand(len(scores), 4)
    named, said = top_label_pooling(classes, scores, whole, (1, 1), num_classes).argmax(1), own.argmax(1)
    told: dict[str, Any] = {"images": len(own), "alike": (named == said).sum()}
    told["elsewhere"] = (classes[..., 0] != named[:, None, None]).double().mean((1, 2)).sum()
    if target is not None:
        told["right"] = (said.cpu() == target).sum()
    return {name: float(value) for name, value in told.items()}


def _report(store: AnswerStore) -> dict[str, Any]:
    tallies, index = store.index["tallies"], store.index
    found: dict[str, Any] = {
        "store": str(store.folder),
        "images": int(tallies["images"]),
        "map_size": tuple(index["map_size"]),
        "bytes_per_image": (store.folder / ANSWERS).stat().st_size / index["samples"],
        "agreement": tallies["alike"] / tallies["images"],
        "elsewhere": tallies["elsewhere"] / tallies["images"],
    }
    height, width = found["map_size"]
    rows = {
        "images": f"{found['images']}, maps of {height} x {width} cells, {index['top_k']} classes each",
        "bytes an image": f"{found['bytes_per_image']:.0f}",
        "the stored map names the teacher's class": f"{found['agreement']:.4f}",
        "cells that name another class": f"{found['elsewhere']:.4f}",
    }
    if "right" in tallies:
        found["accuracy"] = tallies["right"] / tallies["images"]
        rows["accuracy of the teacher"] = f"{found['accuracy']:.4f}"
    print_table(f"relabelled in {store.folder}", rows)
    return found

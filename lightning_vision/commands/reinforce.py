"""Store what teachers say of augmented training images, once, so that later trainings learn from them at no cost."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.precision import Precision
from torch import Tensor

from lightning_vision.classification.calibration import Calibration
from lightning_vision.classification.classifier import ImageClassifier
from lightning_vision.commands._answering import begun, file_digest, filled, read_teacher, usable
from lightning_vision.commands._folders import prepare_folder
from lightning_vision.commands._report import print_table, require, require_one_process
from lightning_vision.datamodules.common._answers import ANSWERS, AnswerStore
from lightning_vision.datamodules.common._fingerprint import fingerprint
from lightning_vision.datamodules.common.datamodule import VisionDataModule
from lightning_vision.images import rescale, scale_and_shift


def run(
    cli: Any,
    teacher: list[str] | str,
    num_samples: int = 4,
    top_k: int = 5,
    temperature: float = 1.0,
    output: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Show teachers random augmentations of every training image and store their answers (Faghri et al. 2023).

    An interrupted command goes on where it was when it is run again; a finished one only reports.

    Args:
        teacher: Checkpoint of an ImageClassifier, or several, whose probabilities are averaged.
        num_samples: Augmentations of each image.
        top_k: Classes whose probabilities are stored, the most probable ones.
        temperature: What the teachers' logits are divided by, above 0; 1 leaves them as they are.
        output: Folder of the store; `reinforcement` below the trainer's root if not given.
        overwrite: Replace a store of other teachers, settings or data.

    Returns:
        `store`, its folder; `entries`, how many; `bytes_per_image`; `kept`, the mean sum of the stored probabilities;
        where labels are known `accuracy` on the augmented images, of each teacher by its path and, of several, of their
        `mean`; of several `agreement`, the share of entries to which all give the same class.

    Raises:
        ValueError: an option is out of its range, several processes; the data are not of this package, have no training
            images or several labels an image; a teacher is no ImageClassifier of these classes and channels, its file
            holds code or its answers are no numbers; the store is damaged or the folder cannot be written to.
        FileNotFoundError: there is no such checkpoint.
        FileExistsError: another store is in the folder and `overwrite` is off.
    """
    require(cli, "data")
    require_one_process(cli, "reinforce")
    data, paths = usable(cli.datamodule, "reinforced"), [teacher] if isinstance(teacher, str) else list(teacher)
    if num_samples < 1 or not 1 <= top_k <= data.num_classes or not temperature > 0:
        raise ValueError(
            f"--num_samples {num_samples} must be at least 1, --top_k {top_k} between 1 and the {data.num_classes} "
            f"classes, --temperature {temperature:g} above 0"
        )
    teachers = [read_teacher(path, data) for path in paths]
    folder = Path(output or Path(cli.trainer.default_root_dir) / "reinforcement").absolute()
    prepare_folder(folder, "choose another --output")
    wanted = {
        "command": "reinforce",
        "samples": len(data.train_set or ()),
        "num_samples": num_samples,
        "top_k": top_k,
        "num_classes": data.num_classes,
        "temperature": temperature,
        "seed": data.seed,
        "teachers": [file_digest(path) for path in paths],
        "data": fingerprint(data, data.seed),
    }
    store = begun(folder, wanted, overwrite)
    device = cli.trainer.strategy.root_device
    for each in teachers:
        each.to(device)

    def answer(batch: dict[str, Any]) -> tuple[Tensor, Tensor, dict[str, float]]:
        image = data.augment(batch["image"], batch["index"].to(device), 0)
        answers = _answers(teachers, image, data, temperature, cli.trainer.precision_plugin)
        if not answers.isfinite().all():
            raise ValueError(
                "a teacher gives probabilities that are no numbers; give another, or --trainer.precision 32"
            )
        top = answers.mean(0).topk(top_k)
        return top.indices, top.values, _tallied(answers, top, batch.get("target"))

    filled(store, data, device, answer)
    return _report(store, paths)


def _answers(
    teachers: list[ImageClassifier], image: Tensor, data: VisionDataModule, temperature: float, precision: Precision
) -> Tensor:
    """Probabilities that teachers give of augmented images, float32 `(teachers, B, C)`, each normalised as it learned.

    Args:
        teachers: On the device.
        image: uint8 `(B, C, H, W)`, or floats of the user's.
        data: How images are normalised for a teacher that does not tell.
        temperature: What logits are divided by.
        precision: Of the teachers' forward; images are prepared outside of it, as in training.
    """
    found = []
    for teacher in teachers:
        told = teacher.preprocessing or {"mean": data.mean, "std": data.std}
        unit = 255 if image.dtype == torch.uint8 else 1
        seen = rescale(image, *scale_and_shift(told["mean"], told["std"], image.device, unit))
        with precision.forward_context():
            logits = (teacher.calibration or Calibration()).logits(teacher, seen)
        found.append((logits.float() / temperature).softmax(1))
    return torch.stack(found)


def _tallied(answers: Tensor, top: Any, target: Tensor | None) -> dict[str, float]:
    """Sums over a batch from which the report is made."""
    said = answers.argmax(2).cpu()
    told = {"entries": len(top.values), "kept": top.values.double().sum(), "alike": (said == said[0]).all(0).sum()}
    if target is not None:
        told |= {f"right {number}": (each == target).sum() for number, each in enumerate(said)}
        told["right"] = (top.indices[:, 0].cpu() == target).sum()
    return {name: float(value) for name, value in told.items()}


def _report(store: AnswerStore, paths: list[str]) -> dict[str, Any]:
    tallies, index = store.index["tallies"], store.index
    entries = tallies["entries"]
    size = (store.folder / ANSWERS).stat().st_size
    found: dict[str, Any] = {
        "store": str(store.folder),
        "entries": int(entries),
        "bytes_per_image": size / index["samples"],
        "kept": tallies["kept"] / entries,
    }
    rows = {
        "entries": f"{int(entries)}, {index['num_samples']} of each of {index['samples']} images",
        "bytes an image": f"{found['bytes_per_image']:.0f}",
        f"probability of the {index['top_k']} stored classes": f"{found['kept']:.4f}",
    }
    if "right" in tallies:
        found["accuracy"] = {path: tallies[f"right {number}"] / entries for number, path in enumerate(paths)}
        if len(paths) > 1:
            found["accuracy"]["mean"] = tallies["right"] / entries
        rows |= {f"accuracy of {name}": f"{value:.4f}" for name, value in found["accuracy"].items()}
    if len(paths) > 1:
        found["agreement"] = tallies["alike"] / entries
        rows["all teachers agree"] = f"{found['agreement']:.4f}"
    print_table(f"reinforced in {store.folder}", rows)
    return found

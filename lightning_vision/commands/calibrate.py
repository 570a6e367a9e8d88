"""Make a checkpoint's probabilities true: fit a temperature on the validation split, and show it on the test split."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from lightning_vision.classification.calibration import Calibration
from lightning_vision.classification.clamping import neural_clamping
from lightning_vision.classification.classifier import ImageClassifier
from lightning_vision.classification.metrics import accuracy, label_accuracy
from lightning_vision.classification.reliability_bins import Reliability, reliability, reliability_diagram
from lightning_vision.classification.temperature import fit_temperature
from lightning_vision.commands._folders import prepare_folder
from lightning_vision.commands._report import print_table, require, require_one_process
from lightning_vision.datamodules.common.datamodule import VisionDataModule

PNG = "reliability.png"


def run(
    cli: Any,
    ckpt_path: str,
    method: Literal["temperature", "neural_clamping"] = "temperature",
    lr: float | None = None,
    epochs: int | None = None,
    focal_gamma: float | None = None,
    penalty: float | None = None,
    bins: int = 15,
    output: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a copy of a checkpoint whose tests, predictions and exported programs are calibrated.

    Args:
        ckpt_path: Checkpoint to calibrate; it stays as it is.
        method: One `temperature`, or `neural_clamping`, which also learns a shift of all images.
        lr: Learning rate of `neural_clamping`, 0.001 if not given.
        epochs: Passes of `neural_clamping` over the validation split, 20 if not given.
        focal_gamma: Exponent of `neural_clamping`'s focal loss, 1 if not given; 0 is the negative log-likelihood.
        penalty: Factor of `neural_clamping` on the sum of the shift's squares, 1 if not given.
        bins: Bins of confidence in the figures and the diagram.
        output: File to write, `NAME-calibrated.ckpt` beside the checkpoint if not given; beside it `reliability.png`.
        overwrite: Replace the files of an earlier calibration.

    Returns:
        `checkpoint` and `picture`, the paths written, `temperature`, and for `val` and, where there is one, `test` the
        figures `before` and `after`: `nll`, `ece` and `acc`.

    Raises:
        ValueError: the model is no classifier, there is no labelled validation split or only one class in it, no
            temperature fits, an option goes with another method, or there are several processes.
        FileExistsError: a file exists and `overwrite` is off.
    """
    given: dict[str, Any] = {"lr": lr, "epochs": epochs, "focal_gamma": focal_gamma, "penalty": penalty}
    knobs = {name: value for name, value in given.items() if value is not None}
    if knobs and method == "temperature":
        raise ValueError(f"--{next(iter(knobs))} goes with --method neural_clamping; a temperature has nothing to set")
    require(cli, "model", "data")
    module = cli.model
    if not isinstance(module, ImageClassifier):
        raise ValueError(f"{type(module).__name__} is no ImageClassifier, so there are no class logits to calibrate")
    if method == "neural_clamping" and module.multilabel:
        raise ValueError(
            "neural_clamping takes one label an image and this model gives several; use --method temperature"
        )
    require_one_process(cli, "calibrate")
    file = Path(output) if output else Path(ckpt_path).with_name(f"{Path(ckpt_path).stem}-calibrated.ckpt")
    picture = file.with_name(PNG)
    if not overwrite and (present := [path for path in (file, picture) if path.exists()]):
        raise FileExistsError(f"{present[0]} exists; choose another --output or add --overwrite")
    prepare_folder(file.absolute().parent, "choose another --output")
    content = dict(cli.checkpoint)
    earlier = content.get("calibration")
    if earlier:
        print(
            f"{ckpt_path} is calibrated already; its temperature {earlier['temperature']:.4g} is replaced, not added to"
        )
    # Its forward gives the logits of the network alone, also where it is calibrated.
    module.to(cli.trainer.strategy.root_device).eval()
    datamodule, source = cli.datamodule, type(cli.datamodule).__name__
    datamodule.prepare_data()
    splits: dict[str, Split] = {}
    try:
        for name, stage in (("val", "validate"), ("test", "test")):
            datamodule.setup(stage)
            split = Split(datamodule, name, module)
            if split.loaders:
                splits[name] = split
        if "val" not in splits:
            raise ValueError(f"{source} has no validation split, on which a calibration is fitted; give it one")
        before = {name: split.outputs() for name, split in splits.items()}
        logits, target = before["val"]
        if target.unique().numel() < 2:
            raise ValueError(f"the validation split of {source} holds one class only; a calibration needs several")
        if method == "temperature":
            calibration = Calibration(fit_temperature(logits, target))
        else:
            calibration = neural_clamping(module, splits["val"], **knobs).to(module.device)
        after = {name: split.outputs(calibration) for name, split in splits.items()}
    finally:
        datamodule.teardown("validate")
    shown: dict[str, Reliability] = {}
    results: dict[str, Any] = {}
    rows = {"split": "".join(f"{name:>18}" for name in ("nll", "ece", "acc"))}
    for name in splits:
        measured = [_figures(*outputs[name], bins) for outputs in (before, after)]
        for when, (_, found) in zip(("before", "after"), measured, strict=True):
            shown[f"{name}, {when}"] = found
        old, new = (figures for figures, _ in measured)
        results[name] = {"before": old, "after": new}
        rows[name] = "".join(f"{old[key]:9.4f} > {new[key]:6.4f}" for key in old)
    # Decisions stay what they were: a threshold is moved as its label's probability is.
    if content.get("thresholds"):
        ratio = (earlier["temperature"] if earlier else 1.0) / calibration.temperature
        moved = torch.tensor(content["thresholds"], dtype=torch.float64).logit().mul(ratio).sigmoid()
        content["thresholds"] = moved.tolist()
    content["calibration"] = calibration.state()
    part = file.with_name(f".{file.name}.part")
    torch.save(content, part)
    part.replace(file)
    reliability_diagram(shown).savefig(picture, dpi=100)
    print_table(f"temperature {calibration.temperature:.4g}, fitted on {len(target)} images of {source}", rows)
    print_table("written", {"checkpoint": str(file), "picture": str(picture)})
    return {"checkpoint": str(file), "picture": str(picture), "temperature": calibration.temperature, **results}


class Split:
    """A split of a datamodule as the model gets it: normalised images on its device, and known labels, again and again.

    Args:
        datamodule: Set up for the split.
        name: `val` or `test`.
        module: In evaluation mode.
    """

    def __init__(self, datamodule: Any, name: str, module: ImageClassifier) -> None:
        self.datamodule, self.module = datamodule, module
        ours = isinstance(datamodule, VisionDataModule)
        absent = ours and getattr(datamodule, f"{name}_set") is None
        offered = not absent and is_overridden(f"{name}_dataloader", datamodule)
        loaders = getattr(datamodule, f"{name}_dataloader")() if offered else None
        self.loaders = loaders if isinstance(loaders, list | tuple) else [] if loaders is None else [loaders]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        data, module = self.datamodule, self.module
        for number, loader in enumerate(self.loaders):
            for batch in loader:
                batch = data.on_before_batch_transfer(batch, number)
                batch = data.transfer_batch_to_device(batch, module.device, number)
                batch = data.on_after_batch_transfer(batch, number)
                image, target = (batch["image"], batch["target"]) if isinstance(batch, dict) else batch[:2]
                if module.multilabel:
                    target = F.one_hot(target, module.num_classes) if target.ndim == 1 else (target > 0.5).long()
                yield image, target.argmax(1) if target.ndim == 2 and not module.multilabel else target

    def outputs(self, calibration: Calibration | None = None) -> tuple[Tensor, Tensor]:
        """Logits `(N, K)`, calibrated where a calibration is given, and what is known of the images, on the CPU."""
        found = calibration or Calibration()
        logits, known = [], []
        with torch.no_grad():
            for image, target in self:
                logits.append(found(self.module(found.perturb(image))).float().cpu())
                known.append(target.cpu())
        return torch.cat(logits), torch.cat(known)


def _figures(logits: Tensor, target: Tensor, bins: int) -> tuple[dict[str, float], Reliability]:
    if target.ndim == 1:
        nll, acc, probabilities = F.cross_entropy(logits, target), accuracy(logits, target), logits.softmax(1)
    else:
        nll = F.binary_cross_entropy_with_logits(logits, target.float())
        acc, probabilities = label_accuracy(logits, target), logits.sigmoid()
    found = reliability(probabilities, target, bins)
    return {"nll": float(nll), "ece": found.ece, "acc": float(acc)}, found

"""Make a checkpoint's probabilities true: fit a temperature on the validation split, and show it on the test split."""

from pathlib import Path
from typing import Any, Literal

import torch

from lightning_vision.base.module import changed_preprocessing
from lightning_vision.classification.calibration import Calibration
from lightning_vision.classification.clamping import neural_clamping
from lightning_vision.classification.classifier import ImageClassifier
from lightning_vision.classification.reliability_bins import reliability_diagram
from lightning_vision.classification.temperature import fit_temperature
from lightning_vision.commands._before_after import compared, rows_of
from lightning_vision.commands._files import output_folder
from lightning_vision.commands._known_images import known_splits
from lightning_vision.commands._report import print_table, require, require_one_process

PNG = "reliability.png"
# Below so many images a bin of the calibration error holds less than ten.
FEW = 150


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
        output: Folder for `NAME-calibrated.ckpt` and `reliability.png`, the checkpoint's own if not given.
        overwrite: Replace the files of an earlier calibration.

    Returns:
        `checkpoint` and `picture`, the paths written, `temperature`, and for `val` and, where there is one, `test` the
        figures `before` and `after`: `nll`, `ece` and `acc`.

    Raises:
        ValueError: the model is no classifier, the data is prepared otherwise than it was trained on, there is no
            labelled validation split or only one class in it, no temperature fits, an option goes with another method,
            or there are several processes.
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
    for key, (trained, now) in changed_preprocessing(cli.checkpoint.get("preprocessing"), cli.datamodule).items():
        source = type(cli.datamodule).__name__
        raise ValueError(
            f"the checkpoint was trained with {key} {trained} and {source} gives {now}, for which a calibration would "
            "not hold; give the data as it was trained on"
        )
    name = f"{Path(ckpt_path).stem}-calibrated.ckpt"
    folder = output_folder(cli, output or str(Path(ckpt_path).parent), (name, PNG), overwrite)
    file, picture = folder / name, folder / PNG
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
    try:
        splits = known_splits(datamodule, module)
        before = {split: images.outputs() for split, images in splits.items()}
        logits, target = before["val"]
        if target.ndim == 2 and bool((target < 0).any()):
            raise ValueError(
                f"the validation split of {source} has labels that nobody knows, by which no temperature fits; "
                "calibrate on images of which all labels are verified"
            )
        if target.unique().numel() < 2:
            raise ValueError(f"the validation split of {source} holds one class only; a calibration needs several")
        if method == "temperature":
            calibration = Calibration(fit_temperature(logits, target))
        else:
            calibration = neural_clamping(module, splits["val"], **knobs).to(module.device)
        after = {split: images.outputs(calibration) for split, images in splits.items()}
    finally:
        datamodule.teardown("validate")
    measured = {split: compared(before[split], after[split], bins) for split in splits}
    figures = {split: told for split, (told, _) in measured.items()}
    diagrams = {f"{split}, {when}": found for split, (_, pair) in measured.items() for when, found in pair.items()}
    # Decisions stay what they were: a threshold is moved as its label's probability is.
    if content.get("thresholds"):
        ratio = (earlier["temperature"] if earlier else 1.0) / calibration.temperature
        moved = torch.tensor(content["thresholds"], dtype=torch.float64).logit().mul(ratio).sigmoid()
        content["thresholds"] = moved.tolist()
    content["calibration"] = calibration.state()
    part = file.with_name(f".{file.name}.part")
    torch.save(content, part)
    part.replace(file)
    reliability_diagram(diagrams).savefig(picture, dpi=100)
    title = f"temperature {calibration.temperature:.4g}, fitted on {len(target)} images of {source}"
    print_table(title, rows_of(figures))
    if len(target) < FEW:
        print(f"  {len(target)} images tell little: a calibration error of so few is mostly chance")
    print_table("written", {"checkpoint": str(file), "picture": str(picture)})
    return {"checkpoint": str(file), "picture": str(picture), "temperature": calibration.temperature, **figures}

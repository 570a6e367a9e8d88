"""Write a checkpoint as an ONNX, torch.export or timm file, compared with the original."""

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from timm.models import model_entrypoint
from torch import Tensor

from lightning_vision.base.weights import load_checkpoint
from lightning_vision.callbacks.pruning.shrink import shrink as cut_zero_channels
from lightning_vision.classification.calibration import Calibration
from lightning_vision.commands._changed_networks import tell_of_other_functions
from lightning_vision.commands._compared_images import compared_images, known_data
from lightning_vision.commands._exported_detector import export_detector
from lightning_vision.commands._files import output_folder, saved_preprocessing
from lightning_vision.commands._report import print_table
from lightning_vision.detection.detector import ObjectDetector
from lightning_vision.export import programs
from lightning_vision.images import normalise
from lightning_vision.self_supervised.learner import SelfSupervisedLearner

Format = Literal["onnx", "torch_export", "timm"]
FILES = {"onnx": "model.onnx", "torch_export": "model.pt2", "timm": "model.safetensors"}
# Logits above ten are held to a share of the largest: float32 sums in another order differ by that much.
ABSOLUTE, RELATIVE = 1e-4, 1e-5


def run(
    cli: Any,
    ckpt_path: str,
    format: Format | Literal["all"] | Sequence[Format] | None = None,
    images: str | None = None,
    output: str | None = None,
    overwrite: bool = False,
    shrink: bool = False,
) -> dict[str, Any]:
    """Write the network of a checkpoint for other programs; of a learner without labels its backbone, for features.

    Args:
        ckpt_path: Checkpoint to export.
        format: `onnx`, `torch_export`, `timm`, a list of them (`[onnx,timm]`), or `all`; if not given the first two,
            of a detector `onnx`, which is all that one can be.
        images: Image file or folder to compare file and checkpoint on; without it the configured data, else noise.
        output: Folder for the files; without it the run's folder or the current one.
        overwrite: Replace the files of an earlier export.
        shrink: Cut out channels that are zero first, as structured pruning leaves them, for a smaller program.

    Returns:
        `files`, the path of each format, and `differences`, the largest between its logits or features and the
        checkpoint's, of a detector between scores.

    Raises:
        ValueError: the checkpoint holds no preprocessing, the configured data is not of this package, a format cannot
            express the network or its calibration, its logits differ, or there is nothing to shrink.
        FileExistsError: a file exists and `overwrite` is off.
        ModuleNotFoundError: ONNX is wanted and its packages are missing.
    """
    if isinstance(cli.model, ObjectDetector):
        if format not in (None, "onnx", ["onnx"], ("onnx",)) or shrink:
            raise ValueError("a detector can be exported as ONNX only; leave out --format and --shrink")
        return export_detector(cli, ckpt_path, images, output, overwrite)
    asked = ["onnx", "torch_export"] if format is None else [format] if isinstance(format, str) else format
    wanted = list(FILES) if format == "all" else list(dict.fromkeys(asked))
    if "onnx" in wanted:
        programs.require_onnx()
    data = known_data(cli.datamodule, images)
    module, told = _restored(cli, ckpt_path), saved_preprocessing(cli, ckpt_path)
    learner = isinstance(module, SelfSupervisedLearner)
    body, said = (module.backbone, "features") if learner else (module.network, "logits")
    calibration: Calibration | None = None if learner else module.calibration
    if calibration is not None and calibration.delta is not None and "timm" in wanted:
        raise ValueError(
            "a timm file holds weights alone, and the checkpoint's calibration shifts images; leave out `timm`, or "
            "calibrate with --method temperature"
        )
    if shrink and "timm" in wanted:
        raise ValueError("a timm file has the widths that timm builds, and --shrink makes others; leave out `timm`")
    name, arguments = _timm_name(module) if "timm" in wanted else ("", {})
    folder = output_folder(cli, output, [FILES[kind] for kind in wanted], overwrite)
    network = programs.RawPixels(body, told["mean"], told["std"], calibration).eval()
    metadata = {"output": said, **{key: json.dumps(value) for key, value in told.items()}}
    # Files appear all at once under their final names, after each was found to be right.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as scratch, torch.no_grad():
        pixels, prepared, source = compared_images(data, told, images)
        expected = (calibration or Calibration()).logits(module, prepared)
        example = torch.zeros(2, *pixels.shape[1:], dtype=torch.uint8)
        if shrink:
            _shrink(body, normalise(pixels[:2], told["mean"], told["std"]))
        program: Any = None if wanted == ["timm"] else programs.trace_program(network, example)
        differences = {}
        for kind in wanted:
            path = Path(scratch, FILES[kind])
            loaded: Callable[[Tensor], Tensor]
            if kind == "timm":
                programs.write_timm(body, metadata | _said_of(calibration, False), path)
                read = programs.read_timm(path, name, arguments)
                # Weights alone: what calibrates them is left to the reader.
                loaded = programs.RawPixels(read, told["mean"], told["std"], calibration)
            elif kind == "onnx":
                programs.write_onnx(program, metadata | _said_of(calibration, True), path)
                loaded = programs.read_onnx(path)
            else:
                programs.write_torch_export(program, metadata | _said_of(calibration, True), path)
                loaded = programs.read_torch_export(path)
            differences[kind] = _difference(f"{kind} {said}", loaded, pixels, expected)
        for file in Path(scratch).iterdir():
            file.replace(folder / file.name)
    files = {kind: str(folder / FILES[kind]) for kind in wanted}
    print_table("written", files)
    print_table(f"largest difference of {said} on {source}", {kind: f"{d:.1e}" for kind, d in differences.items()})
    if "timm" in wanted:
        settings = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        own = model_entrypoint(name).__module__.startswith("lightning_vision.")
        print(f"load it with{' (after `import lightning_vision.backbones`)' if own else ''}")
        print(f"  timm.create_model({name!r}, {settings}, checkpoint_path={files['timm']!r})")
        if calibration is not None:
            print(f"it holds weights alone: divide its logits by {calibration.temperature:.6g} to calibrate them")
    return {"files": files, "differences": differences}


def _restored(cli: Any, ckpt_path: str) -> Any:
    """The module with the checkpoint's weights, whether a config or the checkpoint built it."""
    content = load_checkpoint(ckpt_path)
    tell_of_other_functions(content)
    if cli.config_init.get("model") is not None:
        cli.model.load_state_dict(content["state_dict"])
        if state := content.get("calibration"):
            cli.model.calibration = Calibration.from_state(state)
    return cli.model.cpu().float().eval()


def _shrink(network: Any, images: Tensor) -> None:
    """Cut in place, and tell how much; a network without a channel that is zero is refused."""
    before = sum(it.numel() for it in network.parameters())
    cut_zero_channels(network, images)
    after = sum(it.numel() for it in network.parameters())
    if after == before:
        raise ValueError("no channel of the network is zero, so there is nothing to cut; leave out --shrink")
    print(f"shrunk from {before:,} to {after:,} parameters")


def _said_of(calibration: Calibration | None, applied: bool) -> dict[str, str]:
    """What a file's metadata say of a calibration, and whether the file's logits have it already."""
    if calibration is None:
        return {}
    shift = calibration.delta is not None
    return {"calibration": json.dumps({"temperature": calibration.temperature, "shift": shift, "applied": applied})}


def _timm_name(module: Any) -> tuple[str, dict[str, Any]]:
    name = module.hparams.get("backbone")
    if not isinstance(name, str):
        kind = type(module.network).__name__
        raise ValueError(f"timm cannot build {kind}, it was given as a module and not by name; leave out `timm`")
    settings = getattr(module, "backbone_settings", None) or module.hparams.get("backbone_settings") or {}
    return name, {"num_classes": getattr(module, "num_classes", 0), "in_chans": module.in_channels, **settings}


def _difference(what: str, loaded: Callable[[Tensor], Tensor], pixels: Tensor, expected: Tensor) -> float:
    """Largest difference of the batch's logits or features and of those of its first image alone.

    Raises:
        ValueError: it is too large.
    """
    found = torch.cat([loaded(pixels[:1]), loaded(pixels)])
    difference = float((found - torch.cat([expected[:1], expected])).abs().max())
    limit = max(ABSOLUTE, RELATIVE * float(expected.abs().max()))
    if not difference < limit:
        raise ValueError(f"nothing was written: {what} are off by {difference:.1e}, more than {limit:.0e}")
    return difference

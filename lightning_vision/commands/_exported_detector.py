"""Write a detector's checkpoint as an ONNX file, compared with the original detection by detection."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from lightning_vision.base.weights import load_checkpoint
from lightning_vision.commands._compared_images import compared_images, known_data
from lightning_vision.commands._files import output_folder, saved_preprocessing
from lightning_vision.commands._report import print_table
from lightning_vision.export.detectors import (
    RawDetector,
    compare_detections,
    read_onnx_detector,
    write_onnx_detector,
)
from lightning_vision.export.programs import require_onnx

__all__ = ["export_detector"]

FILE = "model.onnx"


def export_detector(
    cli: Any, ckpt_path: str, images: str | None, output: str | None, overwrite: bool
) -> dict[str, Any]:
    """What `export` does with a detector; arguments and result are those of `export`.

    Raises:
        ValueError: the detector has two stages, or the file finds something else than the checkpoint.
    """
    require_onnx()
    data = known_data(cli.datamodule, images)
    told = saved_preprocessing(cli, ckpt_path)
    if cli.config_init.get("model") is not None:
        cli.model.load_state_dict(load_checkpoint(ckpt_path)["state_dict"])
    module = cli.model.cpu().float().eval()
    size = (told["image_size"][0], told["image_size"][1])
    with torch.no_grad():
        detector = RawDetector(module.network, told["mean"], told["std"], size).eval()
        folder = output_folder(cli, output, [FILE], overwrite)
        pixels, prepared, source = compared_images(data, told, images)
        metadata = {"output": "detections", **{key: json.dumps(value) for key, value in told.items()}}
        # The file appears under its final name after it was found to be right.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as scratch:
            path = Path(scratch, FILE)
            write_onnx_detector(detector, metadata, path)
            detect = read_onnx_detector(path)
            expected, found = module(prepared), detect(pixels)
            limits = detector.network.score_thresh, detector.network.detections_per_img
            difference = compare_detections([*expected[:1], *expected], [*detect(pixels[:1]), *found], *limits)
            path.replace(folder / FILE)
    files = {"onnx": str(folder / FILE)}
    print_table("written", files)
    total = sum(len(image["scores"]) for image in expected)
    print(f"the same {total} detections on {source}; scores differ by at most {difference:.1e}")
    return {"files": files, "differences": {"onnx": difference}}

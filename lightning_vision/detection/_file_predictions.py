"""What a detector says about image files that came from no datamodule."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lightning_vision.images import normalise, read_fitted

from .records import detection_records

if TYPE_CHECKING:
    from .detector import ObjectDetector

__all__ = ["predict_files"]


def predict_files(
    module: "ObjectDetector", paths: Sequence[str | Path] | str | Path, batch_size: int
) -> list[dict[str, Any]]:
    """One record a file, made in evaluation mode; the mode of each part of `module` is as before afterwards.

    Raises:
        ValueError: the module has met no datamodule, a file is no image, or `batch_size` is below 1.
        FileNotFoundError: a file does not exist.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; give at least 1")
    how = module.preprocessing
    if how is None:
        raise ValueError("the preprocessing of raw images is unknown; train on a datamodule, or set `preprocessing`")
    files = [paths] if isinstance(paths, (str, Path)) else list(paths)
    size = (how["image_size"][0], how["image_size"][1])
    records: list[dict[str, Any]] = []
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            for start in range(0, len(files), batch_size):
                part = files[start : start + batch_size]
                images = [read_fitted(path, how["channels"], size, how["resize"]) for path in part]
                pixels = torch.stack([image.pixels for image in images]).to(module.device)
                results = module(normalise(pixels, how["mean"], how["std"]).to(module.dtype))
                placed = [
                    {"placement": torch.tensor(image.placement), "size": torch.tensor(image.size)} for image in images
                ]
                index = range(start, start + len(part))
                records += detection_records(results, placed, index, module.class_names, module.category_ids, part)
    finally:
        for child, mode in modes.items():
            child.training = mode
    return records

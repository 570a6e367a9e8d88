"""What a classifier says about image files that came from no datamodule."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lightning_vision.base.raw_images import read_batch

from .records import prediction_records

if TYPE_CHECKING:
    from .classifier import ImageClassifier


def predict_files(
    module: "ImageClassifier", paths: Sequence[str | Path] | str | Path, batch_size: int, top_k: int
) -> list[dict[str, Any]]:
    """One record a file, made in evaluation mode; the mode of each part of `module` is as before afterwards.

    Raises:
        ValueError: the module has met no datamodule, or a file is no image.
        FileNotFoundError: a file does not exist.
    """
    if module.preprocessing is None:
        raise ValueError("the preprocessing of raw images is unknown; train on a datamodule, or set `preprocessing`")
    files = [paths] if isinstance(paths, (str, Path)) else list(paths)
    records: list[dict[str, Any]] = []
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            for start in range(0, len(files), batch_size):
                part = files[start : start + batch_size]
                image = read_batch(part, module.preprocessing, module.device).to(module.dtype)
                probabilities = module.probabilities(image)
                index = range(start, start + len(part))
                records += prediction_records(probabilities, index, module.class_names, part, top_k, module.thresholds)
    finally:
        for child, mode in modes.items():
            child.training = mode
    return records

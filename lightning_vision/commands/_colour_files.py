"""The files that `predict` writes of a module that gives images their colours: the images, and which is which."""

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torchvision.io import decode_image
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from lightning_vision.commands._prediction_writer import JSONL, PredictionFiles, merged

__all__ = ["ColourFiles"]

FOLDER = "colourised"


class ColourFiles(PredictionFiles):
    """What an image looks like with colours: a folder of PNG files, and JSON Lines that tell whose they are."""

    names = MappingProxyType({"jsonl": JSONL, "colourised": FOLDER})

    def count(self, module: LightningModule, outputs: Any) -> int:
        if not isinstance(outputs, Mapping) or "image" not in outputs:
            raise ValueError(f"{type(module).__name__}.predict_step must return a mapping with `image`")
        return len(outputs["image"])

    def records(
        self,
        module: LightningModule,
        datamodule: Any,
        outputs: Mapping[str, Any],
        index: list[int],
        paths: Sequence[str | None],
    ) -> list[dict[str, Any]]:
        return [
            {"index": number, "path": path, "png": _encoded(image)}
            for number, path, image in zip(index, paths, outputs["image"].cpu(), strict=True)
        ]

    def write(self, parts: Sequence[Path], folder: Path) -> None:
        (folder / FOLDER).mkdir(exist_ok=True)
        with merged(parts) as records, (folder / JSONL).open("w", encoding="utf-8") as lines:
            for record in records:
                stem = f"{record['index']:06d}{'_' + Path(record['path']).stem if record['path'] else ''}"
                file = f"{FOLDER}/{stem}.png"
                (folder / file).write_bytes(base64.b64decode(record.pop("png")))
                lines.write(json.dumps({**record, "file": file}) + "\n")

    def draw(self, datamodule: Any, jsonl: Path, count: int, png: Path) -> None:
        """Draw images spread evenly over the file side by side."""
        files = [jsonl.parent / json.loads(line)["file"] for line in jsonl.read_text(encoding="utf-8").splitlines()]
        number = min(count, len(files))
        chosen = [files[place * len(files) // number] for place in range(number)]
        images = torch.stack([decode_image(str(file)) for file in chosen])
        to_pil_image(make_grid(images, nrow=math.ceil(math.sqrt(number)), pad_value=255)).save(png)


def _encoded(image: torch.Tensor) -> str:
    """A PNG as text."""
    file = io.BytesIO()
    to_pil_image(image).save(file, format="png")
    return base64.b64encode(file.getvalue()).decode()

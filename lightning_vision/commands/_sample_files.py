"""A folder of images that a module makes: one file each, what they were made with, and a grid of the first ones."""

import hashlib
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor

from lightning_vision.callbacks.hooks._image_grid import image_grid
from lightning_vision.commands._folders import first_rank, prepare_folder

__all__ = ["GRID", "SampleFolder", "SampleWriter"]

GRID, SETTINGS = "grid.png", "samples.json"
IN_GRID = 100  # images
OWN = re.compile(r"\d{6,}\.png(\.part)?|grid\.png|samples\.json")


@dataclass(frozen=True)
class SampleFolder:
    """Where images go.

    Args:
        path: The folder.
    """

    path: Path

    @classmethod
    def open(cls, path: Path, checkpoint: Path, settings: dict[str, Any], num: int, overwrite: bool) -> "SampleFolder":
        """A folder to write `num` images into, which holds nothing but images made with the same settings.

        Raises:
            FileExistsError: it holds something else, and `overwrite` is off.
            ValueError: it cannot be written to.
        """
        if not first_rank():
            return cls(path)
        with checkpoint.open("rb") as file:
            told = {"checkpoint": hashlib.file_digest(file, "sha256").hexdigest(), **settings}
        present = sorted(it.name for it in path.iterdir()) if path.is_dir() else []
        # Without what they were made with, files of such names are somebody else's.
        own = [name for name in present if OWN.fullmatch(name)] if SETTINGS in present else []
        foreign = [name for name in present if name not in own]
        if foreign and not overwrite:
            raise FileExistsError(
                f"{path} holds {foreign[0]}, which is none of these; choose another --out or add --overwrite"
            )
        if own and _settings(path) != told:
            if not overwrite:
                raise FileExistsError(f"{path} holds images made otherwise; choose another --out or add --overwrite")
            for name in own:
                (path / name).unlink()
        if not own:
            for name in {f"{number:06d}.png" for number in range(num)} & set(present):
                (path / name).unlink()
        prepare_folder(path, "choose another --out")
        (path / SETTINGS).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        return cls(path)

    def file(self, number: int) -> Path:
        """The file of an image by its number."""
        return self.path / f"{number:06d}.png"

    def missing(self, count: int) -> list[int]:
        """Numbers of the first images that are not there."""
        there = {it.name for it in self.path.glob("*.png")}
        return [number for number in range(count) if self.file(number).name not in there]

    def write(self, number: int, image: Tensor) -> None:
        """Write uint8 `(C, H, W)`, so that whatever happens a file is whole."""
        part = self.file(number).with_suffix(".png.part")
        pixels = image.permute(1, 2, 0).numpy()
        with part.open("wb") as file:
            Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, format="png")
        os.replace(part, self.file(number))

    def draw(self, count: int) -> None:
        """Draw the first images side by side, enlarged by a whole factor."""
        from torchvision.io import decode_image

        images = torch.stack([decode_image(str(self.file(number))) for number in range(min(count, IN_GRID))])
        Image.fromarray(image_grid(images, math.ceil(math.sqrt(len(images))))).save(self.path / GRID)


class SampleWriter(Callback):
    """Writes images while they are made, each process its own.

    Args:
        folder: Gets the files; all ranks must see it.
    """

    def __init__(self, folder: SampleFolder) -> None:
        self.folder = folder

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        for number, image in zip(outputs["index"].tolist(), outputs["image"].cpu(), strict=True):
            self.folder.write(number, image)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.strategy.barrier("every image is written")


def _settings(path: Path) -> Any:
    """What the images of a folder were made with, None where nothing says it."""
    try:
        return json.loads((path / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None

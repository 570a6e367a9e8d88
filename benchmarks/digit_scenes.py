"""Drawing a batch of scenes beside a training step of the detector that learns from them, and beside Pillow."""

from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from torch import nn

from lightning_vision.configs import read_config, shipped
from lightning_vision.datamodules import DigitScenes
from lightning_vision.datamodules.common._sets import ImageSet
from lightning_vision.detection import ObjectDetector

from .side_by_side import Row, Side, take_turns

__all__ = ["rows"]

BATCH = 32


def rows(quick: bool) -> list[Row]:
    """Draw a batch as the loader asks for it, and train the shipped detector on one; with one thread.

    Args:
        quick: One repetition with 4 scenes.
    """
    scenes, repetitions, warmup = (4, 1, 0) if quick else (BATCH, 21, 1)
    plain, masked = (_images(DigitScenes(masks=masks)) for masks in (False, True))
    numbers = count()
    draws = {name: partial(_draw, images, numbers, scenes) for name, images in (("ours", plain), ("masks", masked))}
    sides: dict[str, Side] = {name: lambda draw=draw: draw for name, draw in draws.items()}
    pixels, labels = load_digits(return_X_y=True)
    digits = (pixels.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    pillow = partial(_with_pillow, photos, digits, labels, np.random.default_rng(0), scenes)
    step = _step(plain, scenes)
    cpu = {
        name: clocks["cpu"]
        for name, clocks in take_turns(
            {**sides, "pillow": lambda: pillow, "step": lambda: step}, repetitions, warmup
        ).items()
    }
    what = f"`DigitScenes`, {scenes} scenes"
    return [
        Row.slowdown(what, "a training step of `detection/digits`", cpu["ours"], cpu["step"], "cpu", "<= 0.15"),
        Row.slowdown(what, "as many pasted with Pillow", cpu["ours"], cpu["pillow"], "cpu"),
        Row.slowdown(f"{what}, with masks", "without", cpu["masks"], cpu["ours"], "cpu"),
    ]


def _images(data: DigitScenes) -> ImageSet:
    data.setup()
    assert data.train_set is not None
    return data.train_set


def _draw(images: ImageSet, numbers: "count[int]", scenes: int) -> None:
    images.fetch(torch.arange(scenes), next(numbers))


def _step(images: ImageSet, scenes: int) -> Callable[[], None]:
    """One step of the shipped run on a batch that is there already."""
    config = read_config(shipped()["detection/digits"])
    given: dict[str, Any] = config["model"]["init_args"]
    data = DigitScenes()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = ObjectDetector(**given, num_classes=data.num_classes, in_channels=3, image_size=data.image_size)
    optimizer: Any = module.configure_optimizers()
    batch = images.fetch(torch.arange(scenes))
    inputs, targets = data.on_after_batch_transfer((batch.image, batch.target, batch.index), 0)

    def step() -> None:
        loss = torch.stack(list(module.network.losses(inputs, targets).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), config["trainer"]["gradient_clip_val"])
        optimizer.step()

    return step


def _with_pillow(
    photos: list[Image.Image], digits: np.ndarray, labels: np.ndarray, draw: np.random.Generator, scenes: int
) -> list[Any]:
    """Scenes of the same kind, written as one would write them: images, and for each a box and a label a digit."""
    found = []
    for _ in range(scenes):
        photo, crop = photos[draw.integers(2)], int(draw.integers(80, 129))
        left, top = draw.integers(384 - crop + 1), draw.integers(427 - crop + 1)
        scene = photo.crop((left, top, left + crop, top + crop)).resize((128, 128), Image.Resampling.BILINEAR)
        boxes: list[tuple[int, ...]] = []
        for _ in range(draw.integers(1, 7)):
            number, side = draw.integers(len(digits)), round(14 * 4 ** draw.random())
            ink = Image.fromarray(digits[number]).resize((side, side), Image.Resampling.BICUBIC)
            ink = ink.point([min(255, round(1.6 * value)) for value in range(256)])
            extent = ink.point([255 * (value > 127) for value in range(256)]).getbbox()
            for _ in range(10):
                across, down = draw.integers(128 - side + 1, size=2).tolist()
                box = extent[0] + across, extent[1] + down, extent[2] + across, extent[3] + down
                if all(min(box[2], o[2]) <= max(box[0], o[0]) or min(box[3], o[3]) <= max(box[1], o[1]) for o in boxes):
                    square = across, down, across + side, down + side
                    low, high = (0, 80) if np.asarray(scene.crop(square)).mean() > 127 else (175, 255)
                    scene.paste(tuple(draw.integers(low, high, 3).tolist()), square, ink)
                    boxes.append((*box, int(labels[number])))
                    break
        found.append((torch.from_numpy(np.array(scene)).permute(2, 0, 1), torch.tensor(boxes)))
    return [torch.stack([image for image, _ in found]), [boxes for _, boxes in found]]

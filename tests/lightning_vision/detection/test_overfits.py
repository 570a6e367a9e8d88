"""Every architecture learns eight images by heart: all it is made of pulls in one direction."""

from functools import partial
from typing import Any, get_args

import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR

from lightning_vision.detection.architectures import Architecture
from lightning_vision.detection.detector import ObjectDetector
from support.shapes import shapes_loader
from support.trainers import quiet_trainer

# A short training of few boxes an image: what is asked is whether it learns, not how fast.
TWO_STAGE = {"strides": [8, 16, 32], "options": {"proposals": 64, "boxes_per_image": 32}}
STEPS = {"fcos": 60, "retinanet": 80, "ssd": 60, "ssdlite": 100}
# The others take more time than they tell in each run; of FCOS the shipped run does this, `test_detection.py`.
QUICK = ("ssd",)


def overfitted(architecture: Architecture, steps: int) -> dict[str, float]:
    """What is logged after `steps` steps on eight images, measured on the same."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {} if architecture in STEPS else TWO_STAGE
    module = ObjectDetector(
        architecture,
        "test_byobnet",
        num_classes=2,
        image_size=64,
        object_sizes=(0.1, 0.6),
        pyramid_channels=32,
        optimizer=partial(torch.optim.AdamW, lr=0.003),
        lr_scheduler=partial(OneCycleLR, max_lr=0.003, total_steps=steps, pct_start=0.1),
        lr_interval="step",
        **settings,
    )
    trainer = quiet_trainer(
        max_steps=steps,
        max_epochs=-1,
        gradient_clip_val=5.0,
        limit_val_batches=1,
        check_val_every_n_epoch=steps,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, shapes_loader(), shapes_loader())
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize(
    "architecture", [it if it in QUICK else pytest.param(it, marks=pytest.mark.slow) for it in get_args(Architecture)]
)
def test_row_128_every_architecture_learns_eight_images_by_heart(architecture: Architecture) -> None:
    found = overfitted(architecture, STEPS.get(architecture, 100))

    assert found["val/map"] > 0.8
    assert found["val/map_50"] >= found["val/map"]


def test_a_detector_that_has_not_learnt_finds_nothing_right() -> None:
    assert overfitted("ssd", 1)["val/map"] < 0.1

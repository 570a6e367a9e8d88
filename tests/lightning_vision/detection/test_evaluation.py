"""What a detector tells of its own evaluation."""

import logging
import re
from typing import Any

import pytest
import torch

from lightning_vision.detection.detector import ObjectDetector
from support.shapes import shapes_loader
from support.trainers import quiet_trainer

SHARE = r"Average precision took ([\d.]+) s, ([\d.]+)% of the fit"


def fitted(**options: Any) -> Any:
    """A Trainer after two steps of training."""
    torch.manual_seed(0)
    module = ObjectDetector("fcos", "test_byobnet", num_classes=2, image_size=64, strides=[8], pyramid_channels=32)
    trainer = quiet_trainer(max_epochs=2, num_sanity_val_steps=0, **options)
    trainer.fit(module, shapes_loader(2), shapes_loader(2))
    return trainer


def test_a_fit_tells_at_its_end_what_share_of_it_judging_took(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        trainer = fitted()
    (said,) = re.findall(SHARE, caplog.text)
    judged = trainer.lightning_module.val_map.seconds

    assert 0 < judged < trainer.lightning_module._judged
    assert f"{trainer.lightning_module._judged:.1f}" == said[0]
    assert 0 < float(said[1]) < 100
    assert not [name for name in trainer.callback_metrics if "second" in name or "share" in name]


def test_a_fit_without_validation_tells_nothing_of_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        fitted(limit_val_batches=0)

    assert not re.findall(SHARE, caplog.text)

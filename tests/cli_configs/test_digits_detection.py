"""The shipped detector of digits finds those of scenes that it never saw, digits and backgrounds new to it, too."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_vision import main
from lightning_vision.configs import read_config, shipped
from support.trainers import QUIET

RUN = "detection/digits"
# One digit a scene, of one size: what some seconds can teach.
EASY = ("--data.image_size", "32", "--data.objects", "[1,1]", "--data.sizes", "[0.6,0.6]", "--data.val_images", "8")
EASY += ("--data.test_images", "64", "--model.object_sizes", "[0.5,0.7]", "--callbacks.detection_logger", "null")


def fit_and_test(root: Path, *flags: str) -> tuple[dict[str, Any], int]:
    """What the best checkpoint scores on the test scenes, and how many steps the last one had taken."""
    best = main(["fit", "--config", RUN, *flags, *quiet(root)]).best_ckpt
    assert best is not None
    steps = torch.load(Path(best).with_name("last.ckpt"), weights_only=True)["global_step"]
    return main(["test", "--config", RUN, *flags, *quiet(root), "--ckpt_path", str(best)]).metrics, steps


def quiet(root: Path) -> tuple[str, ...]:
    return "--trainer.accelerator", "cpu", "--trainer.default_root_dir", str(root), *QUIET


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_thirty_thousand_scenes_teach_it_seventy_percent_of_average_precision(tmp_path: Path) -> None:
    config = read_config(shipped()[RUN])
    data, epochs = config["data"]["init_args"], config["trainer"]["max_epochs"]
    metrics, steps = fit_and_test(tmp_path)

    assert epochs * data["train_images"] <= 30_000
    assert steps == epochs * math.ceil(data["train_images"] / data["batch_size"])
    assert metrics["test/map"] >= 0.70


def test_some_seconds_teach_it_to_find_a_digit_and_to_read_some(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # One epoch of 80 batches, warmed up over 8 of them.
    warm_up = ("--callbacks.warm_up_cosine.interval", "step", "--callbacks.warm_up_cosine.warmup", "8")
    metrics, steps = fit_and_test(tmp_path, *EASY, *warm_up, "--data.train_images", "2560", "--trainer.max_epochs", "1")
    shown = capsys.readouterr().out
    untaught = main(["test", "--config", RUN, *EASY, *quiet(tmp_path)]).metrics

    assert steps == 80
    assert metrics["test/mar_1"] > 0.35
    assert metrics["test/map"] > 0.04
    assert max(untaught["test/mar_1"], untaught["test/map"]) < 0.02
    # Digits of 19 pixels are small to COCO; there is none that is large to be found.
    assert re.search(r"\n  val/map_large +-\n", shown)
    assert "objects of each class\n  class " in shown

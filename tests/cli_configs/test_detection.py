"""Every shipped run of a detector learns eight scenes by heart through the real command, its own settings kept."""

from pathlib import Path

import pytest

from lightning_vision import main
from lightning_vision.configs import read_config, shipped
from support.trainers import QUIET

RUNS = [
    name for name, path in shipped().items() if read_config(path).get("data", {}).get("class_path") == "DigitScenes"
]
# The others take more time than they tell in each run of the suite.
QUICK = ("detection/fcos",)


def after(steps: int, name: str, root: Path) -> float:
    """Average precision on eight scenes after steps on all of them."""
    masks = str("masks" in read_config(shipped()[name])["data"]["init_args"]).lower()
    # Smaller scenes than the run's own; anchors follow, as sizes are fractions of the side.
    data = {"val_images": "8", "batch_size": "8", "image_size": "96", "masks": masks}
    trainer = {"max_epochs": steps, "check_val_every_n_epoch": steps, "num_sanity_val_steps": 0, "accelerator": "cpu"}
    flags = [word for knob, value in data.items() for word in (f"--data.{knob}", value)]
    flags += [word for knob, value in trainer.items() for word in (f"--trainer.{knob}", str(value))]
    place = ["--trainer.default_root_dir", str(root), "--callbacks.last", "null", *QUIET]
    result = main(["fit", "--config", name, "--data", "support.scenes.RepeatedScenes", *flags, *place])
    return float(result.metrics["val/map"])


@pytest.mark.parametrize("name", [it if it in QUICK else pytest.param(it, marks=pytest.mark.slow) for it in RUNS])
def test_a_detectors_run_learns_eight_scenes_by_heart(name: str, tmp_path: Path) -> None:
    assert after(90, name, tmp_path) > 0.8


def test_one_step_of_a_run_finds_nothing_right(tmp_path: Path) -> None:
    assert after(1, QUICK[0], tmp_path) < 0.1

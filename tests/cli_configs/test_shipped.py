"""Every shipped config is parsed; whole runs train two steps, resume and predict through the real command.

Data that a config leaves to its user is made here: see `DATA`. A config that is too large for a test, starts from
weights that would be downloaded, or needs another network, says in a comment which flags make it fit; nothing else of
it is changed:

    # test: --model.backbone resnet10t --model.pretrained false --data.image_size 32
"""

import inspect
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_vision import main
from lightning_vision.catalogue import find
from lightning_vision.configs import read_config, shipped
from lightning_vision.generation.generator import ImageGenerator
from support.box_files import coco_folder
from support.photos import photo_folder, photo_table
from support.stores import digits_maps, digits_store
from support.teachers import write_checkpoints
from support.trainers import QUIET

# Configs of other subcommands than `fit` say so; the tests of these run them.
OTHERS = [name for name, path in shipped().items() if "\n# command: " in path.read_text(encoding="utf-8")]
RUNS = [name for name in shipped() if name.split("/")[0] not in ("callbacks", "trainer") and name not in OTHERS]
PIECES = [name for name in shipped() if name.startswith("callbacks/")]
TRAINERS = [name for name in shipped() if name.startswith("trainer/")]
SHORT = ["--trainer.limit_val_batches", "1", "--trainer.accelerator", "cpu", *QUIET]
# What a datamodule cannot do without, by the argument's name, and how to make it.
DATA: dict[str, Callable[[], Path]] = {
    "root": lambda: photo_folder("photos", ("brick", "cat", "coffee"), number=12),
    "csv": lambda: photo_table("photos.csv", DATA["root"]()),
    "store": lambda: digits_store("store"),
}
# A run on which callbacks are tried that need something of a module (`Method.needs`), and what it logs.
JUDGED = {
    "": ("classification/digits", {"val/loss", "val/acc"}),
    "features": ("self_supervised/simclr_digits", {"val/loss"}),
    "samples": ("generation/flow_digits", {"val/loss"}),
    "detections": ("detection/digits", {"val/map"}),
}
OF_THEIR_OWN: dict[str, dict[str, Callable[[], Path]]] = {
    "CocoDetection": {"root": lambda: coco_folder("boxes")},
    "ReLabel": {"store": lambda: digits_maps("store")},
}
"""The same for datamodules that mean something else by a name."""


def said(name: str) -> list[str]:
    """The words of a config's `# test:` comments."""
    comments = [line for line in shipped()[name].read_text().splitlines() if line.startswith("# test: ")]
    return shlex.split(" ".join(comments).replace("# test: ", ""))


def flags(name: str) -> list[str]:
    """The words of a config's `# test:` comments, and the data that it leaves to its user."""
    data: dict[str, Any] = read_config(shipped()[name])["data"]
    entry = find(data["class_path"])
    assert entry is not None
    parameters = inspect.signature(entry.load()).parameters.values()
    given = data.get("init_args", {})
    wanted = [it.name for it in parameters if it.default in (None, it.empty) and it.name not in given]
    makers = DATA | OF_THEIR_OWN.get(data["class_path"], {})
    made = [word for it in makers if it in wanted for word in (f"--data.{it}", str(makers[it]()))]
    return [*said(name), *made]


@pytest.mark.parametrize("name", shipped())
def test_a_config_says_in_its_first_line_what_it_is_for(name: str) -> None:
    first = shipped()[name].read_text().partition("\n")[0]

    assert first.startswith("# ") and len(first) > 20
    assert read_config(shipped()[name])


@pytest.mark.parametrize("name", RUNS)
def test_a_run_trains_two_steps_resumes_and_predicts(name: str, tmp_path: Path) -> None:
    place = ["--config", name, *flags(name), *SHORT, "--trainer.default_root_dir", str(tmp_path / "run")]
    main(["fit", *place, "--trainer.max_epochs", "-1", "--trainer.max_steps", "2"])
    (checkpoint,) = tmp_path.glob("run/version_0/checkpoints/last.ckpt")
    main(["fit", *place, "--trainer.max_epochs", "-1", "--trainer.max_steps", "4", "--ckpt_path", str(checkpoint)])
    found = find(read_config(shipped()[name])["model"]["class_path"])
    assert found is not None
    if issubclass(found.load(), ImageGenerator):
        main(["sample", *place, "--ckpt_path", str(checkpoint), "--num", "2", "--out", str(tmp_path / "predictions")])
        written = tmp_path / "predictions" / "000001.png"
    else:
        limit = ["--trainer.limit_predict_batches", "1", "--output", str(tmp_path / "predictions")]
        main(["predict", *place, "--ckpt_path", str(checkpoint), *limit])
        written = tmp_path / "predictions" / "predictions.jsonl"

    assert written.stat().st_size > 0
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"version_0", "version_1"}
    # Nothing was written beside the folder that the flag named.
    assert Path.cwd() == tmp_path
    assert {path.name for path in tmp_path.iterdir()} <= {
        "predictions",
        "run",
        "boxes",
        "photos",
        "photos.csv",
        "store",
    }


@pytest.mark.parametrize("name", PIECES)
def test_a_callback_config_composes_with_a_run(name: str, tmp_path: Path) -> None:
    entries = read_config(shipped()[name])["callbacks"].values()
    for entry in entries:
        write_checkpoints(entry.get("init_args") or {})
    found = [find(entry["class_path"]) for entry in entries]
    needs = {getattr(it.load(), "needs", "") for it in found if it is not None}
    run, judged = next((JUDGED[need] for need in needs if need and need in JUDGED), JUDGED[""])
    place = ["--trainer.default_root_dir", str(tmp_path), "--trainer.max_epochs", "1"]
    place += ["--trainer.limit_train_batches", "2", "--trainer.check_val_every_n_epoch", "1", *said(run), *said(name)]
    result = main(["fit", "--config", run, "--config", name, *SHORT, *place])

    assert result.metrics.keys() >= judged


def test_the_debug_trainer_runs(tmp_path: Path) -> None:
    root = ["--trainer.default_root_dir", str(tmp_path), *QUIET]
    result = main(["fit", "--config", "classification/digits", "--config", "trainer/debug", *root])

    assert result.metrics.keys() >= {"val/loss", "val/acc"}


@pytest.mark.parametrize("name", TRAINERS)
def test_a_trainer_config_parses_on_top_of_a_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--config", "classification/digits", "--config", name, "--print_config"])
    parsed = yaml.safe_load(capsys.readouterr().out)["trainer"]
    entries = read_config(shipped()[name])["trainer"].items()
    written = {key: value for key, value in entries if not isinstance(value, (dict, list))}

    assert written == {key: parsed[key] for key in written}

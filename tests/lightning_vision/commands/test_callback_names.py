"""Named entries give the house's callbacks their names: several of a class live side by side and resume their own."""

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_vision import main
from lightning_vision.callbacks import ExactResume
from lightning_vision.cli import VisionCLI
from support.command_toys import NamedCounter, ToyData, ToyModule

TOYS = "support.command_toys"
QUIET: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}


def counter(**init_args: Any) -> dict[str, Any]:
    return {"class_path": f"{TOYS}.NamedCounter", "init_args": init_args}


def config(callbacks: dict[str, Any], **trainer: Any) -> str:
    content = {
        "model": {"class_path": f"{TOYS}.ToyModule", "init_args": {"in_channels": 3}},
        "data": {"class_path": f"{TOYS}.ToyData"},
        "trainer": {**QUIET, "max_epochs": 1, "logger": False, "default_root_dir": "out", **trainer},
        "callbacks": callbacks,
    }
    Path("run.yaml").write_text(yaml.safe_dump(content))
    return "run.yaml"


def states(path: str | Path | None) -> dict[str, Any]:
    """What the checkpoint holds of counters."""
    assert path is not None
    held = torch.load(path, weights_only=True)["callbacks"]
    return {key: state for key, state in held.items() if key.startswith("NamedCounter")}


TWO = {"slow": counter(by=1), "fast": counter(by=10)}


def test_two_of_a_class_keep_their_states_apart_and_find_them_again() -> None:
    first = main(["fit", "--config", config(TWO)])

    assert states(first.best_ckpt) == {"NamedCounter[slow]": {"count": 2}, "NamedCounter[fast]": {"count": 20}}

    more = ["--ckpt_path", str(first.best_ckpt), "--trainer.max_epochs", "3", "--callbacks.fast.by", "100"]
    second = main(["fit", "--config", "run.yaml", *more])

    assert states(second.best_ckpt) == {"NamedCounter[slow]": {"count": 6}, "NamedCounter[fast]": {"count": 420}}


def test_a_name_that_was_given_is_kept() -> None:
    result = main(["fit", "--config", config({"entry": counter(name="mine")})])

    assert states(result.best_ckpt).keys() == {"NamedCounter[mine]"}


def test_null_switches_one_of_the_two_off() -> None:
    result = main(["fit", "--config", config(TWO), "--callbacks.slow", "null"])

    assert states(result.best_ckpt) == {"NamedCounter[fast]": {"count": 20}}


def test_callbacks_of_others_are_left_as_they_are() -> None:
    cli = VisionCLI(lambda cli: None, ["--config", config({"a": {"class_path": f"{TOYS}.StepCounter"}})])

    assert not any("name" in vars(callback) for callback in cli.trainer.callbacks)


def test_the_saved_config_gives_the_same_names_again() -> None:
    logger = [{"class_path": "CSVLogger", "init_args": {"save_dir": ".", "name": ""}}]
    first = main(["fit", "--config", config(TWO, logger=logger)])
    second = main(["fit", "--config", f"{first.run_dir}/config.yaml"])

    assert states(first.best_ckpt) == states(second.best_ckpt)


def test_a_run_resumed_from_python_without_the_name_is_told_it() -> None:
    callbacks = {"exact_resume": {"class_path": "ExactResume"}}
    result = main(["fit", "--config", config(callbacks)])
    trainer = L.Trainer(**QUIET, max_epochs=2, logger=False, callbacks=[ExactResume(), ModelCheckpoint("python")])

    with pytest.raises(
        ValueError,
        match=r"^ExactResume: the checkpoint holds the state of one with name='exact_resume', which no callback of "
        r"this Trainer claims; give yours that name, or leave it out of the Trainer to drop the state.$",
    ):
        trainer.fit(ToyModule(), ToyData(), ckpt_path=result.best_ckpt, weights_only=True)

    named = L.Trainer(**QUIET, max_epochs=2, logger=False, callbacks=[ExactResume(name="exact_resume")])
    named.fit(ToyModule(), ToyData(), ckpt_path=result.best_ckpt, weights_only=True)

    assert named.current_epoch == 2


def test_python_finds_the_state_of_a_named_entry_under_its_name() -> None:
    result = main(["fit", "--config", config(TWO)])
    slow, fast = NamedCounter(by=1, name="slow"), NamedCounter(by=10, name="fast")
    trainer = L.Trainer(**QUIET, max_epochs=2, logger=False, callbacks=[fast, slow], default_root_dir="python")
    trainer.fit(ToyModule(), ToyData(), ckpt_path=result.best_ckpt, weights_only=True)

    assert (slow.count, fast.count) == (4, 40)

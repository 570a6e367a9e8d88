"""The main job as a user runs it: the shipped config learns real digits, on one process and on two."""

import csv
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import TQDMProgressBar

from lightning_vision import ImageClassifier, Result, main
from lightning_vision.datamodules import Digits

pytestmark = pytest.mark.one_worker

CONFIG = ["--config", "classification/digits"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, list[str]]:
    """The shipped run, and the flags that place it."""
    place = [*CONFIG, "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    place += ["--trainer.default_root_dir", str(tmp_path_factory.mktemp("digits"))]
    return main(["fit", *place]), place


def test_the_shipped_run_reads_unseen_digits(
    trained: tuple[Result, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    result, place = trained
    tested = main(["test", *place, "--ckpt_path", str(result.best_ckpt)])
    shown = capsys.readouterr().out
    rows = list(csv.DictReader(Path(tested.output).read_text().splitlines()))
    right = sum(int(row["support"]) * float(row["recall"]) for row in rows)

    assert tested.metrics["test/acc"] >= 0.985
    assert right / sum(int(row["support"]) for row in rows) == pytest.approx(tested.metrics["test/acc"])
    assert all(f"  {row['class']}  " in shown and f"{float(row['f1']):.4f}" in shown for row in rows)


def test_the_test_digits_are_at_least_350_and_none_was_trained_on() -> None:
    digits = Digits()
    digits.setup()
    train, test = ({image.numpy().tobytes() for image in part.images} for part in (digits.train_set, digits.test_set))

    assert len(digits.test_set) >= 350
    assert train & test == set()


def test_a_checkpoint_scores_what_training_reported(trained: tuple[Result, list[str]]) -> None:
    result, place = trained
    rows = list(csv.DictReader((Path(str(result.run_dir)) / "metrics.csv").open()))
    reported = [{name: float(row[name]) for name in row if name.startswith("val/")} for row in rows if row["val/acc"]]
    best = min(reported, key=lambda row: row["val/loss"])
    found = main(["validate", *place, "--ckpt_path", str(result.best_ckpt)]).metrics
    last = str(Path(str(result.best_ckpt)).with_name("last.ckpt"))

    assert found == pytest.approx(best, abs=1e-6)
    assert main(["validate", *place, "--ckpt_path", last]).metrics == pytest.approx(reported[-1], abs=1e-6)


def test_everything_a_run_writes_lies_in_one_folder(trained: tuple[Result, list[str]]) -> None:
    folder = Path(str(trained[0].run_dir))
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}

    assert names > {"metrics.csv", "config.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    assert any(name.startswith("events.out.tfevents") for name in names)


def test_the_checkpoint_is_plain_data_and_rebuilds_the_module(trained: tuple[Result, list[str]]) -> None:
    path = str(trained[0].best_ckpt)
    module = ImageClassifier.load_from_checkpoint(path, weights_only=True)

    assert (
        torch.load(path, weights_only=True)["class_path"]
        == "lightning_vision.classification.classifier.ImageClassifier"
    )
    assert module.hparams["optimizer"]["class_path"].endswith("AdamW")
    assert module.preprocessing["class_names"] == list("0123456789")


def test_the_config_splits_digits_as_the_class_does_by_itself(trained: tuple[Result, list[str]]) -> None:
    from lightning_vision.cli import VisionCLI

    shipped = VisionCLI(lambda cli: None, [*CONFIG, "--trainer.logger", "false"]).datamodule
    own = Digits()
    for data in (shipped, own):
        data.setup()

    assert all(torch.equal(a, b) for a, b in zip(shipped.splits, own.splits, strict=True))


def test_the_terminal_shows_progress_metrics_and_where_everything_is(capfd: pytest.CaptureFixture[str]) -> None:
    bar = ["--callbacks.bar", f"{TQDMProgressBar.__module__}.{TQDMProgressBar.__name__}"]
    result = main(["fit", *CONFIG, "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", *bar])
    shown = "".join(capfd.readouterr())

    assert re.search(r"Epoch 0: +100%.*loss.*acc", shown)
    assert re.search(r"validation, last epoch\n  val/acc +[01]\.\d{4}\n", shown)
    for path in (result.run_dir, result.best_ckpt):
        assert str(path) in shown


@pytest.mark.parametrize(
    ("short", "least"),
    [
        pytest.param(["--trainer.max_epochs", "3"], 0.7, id="three epochs"),
        pytest.param([], 0.985, id="as shipped", marks=pytest.mark.slow),
    ],
)
def test_two_processes_do_the_same_job(short: list[str], least: float, two_ranks: Callable[..., Any]) -> None:
    command = [sys.executable, "-m", "lightning_vision", "fit", *CONFIG, "--config", "trainer/ddp_cpu", *short]
    command += ["--trainer.enable_progress_bar", "false"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    (best,) = Path().glob("runs/digits/version_0/checkpoints/best.ckpt")
    measure = ["test", *CONFIG, "--trainer.enable_progress_bar", "false", "--ckpt_path", str(best)]
    alone = main([*measure, "--trainer.accelerator", "cpu"]).metrics
    # Who starts the second process makes no difference to what follows; a pair that runs already costs nothing.
    together = two_ranks(lambda: main([*measure, "--config", "trainer/ddp_cpu"]).metrics)

    assert alone["test/acc"] >= least
    assert [it["test/acc"] for it in together] == pytest.approx([alone["test/acc"]] * 2, abs=1e-7)
    assert done.stdout.count("validation, last epoch") == 1

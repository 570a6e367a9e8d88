"""Weights & Biases and MLflow through their configs, offline and in a process of their own, as a user runs them."""

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_vision import main
from support.trainers import QUIET

SHORT = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]


def fit(*configs: str, root: Path) -> subprocess.CompletedProcess[str]:
    given = [word for config in ("classification/digits", *configs) for word in ("--config", config)]
    command = ["fit", *given, "--trainer.accelerator", "cpu"]
    program = [sys.executable, "-m", "lightning_vision", *command, *QUIET, *SHORT]
    return subprocess.run([*program, "--trainer.default_root_dir", str(root)], capture_output=True, text=True)


def validation_loss(run: Path) -> float:
    rows = csv.DictReader((run / "metrics.csv").open())
    (found,) = (float(row["val/loss"]) for row in rows if row["val/loss"])
    return found


@pytest.mark.slow  # twenty seconds of imports; W&B and CSV stand for it
def test_mlflow_keeps_the_run_below_the_default_root(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    done = fit("trainer/mlflow", "callbacks/grad_cam", root=tmp_path / "runs")
    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    (experiment,) = (it for it in client.search_experiments() if it.name == "lightning_vision")
    (logged,) = client.search_runs([experiment.experiment_id])

    assert done.returncode == 0, done.stderr
    assert logged.data.metrics["val/loss"] == pytest.approx(validation_loss(tmp_path / "runs" / "version_0"))
    assert logged.data.params["backbone"] == "resnet8_cifar"
    assert len(list(tmp_path.glob("runs/mlruns/**/val~grad_cam*.png"))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_wandb_writes_offline_files_below_the_default_root(tmp_path: Path) -> None:
    done = fit("trainer/wandb", root=tmp_path / "runs")
    (written,) = tmp_path.glob("runs/wandb/offline-run-*/run-*.wandb")

    assert done.returncode == 0, done.stderr
    assert b"val/loss" in written.read_bytes() and b"resnet8_cifar" in written.read_bytes()
    assert f"{validation_loss(tmp_path / 'runs' / 'version_0'):.4f}"[:6] in written.read_bytes().decode("latin1")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.parametrize(("config", "package"), [("trainer/wandb", "wandb"), ("trainer/mlflow", "mlflow")])
def test_a_missing_package_is_named_with_its_extra(
    config: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == package else found(name, *rest)
    )
    with pytest.raises(ModuleNotFoundError, match=rf'needs {package}; pip install "lightning_vision\[{package}\]"$'):
        main(
            [
                "fit",
                "--config",
                "classification/digits",
                "--config",
                config,
                "--trainer.default_root_dir",
                str(tmp_path),
            ]
        )

    assert os.listdir(tmp_path) == []

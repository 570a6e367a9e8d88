"""Every shipped config is parsed; whole runs train two steps, resume and predict through the real command."""

from pathlib import Path

import pytest

from lightning_vision import main
from lightning_vision.configs import read_config, shipped

RUNS = [name for name in shipped() if name.split("/")[0] not in ("callbacks", "trainer")]
PIECES = [name for name in shipped() if name.startswith("callbacks/")]
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
SHORT = ["--trainer.limit_val_batches", "1", "--trainer.accelerator", "cpu", *QUIET]


@pytest.mark.parametrize("name", shipped())
def test_a_config_says_in_its_first_line_what_it_is_for(name: str) -> None:
    first = shipped()[name].read_text().partition("\n")[0]

    assert first.startswith("# ") and len(first) > 20
    assert read_config(shipped()[name])


@pytest.mark.parametrize("name", RUNS)
def test_a_run_trains_two_steps_resumes_and_predicts(name: str, tmp_path: Path) -> None:
    place = ["--config", name, *SHORT, "--trainer.default_root_dir", str(tmp_path)]
    main(["fit", *place, "--trainer.max_epochs", "-1", "--trainer.max_steps", "2"])
    (checkpoint,) = tmp_path.glob("version_0/checkpoints/last.ckpt")
    main(["fit", *place, "--trainer.max_epochs", "-1", "--trainer.max_steps", "4", "--ckpt_path", str(checkpoint)])
    limit = ["--trainer.limit_predict_batches", "1", "--output", str(tmp_path / "predictions")]
    main(["predict", *place, "--ckpt_path", str(checkpoint), *limit])

    assert (tmp_path / "predictions" / "predictions.jsonl").stat().st_size > 0
    assert {path.name for path in tmp_path.iterdir()} == {"predictions", "version_0", "version_1"}
    assert Path.cwd() == tmp_path  # so nothing was written beside the folder that the flag named


@pytest.mark.parametrize("name", PIECES)
def test_a_callback_config_composes_with_a_run(name: str, tmp_path: Path) -> None:
    place = ["--trainer.default_root_dir", str(tmp_path), "--trainer.max_epochs", "1"]
    place += ["--trainer.limit_train_batches", "2"]
    result = main(["fit", "--config", "classification/digits", "--config", name, *SHORT, *place])

    assert result.metrics.keys() >= {"val/loss", "val/acc"}


def test_the_debug_trainer_runs(tmp_path: Path) -> None:
    root = ["--trainer.default_root_dir", str(tmp_path), *QUIET]
    result = main(["fit", "--config", "classification/digits", "--config", "trainer/debug", *root])

    assert result.metrics.keys() >= {"val/loss", "val/acc"}


@pytest.mark.parametrize("name", ["trainer/ddp", "trainer/ddp_cpu", "trainer/slurm"])
def test_a_trainer_config_parses_on_top_of_a_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--config", "classification/digits", "--config", name, "--print_config"])

    assert "strategy: ddp" in capsys.readouterr().out

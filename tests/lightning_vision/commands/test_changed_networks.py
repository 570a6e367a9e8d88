"""Checkpoints of networks that a callback changed are tested, exported and gone on with by the command."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_vision import main
from support.trainers import QUIET

SHORT = ["--trainer.accelerator", "cpu", "--trainer.limit_train_batches", "2", "--trainer.num_sanity_val_steps", "0"]
SHORT += ["--trainer.limit_val_batches", "1", "--trainer.limit_test_batches", "1", *QUIET]
DIGITS = ["--config", "classification/digits", *SHORT]
CPU = ["--trainer.accelerator", "cpu", "--trainer.logger", "false"]


def fitted(*args: str, epochs: int = 1) -> str:
    path = main(["fit", *DIGITS, "--trainer.max_epochs", str(epochs), *args]).best_ckpt
    assert path is not None
    return path


def test_a_checkpoint_with_evonorm_is_tested_exported_and_gone_on_with() -> None:
    swap = ["--config", "callbacks/evonorm"]
    path = fitted(*swap)
    configured: Any = main(["test", *DIGITS, *swap, "--ckpt_path", path]).metrics
    rebuilt: Any = main(
        ["test", *CPU, "--data", "Digits", *swap, "--trainer.limit_test_batches", "1", "--ckpt_path", path]
    )
    exported: Any = main(["export", *CPU, *swap, "--ckpt_path", path, "--output", "program", "--format", "onnx"])
    further = fitted(*swap, "--ckpt_path", str(Path(path).with_name("last.ckpt")), epochs=2)

    assert configured["test/loss"] == pytest.approx(rebuilt.metrics["test/loss"])
    assert max(exported.output["differences"].values()) < 1e-4
    assert torch.load(Path(further).with_name("last.ckpt"), weights_only=True)["epoch"] == 1
    for args in (["test", *DIGITS], ["export", *CPU, "--output", "other"]):
        with pytest.raises(ValueError, match=r"; it was trained with EvoNorm, so add the callback as it was then$"):
            main([*args, "--ckpt_path", path])


@pytest.mark.parametrize("callback", ["dynamic_masks", "top_k_activations"])
def test_an_export_tells_what_it_leaves_out(callback: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = fitted("--config", f"callbacks/{callback}")
    main(["export", *CPU, "--ckpt_path", path, "--output", "program", "--format", "onnx"])
    kind = {"dynamic_masks": "DynamicMasks", "top_k_activations": "TopKActivations"}[callback]

    assert (
        f"the checkpoint was trained with {kind}, and without it computes another function" in capsys.readouterr().out
    )

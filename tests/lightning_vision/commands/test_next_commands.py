"""The commands that a fit ends with are run as they are printed."""

import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lightning_vision import main
from support.trainers import QUIET

pytestmark = pytest.mark.one_worker

SHORT = ["--trainer.max_epochs", "-1", "--trainer.max_steps", "1", "--trainer.accelerator", "cpu", *QUIET]


@pytest.mark.parametrize("name", ["simclr", "simmim"])
def test_a_classifier_starts_from_the_backbone_that_was_written(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A vision transformer needs its sizes, too, and that of the images."""
    here = ["--trainer.default_root_dir", str(tmp_path), "--trainer.limit_val_batches", "0"]
    main(["fit", "--config", f"self_supervised/{name}_digits", *here, *SHORT, "--data.batch_size", "8"])
    (line,) = [it for it in capsys.readouterr().out.splitlines() if it.startswith("  fine-tune it")]
    words = shlex.split(line.split("lightning_vision ")[1].replace("CONFIG", "self_supervised/finetune_digits"))
    tuned = main([*words, *here, *SHORT, "--model.optimizer.lr", "1e-9", "--model.optimizer.weight_decay", "0"])

    written = load_file(words[words.index("--model.weights") + 1])
    last = torch.load(Path(str(tuned.run_dir)) / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert len(written) > 10
    for key, value in written.items():
        if "running" not in key and "num_batches" not in key:
            torch.testing.assert_close(last[f"network.{key}"], value, rtol=0, atol=1e-6)


def test_a_file_of_more_than_the_backbone_is_named_and_starts_no_classifier_by_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = ["--trainer.default_root_dir", str(tmp_path), "--trainer.limit_val_batches", "0"]
    main(["fit", "--config", "self_supervised/simclr_v2_pretrain", *here, *SHORT, "--data.batch_size", "8"])
    printed = capsys.readouterr().out

    assert "  pretrained " in printed and "fine-tune it" not in printed

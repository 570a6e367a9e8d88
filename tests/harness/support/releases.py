"""Write the checkpoint of this version, once, when it is released.

`PYTHONPATH=tests/harness python -m support.releases` makes a small classifier of digits after an epoch and a half of a
run with ExactResume, EMA and SAM, so that weights, optimizer, loops, loader, random streams and the states of callbacks
are in the file; beside it what it says of the first test digits.
"""

import json
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch

from lightning_vision import ImageClassifier, main
from lightning_vision.datamodules import Digits

from . import ROOT

__all__ = ["RELEASES", "RUN", "first_digits", "write"]

RELEASES = ROOT / "tests" / "releases"
RUN = ["--config", "classification/digits", "--config", "callbacks/ema", "--config", "callbacks/sam"]
RUN += ["--model.optimizer", "SGD", "--model.optimizer.lr", "0.1", "--trainer.accelerator", "cpu"]
RUN += ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
# 20 batches an epoch: saved in the middle of the second and of the third.
RUN += ["--callbacks.last.every_n_train_steps", "30"]


def first_digits() -> torch.Tensor:
    """The first eight test digits, normalised."""
    data = Digits(batch_size=8)
    return data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)[0]


def write() -> Path:
    """Train, and keep the checkpoint and its logits under the version's name.

    Raises:
        FileExistsError: the version has its files; a release is not written again.
    """
    target = RELEASES / f"{version('lightning_vision')}.ckpt"
    if target.exists():
        raise FileExistsError(f"{target} exists; raise the version in pyproject.toml first")
    with tempfile.TemporaryDirectory() as root:
        main(["fit", *RUN, "--trainer.default_root_dir", root, "--trainer.max_epochs", "2"])
        shutil.copy(Path(root) / "version_0" / "checkpoints" / "last.ckpt", target)
    module = ImageClassifier.load_from_checkpoint(target).eval()
    with torch.no_grad():
        logits = module(first_digits())
    target.with_suffix(".json").write_text(json.dumps(logits.tolist()) + "\n", encoding="utf-8")
    return target


if __name__ == "__main__":
    print(write())

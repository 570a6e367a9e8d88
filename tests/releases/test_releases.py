"""Every release's checkpoint loads, says what it said, and goes on training."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from lightning_vision import ImageClassifier, main
from lightning_vision.base.weights import load_checkpoint, module_from_checkpoint
from support import ROOT
from support.releases import RELEASES, RUN, first_digits

FILES = sorted(RELEASES.glob("*.ckpt"))


def test_this_version_has_its_checkpoint() -> None:
    assert version("lightning_vision") in [path.stem for path in FILES]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_says_what_it_said_when_it_was_released(path: Path) -> None:
    told = torch.tensor(json.loads(path.with_suffix(".json").read_text()))
    for module in (ImageClassifier.load_from_checkpoint(path, weights_only=True), module_from_checkpoint(path)):
        with torch.no_grad():
            torch.testing.assert_close(module.eval()(first_digits()), told, rtol=1e-4, atol=1e-5)

    assert len(set(told.argmax(1).tolist())) > 3


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_run_goes_on(path: Path, tmp_path: Path) -> None:
    before = load_checkpoint(path)
    flags = ["--trainer.max_epochs", "3", "--trainer.default_root_dir", str(tmp_path), "--ckpt_path", str(path)]
    result = main(["fit", *RUN, *flags])
    after = load_checkpoint(tmp_path / "version_0" / "checkpoints" / "last.ckpt")

    assert before["global_step"] == 30
    assert after["global_step"] == 60
    assert result.metrics["val/loss"] < 2.3
    assert before["callbacks"].keys() - after["callbacks"].keys() == set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_predicts_from_image_files(path: Path) -> None:
    module = ImageClassifier.load_from_checkpoint(path)
    picture = ROOT / "docs" / "pictures" / "digits.png"

    assert module.predict(picture)[0]["class_name"] in "0123456789"
    assert path.stat().st_size < 2_000_000

"""Two checkpoints are extrapolated from the command line, and the best weight is found on the validation split."""

from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentError

from lightning_vision import main
from lightning_vision.base.weights import module_from_checkpoint
from lightning_vision.merging import neon_merge

CPU = ["--trainer.accelerator", "cpu", "--trainer.logger", "false"]
DATA = ["--data", "Digits", "--data.batch_size", "100"]


@pytest.fixture
def pair(trained: bytes, tmp_path: Path) -> list[str]:
    """A checkpoint, and one whose weights and statistics lie a little elsewhere."""
    (tmp_path / "base.ckpt").write_bytes(trained)
    content = torch.load(tmp_path / "base.ckpt", weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for value in content["state_dict"].values():
        if value.is_floating_point():
            value += 0.02 * value.abs() * torch.randn(value.shape, generator=generator)
    torch.save(content, tmp_path / "own.ckpt")
    return ["base.ckpt", "own.ckpt"]


def neon(*args: str) -> dict[str, Any]:
    output = main(["neon", *args, *CPU]).output
    assert isinstance(output, dict)
    return output


def state_of(path: str) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def test_without_data_the_file_is_the_merge_and_loads(pair: list[str]) -> None:
    output = neon(*pair, "--w", "0.5")
    expected = neon_merge(state_of("base.ckpt"), state_of("own.ckpt"), 0.5)
    written = torch.load(output["checkpoint"], weights_only=True)

    assert output == {"checkpoint": str(Path("neon.ckpt").absolute()), "w": 0.5, "scores": {}}
    assert all(torch.equal(value, expected[name]) for name, value in written["state_dict"].items())
    assert written["merged"] == {"w": 0.5, "base": "base.ckpt", "self_trained": "own.ckpt"}
    assert not written.keys() & {"callbacks", "optimizer_states", "lr_schedulers", "loops"}
    module_from_checkpoint(output["checkpoint"])
    assert main(["test", *CPU, *DATA, "--ckpt_path", output["checkpoint"]]).metrics["test/acc"] > 0.1


@pytest.mark.parametrize(("w", "whole"), [("0", "base.ckpt"), ("-1", "own.ckpt")])
@pytest.mark.parametrize("data", [[], DATA])
def test_row_215_w_0_is_the_base_and_w_minus_1_the_self_trained(
    w: str, whole: str, data: list[str], pair: list[str]
) -> None:
    output = neon(*pair, f"--w={w}", "--monitor", "val/acc", *data)
    expected = state_of(whole)

    assert all(torch.equal(value, expected[name]) for name, value in state_of(output["checkpoint"]).items())


def test_row_215_the_best_of_several_w_is_written_with_batch_norm_measured(
    pair: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    output = neon(*pair, "--w", "[0.25,0.5,1]", "--monitor", "val/loss", *DATA)
    tested = main(["validate", *CPU, *DATA, "--ckpt_path", output["checkpoint"]]).metrics
    scores = {w: it["val/loss"] for w, it in output["scores"].items()}
    merged = neon_merge(state_of("base.ckpt"), state_of("own.ckpt"), output["w"])
    written = state_of(output["checkpoint"])

    assert list(scores) == [-1, 0, 0.25, 0.5, 1]
    assert output["w"] == min((0.25, 0.5, 1), key=scores.__getitem__)
    assert tested["val/loss"] == pytest.approx(scores[output["w"]], rel=1e-5)
    assert all(torch.equal(value, merged[name]) for name, value in written.items() if "running" not in name)
    assert not any(torch.equal(value, merged[name]) for name, value in written.items() if "running_var" in name)
    assert "val/loss by w" in capsys.readouterr().out


def test_kept_names_stay_the_bases(pair: list[str]) -> None:
    output = neon(*pair, "--w", "3", "--kept", '["*running_*","*fc*"]')
    base, written = state_of("base.ckpt"), state_of(output["checkpoint"])
    kept = [name for name in base if "running" in name or "fc" in name]

    assert len(kept) > 3
    assert all(torch.equal(base[name], written[name]) for name in kept)
    assert not torch.equal(base["network.stem.0.weight"], written["network.stem.0.weight"])


def test_an_average_beside_trained_weights_is_told_of(pair: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    content = torch.load("base.ckpt", weights_only=True)
    content["callbacks"]["SWA"] = {"updates": 1, "steps": 1, "measured": 1, "average": {}, "raw": {}}
    torch.save(content, "base.ckpt")
    neon(*pair, "--w", "0.5")

    assert "one checkpoint holds an average of the weights and the other trained ones" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("base.ckpt", "gone.ckpt", "--w", "1"), r"^no checkpoint at gone.ckpt"),
        (("base.ckpt", "own.ckpt"), r"--w is missing$"),
        (("base.ckpt", "own.ckpt", "--w", "[]"), r"^--w \[\] names no weight; give a number, or several as \[0.5,1\]$"),
        (
            ("base.ckpt", "own.ckpt", "--w", "[1,2]"),
            r"^--w \[1.*\]: several are compared on data; add --config NAME or",
        ),
        (("base.ckpt", "own.ckpt", "--w", "nan"), r"^w: expected list or float, got nan$"),
        (
            ("base.ckpt", "own.ckpt", "--w", "1", "--kept", "x*"),
            r"^neon_merge: kept='x\*' matches no name of the state",
        ),
        (("base.ckpt", "own.ckpt", "--w", "1", *DATA), r"^the checkpoints do not say what they were chosen by; give"),
    ],
)
def test_what_cannot_be_merged_is_refused_and_nothing_is_written(
    pair: list[str], args: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError, ArgumentError), match=sentence):
        neon(*args)

    assert not Path("neon.ckpt").exists()

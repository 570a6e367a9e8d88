"""Images in files: the same for a seed however they are made, resumed where they stopped, never over other files."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import decode_image

from lightning_vision import main
from lightning_vision.callbacks import EMA
from lightning_vision.generation import Diffusion, DiffusionModel, FlowMatching
from support.generators import tiny_diffusion
from support.learners import unlabelled
from support.trainers import QUIET, quiet_trainer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that was trained for a few steps with an average of its weights."""
    path = tmp_path_factory.mktemp("trained") / "last.ckpt"
    model = tiny_diffusion(num_classes=10, steps=3)
    trainer = quiet_trainer(max_steps=6, callbacks=[EMA(decay=0.5)])
    trainer.fit(model, unlabelled())
    trainer.save_checkpoint(path)
    return path


def sampled(checkpoint: Path, out: Path, *flags: str) -> dict[str, object]:
    cpu = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", *QUIET]
    result = main(["sample", "--ckpt_path", str(checkpoint), "--out", str(out), *cpu, *flags])
    assert isinstance(result.output, dict)
    return result.output


def images(folder: Path) -> Tensor:
    return torch.stack([decode_image(str(path)) for path in sorted(folder.glob("0*.png"))])


def test_images_are_those_of_the_module_at_the_datas_size(checkpoint: Path, tmp_path: Path) -> None:
    told = sampled(checkpoint, tmp_path / "samples", "--num", "5", "--label", "7", "--steps", "2", "--seed", "1")
    model = DiffusionModel.load_from_checkpoint(checkpoint)

    assert told == {
        "folder": str(tmp_path / "samples"),
        "grid": str(tmp_path / "samples" / "grid.png"),
        "count": 5,
        "made": 5,
    }
    assert torch.equal(images(tmp_path / "samples"), model.pixels(model.sample(5, label=7, seed=1, steps=2)))
    assert Image.open(tmp_path / "samples" / "000000.png").size == (8, 8)
    with Image.open(tmp_path / "samples" / "grid.png") as grid:
        assert grid.size == (3 * 50 + 2, 2 * 50 + 2)


def test_it_stops_anywhere_and_goes_on(checkpoint: Path, tmp_path: Path) -> None:
    sampled(checkpoint, tmp_path / "whole", "--num", "7")
    sampled(checkpoint, tmp_path / "parts", "--num", "4")
    kept = (tmp_path / "parts" / "000001.png").stat().st_mtime_ns
    (tmp_path / "parts" / "000003.png").unlink()
    (tmp_path / "parts" / "000005.png.part").write_bytes(b"half an image")
    told = sampled(checkpoint, tmp_path / "parts", "--num", "7")

    assert told["made"] == 4
    assert torch.equal(images(tmp_path / "parts"), images(tmp_path / "whole"))
    assert (tmp_path / "parts" / "000001.png").stat().st_mtime_ns == kept
    assert sampled(checkpoint, tmp_path / "parts", "--num", "7")["made"] == 0


def test_the_batch_size_makes_no_difference(checkpoint: Path, tmp_path: Path) -> None:
    for size in ("1", "3", "64"):
        sampled(checkpoint, tmp_path / size, "--num", "7", "--batch_size", size)

    assert torch.equal(images(tmp_path / "1"), images(tmp_path / "64"))
    assert torch.equal(images(tmp_path / "3"), images(tmp_path / "64"))


def test_two_ranks_make_the_images_of_one(checkpoint: Path, tmp_path: Path, two_ranks) -> None:
    def pair(path: Path, folder: Path) -> object:
        ranks = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]
        quiet = ["--trainer.logger", "false", *QUIET]
        command = ["sample", "--ckpt_path", str(path), "--out", str(folder), "--num", "7", "--batch_size", "2"]
        return main([*command, *ranks, *quiet]).output

    two_ranks(pair, checkpoint, tmp_path / "two")
    sampled(checkpoint, tmp_path / "one", "--num", "7")

    assert torch.equal(images(tmp_path / "two"), images(tmp_path / "one"))
    assert (tmp_path / "two" / "grid.png").read_bytes() == (tmp_path / "one" / "grid.png").read_bytes()


def test_classes_take_turns_and_may_be_chosen(checkpoint: Path, tmp_path: Path) -> None:
    model = DiffusionModel.load_from_checkpoint(checkpoint)
    sampled(checkpoint, tmp_path / "all", "--num", "12")
    sampled(checkpoint, tmp_path / "two", "--num", "3", "--label", "7", "--label", "2")

    assert torch.equal(images(tmp_path / "all"), model.pixels(model.sample(12, label=[*range(10), 0, 1])))
    assert torch.equal(images(tmp_path / "two"), model.pixels(model.sample(3, label=[7, 2, 7])))


def test_another_sampler_has_settings_of_its_own(tmp_path: Path) -> None:
    model = tiny_diffusion(process=Diffusion(), num_classes=10, sampler="ddim", sampler_settings={"eta": 0.5})
    trainer = quiet_trainer(max_steps=1)
    trainer.fit(model, unlabelled())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    sampled(tmp_path / "last.ckpt", tmp_path / "samples", "--num", "2", "--sampler", "dpm_solver_2m")
    expected = model.pixels(model.sample(2, sampler="dpm_solver_2m"))

    assert torch.equal(images(tmp_path / "samples"), expected)


def test_a_runs_mixed_precision_is_for_training(checkpoint: Path, tmp_path: Path) -> None:
    """In bfloat16 a pixel may depend on the images beside it; who asks for it gets it."""
    for name, flags in (("plain", []), ("asked", ["--trainer.precision", "bf16-mixed"])):
        (tmp_path / f"{name}.yaml").write_text("trainer: {precision: bf16-mixed}\n")
        sampled(checkpoint, tmp_path / name, "--num", "4", "--config", str(tmp_path / f"{name}.yaml"), *flags)
    sampled(checkpoint, tmp_path / "full", "--num", "4")
    model = DiffusionModel.load_from_checkpoint(checkpoint)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model.pixels(model.sample(4))

    assert torch.equal(images(tmp_path / "plain"), images(tmp_path / "full"))
    assert torch.equal(images(tmp_path / "asked"), rounded)


def test_images_of_another_process_are_not_mixed_in(checkpoint: Path, tmp_path: Path) -> None:
    sampled(checkpoint, tmp_path / "samples", "--num", "2")
    model = DiffusionModel.load_from_checkpoint(checkpoint, process=FlowMatching(time_law="logit_normal"))
    trainer = quiet_trainer()
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "other.ckpt")
    with pytest.raises(FileExistsError, match="made otherwise"):
        sampled(tmp_path / "other.ckpt", tmp_path / "samples", "--num", "2")
    assert "logit_normal" not in (tmp_path / "samples" / "samples.json").read_text()


def test_it_tells_what_was_spent_and_whose_weights_they_are(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sampled(checkpoint, tmp_path / "samples", "--num", "2", "--guidance", "0.5", "--seed", "3")
    told = dict(
        re.split(r"  +", line.strip(), maxsplit=1) for line in capsys.readouterr().out.splitlines() if "  " in line
    )

    assert told["network calls"] == "6 an image"
    assert told["seed"] == "3"
    assert re.fullmatch(r"EMA.*, an average after 6 updates", told["weights"])
    settings = json.loads((tmp_path / "samples" / "samples.json").read_text())
    assert (settings["guidance"], settings["steps"], settings["seed"]) == (0.5, 3, 3)


def test_other_files_are_never_written_over(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("holiday.png", "000007.png", "000001.png"):
        (folder / name).write_bytes(b"dear to me")
    with pytest.raises(FileExistsError, match=r"000001\.png, which is none of these; choose another --out or add --o"):
        sampled(checkpoint, folder, "--num", "2")
    assert len(list(folder.iterdir())) == 3
    sampled(checkpoint, folder, "--num", "2", "--overwrite")

    assert [(folder / it).read_bytes() for it in ("holiday.png", "000007.png")] == [b"dear to me"] * 2
    assert Image.open(folder / "000001.png").size == (8, 8)


def test_images_made_otherwise_are_kept_unless_told(checkpoint: Path, tmp_path: Path) -> None:
    sampled(checkpoint, tmp_path / "samples", "--num", "4", "--seed", "1")
    with pytest.raises(FileExistsError, match=r"holds images made otherwise; choose another --out or add --overwrite$"):
        sampled(checkpoint, tmp_path / "samples", "--num", "2", "--seed", "2")
    sampled(checkpoint, tmp_path / "samples", "--num", "2", "--seed", "2", "--overwrite")

    assert len(images(tmp_path / "samples")) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num", "0"], "--num 0: give at least 1"),
        (["--label", "[]"], "--label is an empty list; give classes, or leave it out"),
        (["--batch_size", "0"], "--batch_size 0: give at least 1"),
        (["--seed", "-1"], "--seed -1: give at least 0"),
        (["--label", "10"], "label 10 is none of the 10 classes; give 0 to 9"),
        (["--steps", "0"], "the number of steps is 0; give at least 1"),
        (["--sampler", "ddim"], "FlowMatching: sampler is 'ddim'; give one of euler, midpoint, heun"),
    ],
)
def test_bad_options_are_refused_before_a_file_is_made(
    checkpoint: Path, tmp_path: Path, flags: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        sampled(checkpoint, tmp_path / "samples", *flags)

    assert not (tmp_path / "samples").exists()


def test_what_makes_no_images_is_refused(tmp_path: Path) -> None:
    run = ["--config", "classification/digits", "--trainer.logger", "false", *QUIET]
    with pytest.raises(ValueError, match=r"^ImageClassifier makes no images; give a checkpoint of a generation run$"):
        main(["sample", *run])
    with pytest.raises(ValueError, match=r"^sample needs --ckpt_path, the checkpoint whose weights make the images$"):
        main(["sample", "--config", "generation/flow_digits", "--trainer.logger", "false", *QUIET])


def test_a_generator_predicts_nothing_of_images() -> None:
    said = r"^DiffusionModel makes images and says nothing of those it is given; run `sample`$"
    with pytest.raises(ValueError, match=said):
        main(["predict", "--config", "generation/flow_digits", *QUIET])
    with pytest.raises(ValueError, match=r"those it is given; run `sample`$"):
        tiny_diffusion().predict_step((torch.zeros(1, 1, 8, 8),), 0)

"""What a person gets for bad input: one sentence before training starts, an exit code, nothing lost.

Each mistake stands beside a good twin, a run with the same flags that succeeds.
"""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lightning_vision import ImageClassifier
from lightning_vision.console import console
from lightning_vision.datamodules import from_datasets
from support.trainers import QUIET

FIT = ["fit", "--config", "classification/digits", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"]
FOLDER = ["--data", "ImageFolder", "--data.image_size", "8", "--data.channels", "1", "--data.batch_size", "4"]


Said = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Said:
    """`said(*args)` runs the console and returns its exit code and the error's lines, at most three lines in all."""

    def run(*args: str) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", ["lightning_vision", *args])
        code = console()
        shown = capfd.readouterr().err.splitlines()
        assert code == 0 or len(shown) <= 3, "\n".join(shown)
        return code, [line for line in shown if "error:" in line]

    return run


def photographs(root: Path, classes: tuple[str, ...] = ("ant", "bee"), number: int = 12) -> Path:
    """A folder of small grey images in class folders."""
    draw = np.random.default_rng(0)
    for label in classes:
        (root / label).mkdir(parents=True)
        for index in range(number):
            Image.fromarray(draw.integers(0, 255, (8, 8), dtype=np.uint8)).save(root / label / f"{index}.png")
    return root


def test_an_unknown_backbone_names_the_nearest(said: Said) -> None:
    bad = said(*FIT, *QUIET, "--model.backbone", "resnet8_cifr")
    good = said(*FIT, *QUIET, "--model.backbone", "resnet8_cifar")

    assert bad == (
        2,
        [
            "lightning_vision fit: error: unknown backbone 'resnet8_cifr'; did you mean resnet8_cifar or "
            "resnet56_cifar or resnet44_cifar?"
        ],
    )
    assert good == (0, [])


def test_an_unknown_config_key_names_the_nearest(said: Said) -> None:
    Path("bad.yaml").write_text("trainer: {max_epoch: 1}\n")
    Path("good.yaml").write_text("trainer: {max_epochs: 1}\n")

    assert said(*FIT, *QUIET, "--config", "bad.yaml") == (
        2,
        [
            "lightning_vision fit: error: there is no key trainer.max_epoch; did you mean trainer.max_epochs or "
            "trainer.min_epochs or trainer.max_steps?"
        ],
    )
    assert said(*FIT, *QUIET, "--config", "good.yaml") == (0, [])


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--data.sampler", "nope", "data.sampler: expected all or balanced, got nope"),
        (
            "--model.loss",
            "bec",
            "model.loss: expected cross_entropy, bce, focal or the path of a class, got bec; did you mean bce?",
        ),
    ],
    ids=["a choice", "a choice or a class"],
)
def test_a_wrong_choice_names_the_right_ones(said: Said, flag: str, value: str, message: str) -> None:
    assert said(*FIT, *QUIET, flag, value) == (2, [f"lightning_vision fit: error: {message}"])


def test_a_run_that_is_refused_leaves_no_folder(said: Said) -> None:
    place = ["--trainer.default_root_dir", "runs"]
    code, (line,) = said(*FIT, *QUIET, *place, "--config", "callbacks/mixup", "--config", "callbacks/cutmix")

    assert code == 2 and "MixUp" in line and "CutMix" in line
    assert list(Path("runs").iterdir()) == []
    assert said(*FIT, *QUIET, *place, "--config", "callbacks/mixup") == (0, [])
    assert [path.name for path in Path("runs").iterdir()] == ["version_0"]


def test_a_missing_config_file_is_named(said: Said) -> None:
    code, lines = said("fit", "--config", "missing.yaml")

    assert code == 2
    assert lines == [
        "lightning_vision fit: error: --config missing.yaml: no such file and no shipped config of that name; "
        "`lightning_vision list configs` shows the shipped ones"
    ]


def test_an_empty_folder_is_named(said: Said) -> None:
    Path("empty").mkdir()
    code, lines = said(*FIT, *QUIET, *FOLDER, "--data.root", "empty")

    assert code == 2
    assert lines == [
        "lightning_vision fit: error: the folder empty has no class folders with images, such as empty/cat/1.jpg"
    ]
    assert said(*FIT, *QUIET, *FOLDER, "--data.root", str(photographs(Path("full")))) == (0, [])


def test_a_class_that_only_validation_has_is_named(said: Said) -> None:
    photographs(Path("photos/train"))
    photographs(Path("photos/val"), ("ant", "bee", "wasp"))
    code, lines = said(*FIT, *QUIET, *FOLDER, "--data.root", "photos")

    assert code == 2
    assert lines == [
        "lightning_vision fit: error: class 'wasp' is in photos/val but not in photos/train; add images to train on or "
        "remove it"
    ]
    photographs(Path("photos/train"), ("wasp",))
    assert said(*FIT, *QUIET, *FOLDER, "--data.root", "photos") == (0, [])


def test_a_label_outside_the_range_is_named_before_training() -> None:
    images = torch.zeros(8, 1, 8, 8, dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    data = from_datasets(torch.utils.data.TensorDataset(images, labels), num_classes=2, batch_size=4)

    with pytest.raises(ValueError, match=r"^train: label 2 of sample 2 is outside 0..1; there are 2 classes$"):
        data.setup("fit")


def test_a_truncated_image_in_mid_epoch_is_named_or_skipped(said: Said) -> None:
    root = photographs(Path("photos"))
    whole = (root / "ant" / "3.png").read_bytes()
    (root / "ant" / "3.png").write_bytes(whole[: len(whole) // 2])
    everything = [*FIT[:-2], *QUIET, *FOLDER, "--data.root", "photos", "--data.val_fraction", "0.3"]
    for workers in ("0", "2"):
        code, lines = said(*everything, "--data.num_workers", workers)

        assert code == 2
        assert len(lines) == 1 and "photos/ant/3.png" in lines[0] and "on_bad_image" in lines[0]
        assert said(*everything, "--data.num_workers", workers, "--data.on_bad_image", "skip") == (0, [])


@pytest.mark.slow
def test_on_two_processes_a_truncated_image_is_one_sentence_too() -> None:
    root = photographs(Path("photos"))
    whole = (root / "ant" / "3.png").read_bytes()
    (root / "ant" / "3.png").write_bytes(whole[: len(whole) // 2])
    command = [sys.executable, "-m", "lightning_vision", *FIT[:-2], *QUIET, "--config", "trainer/ddp_cpu", *FOLDER]
    done = subprocess.run(
        [*command, "--data.root", "photos", "--data.val_fraction", "0.3"], capture_output=True, text=True, timeout=120
    )
    told = [line for line in done.stderr.splitlines() if line.startswith("lightning_vision")]

    assert done.returncode == 2
    assert "Traceback" not in done.stderr, done.stderr
    assert sum("photos/ant/3.png" in line for line in told) == 1
    assert len(told) <= 2


def checkpoint_of(said: Said, *more: str) -> Path:
    assert said(*FIT, *QUIET, "--trainer.default_root_dir", "made", *more) == (0, [])
    return sorted(Path("made").glob("version_*/checkpoints/last.ckpt"))[-1]


def test_a_checkpoint_of_another_architecture_is_refused(said: Said) -> None:
    other = checkpoint_of(said, "--model.backbone", "resnet20_cifar")
    same = checkpoint_of(said)
    code, lines = said("test", "--config", "classification/digits", *QUIET, "--ckpt_path", str(other))

    assert code == 2
    assert len(lines) == 1 and "another architecture" in lines[0]
    assert said("test", "--config", "classification/digits", *QUIET, "--ckpt_path", str(same)) == (0, [])


def test_a_refused_resumption_leaves_the_earlier_run_as_it_was(said: Said) -> None:
    checkpoint = checkpoint_of(said)
    before = {path: path.read_bytes() for path in Path("made").rglob("*") if path.is_file()}
    more = ["--trainer.default_root_dir", "made", "--model.backbone", "resnet20_cifar", "--ckpt_path", str(checkpoint)]
    code, lines = said(*FIT, *QUIET, *more)

    assert code == 2
    assert len(lines) == 1 and "another architecture" in lines[0]
    assert {path: path.read_bytes() for path in Path("made").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "export"])
def test_a_subcommand_without_a_word_asks_for_what_it_needs(said: Said, command: str) -> None:
    code, lines = said(command)

    assert code == 2
    assert len(lines) == 1 and ("add --config NAME" in lines[0] or "--ckpt_path is missing" in lines[0])


class Bomb:
    """Creates a file when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("door", ["checkpoint", "weights"])
def test_a_pickle_with_code_is_refused_and_not_run(said: Said, door: str) -> None:
    flag = {"checkpoint": "--ckpt_path", "weights": "--model.weights"}[door]
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.6", "x": Bomb()}, "zip.ckpt")
    Path("raw.ckpt").write_bytes(pickle.dumps(Bomb()))
    for name in ("zip.ckpt", "raw.ckpt"):
        code, lines = said(*FIT, *QUIET, flag, name)

        assert code == 2
        assert len(lines) == 1 and name in lines[0] and "code" in lines[0]
    assert not Path("exploded").exists()
    if door == "weights":
        network = ImageClassifier("resnet8_cifar", num_classes=10, in_channels=1).network
        save_file(network.state_dict(), "good.safetensors")
        assert said(*FIT, *QUIET, flag, "good.safetensors") == (0, [])
    else:
        good = str(checkpoint_of(said))
        assert said(*FIT[:-2], *QUIET, "--trainer.max_epochs", "2", flag, good) == (0, [])


def test_an_unwritable_log_folder_is_named(said: Said) -> None:
    Path("file").write_text("in the way")
    code, lines = said(*FIT, *QUIET, "--trainer.default_root_dir", "file/logs")

    assert code == 2
    assert len(lines) == 1 and "file/logs" in lines[0] and "--trainer.default_root_dir" in lines[0]
    assert said(*FIT, *QUIET, "--trainer.default_root_dir", "logs") == (0, [])


def test_an_interrupted_run_keeps_a_checkpoint_that_goes_on_and_leaves_with_130(said: Said) -> None:
    long = ["fit", "--config", "classification/digits", *QUIET, "--trainer.max_epochs", "1000"]
    command = [sys.executable, "-m", "lightning_vision", *long, "--trainer.default_root_dir", "run"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(Path("run").glob("version_0/checkpoints/last.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=60)

    assert process.returncode == 130
    assert shown.splitlines()[-1] == "lightning_vision: interrupted; what was written stays"
    (checkpoint,) = Path("run").glob("version_0/checkpoints/last-interrupted.ckpt")
    step = torch.load(checkpoint, weights_only=True)["global_step"]
    more = ["--trainer.max_epochs", "-1", "--trainer.max_steps", str(step + 3)]
    assert said(*long, "--trainer.default_root_dir", "run", "--ckpt_path", "last", *more) == (0, [])
    resumed = torch.load(checkpoint.with_name("last.ckpt"), weights_only=True)
    assert resumed["global_step"] > step


@pytest.mark.parametrize(
    "mistake",
    [
        pytest.param(["--model.backbone", "resnet8_cifr"], id="backbone"),
        pytest.param([*FOLDER, "--data.root", "nowhere"], id="folder", marks=pytest.mark.slow),
        pytest.param(["--ckpt_path", "no.ckpt"], id="checkpoint", marks=pytest.mark.slow),
    ],
)
def test_a_mistake_costs_under_twenty_seconds_and_three_lines(mistake: list[str]) -> None:
    begin = os.times()
    command = [sys.executable, "-m", "lightning_vision", *FIT, *QUIET, *mistake]
    done = subprocess.run(command, capture_output=True, text=True)

    assert done.returncode == 2
    spent = os.times()
    # Processor time, which other work on the machine does not stretch.
    assert spent.children_user + spent.children_system - begin.children_user - begin.children_system < 20
    assert len(done.stderr.splitlines()) <= 3, done.stderr
    assert done.stdout == ""
    assert not Path("runs").exists()

"""From a folder of photographs to predictions, as a person does it who has read the first screen of README.

The photographs are scikit-image's and scikit-learn's, in mixed sizes, modes and formats; the weights to start from are
made here, on photographs of other things. Nothing is downloaded.
"""

import csv
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lightning_vision import ImageClassifier, Result, main
from lightning_vision.backbones import create
from lightning_vision.console import console
from support import ROOT
from support.photos import PHOTOGRAPHS, damage, digit_folder, photo_folder, photo_table
from support.trainers import QUIET

pytestmark = pytest.mark.one_worker

FOLDER = ["--config", "classification/finetune_folder", "--data.root", "photos"]
TABLE = ["--config", "classification/finetune_csv", "--data.csv", "photos/table.csv"]
# What makes the shipped config cheap enough for a test, and silent; the rest of it is as shipped.
SMALL = ["--model.backbone", "resnet10t", "--data.image_size", "48", "--data.train_size", "56"]
SMALL += ["--data.num_workers", "0", "--trainer.accelerator", "cpu"]
HERE = [*SMALL, *QUIET]
UNTRAINED = ["--model.pretrained", "false"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights of the network that `HERE` names, as it is made."""
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    torch.manual_seed(0)
    save_file(create("resnet10t", num_classes=2, in_channels=3).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, trained on photographs of seven other things."""
    folder = tmp_path_factory.mktemp("trained")
    others = ("astronaut", "coins", "galaxies", "grass", "gravel", "retina", "temple")
    photo_folder(folder / "photos", others, number=24)
    place = ["--config", "classification/finetune_folder", "--data.root", str(folder / "photos"), *HERE, *UNTRAINED]
    place += ["--trainer.default_root_dir", str(folder), "--model.layer_decay", "1", "--callbacks.head_first", "null"]
    result = main(["fit", *place, "--trainer.max_epochs", "12"])
    network = ImageClassifier.load_from_checkpoint(str(result.best_ckpt), weights_only=True).network
    save_file(network.state_dict(), folder / "weights.safetensors")
    return folder / "weights.safetensors"


def folder_to_predictions(weights: Path, epochs: int, capsys: pytest.CaptureFixture[str]) -> tuple[list[float], int]:
    """Trains on a folder, runs the two commands that `fit` names next, and checks what is said and written on the way.

    Returns:
        Accuracy in validation and test, and how many of eight new photographs are named rightly.
    """
    photo_folder("photos", number=20)
    photo_folder("new", ("cat", "rocket"), number=4, seed=7)
    fitted = main(["fit", *FOLDER, *HERE, "--model.weights", str(weights), "--trainer.max_epochs", str(epochs)])
    shown = capsys.readouterr().out
    counts, after = shown.split("HeadFirst")[0], shown.split("\nnext\n")[1]
    report = Path(str(fitted.run_dir)) / "report"

    assert [line.split() for line in counts.splitlines()[:3]] == [
        ["images", "of", "each", "class"],
        ["class", "train", "val", "test"],
        ["brick", "14", "3", "3"],
    ]
    assert "  all          84       18       18\n  Split: drawn class by class with split_seed 0" in counts
    assert {path.name for path in report.iterdir()} >= {"val_per_class.csv", "val_confusion.png", "val_mistakes.png"}

    assert "--trainer.max_epochs" not in after and "--model.weights" not in after
    measure, use = (shlex.split(line.partition("lightning_vision ")[2]) for line in after.splitlines()[:2])
    tested = main(measure)
    rows = list(csv.DictReader(Path(str(tested.output)).read_text().splitlines()))

    assert [row["class"] for row in rows] == ["brick", "cat", "coffee", "flower", "moon", "rocket"]

    predicted = main([*use[:-1], "new", *QUIET])
    records = list(csv.DictReader(Path("predictions.csv").read_text().splitlines()))

    assert predicted.output["count"] == 8
    assert Image.open("predictions.png").width > 200
    right = sum(row["class_name"] in row["path"] for row in records)
    return [fitted.metrics["val/acc"], tested.metrics["test/acc"]], right


def test_a_folder_of_photographs_becomes_predictions(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores, _ = folder_to_predictions(weights, 1, capsys)

    assert all(0 <= score <= 1 for score in scores)


@pytest.mark.slow
def test_a_folder_of_photographs_becomes_a_classifier(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores, right = folder_to_predictions(trained, 10, capsys)

    # 18 images of six classes; chance is 1 in 6, and 8 right are p < 0.01
    assert min(scores) >= 0.6
    assert right >= 5


def test_the_front_pages_three_commands_run_one_after_the_other() -> None:
    page = (ROOT / "README.md").read_text().partition("## Your own photographs")[2].partition("```")[0]
    commands = [line.split()[1:] for line in page.splitlines() if line.startswith("    lightning_vision ")]
    photo_folder("photos", ("brick", "cat"), number=8)
    photo_folder("new", ("cat",), number=2)
    shrunk = {"fit": [*HERE, *UNTRAINED, "--trainer.max_epochs", "1"], "test": [*HERE, *UNTRAINED], "predict": QUIET}
    results = [main([*command, *shrunk[command[0]]]) for command in commands]

    assert [command[0] for command in commands] == ["fit", "test", "predict"]
    assert results[1].metrics.keys() >= {"test/acc"}
    assert results[2].output["count"] == 2


def test_the_schedule_ends_with_the_training_and_not_with_the_configs_twenty_epochs() -> None:
    photo_folder("photos", ("brick", "cat"), number=12)
    result = main(["fit", *FOLDER, *HERE, *UNTRAINED, "--trainer.max_epochs", "3"])
    state = torch.load(Path(str(result.best_ckpt)).with_name("last.ckpt"), weights_only=True)

    assert {group["lr"] for it in state["optimizer_states"] for group in it["param_groups"]} == {0.0}


def test_a_table_trains_as_its_folder_does(capsys: pytest.CaptureFixture[str]) -> None:
    photo_folder("photos", ("brick", "cat"), number=12)
    photo_table("photos/table.csv", "photos")
    short = [*HERE, *UNTRAINED, "--trainer.max_epochs", "1"]
    fitted = main(["fit", *TABLE, *short])
    shown = capsys.readouterr().out
    use = shlex.split(shown.splitlines()[-1].partition("lightning_vision ")[2])
    predicted = main([*use[:-1], "photos/cat", *QUIET])

    assert shown.splitlines()[2].split() == ["brick", "8", "2", "2"]
    assert fitted.metrics.keys() >= {"val/acc", "val/f1"}
    assert predicted.output["count"] == 12


def test_several_labels_an_image_are_counted_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    photo_folder("photos", ("brick", "cat"), number=12)
    rows = photo_table("photos/table.csv", "photos").read_text().replace(",cat", ",cat|animal")
    Path("photos/table.csv").write_text(rows)
    more = ["--model.loss", "bce", "--data.separator", "|", "--trainer.max_epochs", "1"]
    main(["fit", *TABLE, *HERE, *UNTRAINED, *more])
    counts = [line.split() for line in capsys.readouterr().out.splitlines()[:5]]

    assert counts[0] == ["images", "with", "each", "label"]
    assert counts[2][:2] == ["animal", "8"] and counts[4][:2] == ["cat", "8"]


def test_many_classes_are_summed_up_and_an_uneven_folder_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    digit_folder("photos", number=40)
    for index in range(30):
        for copy in range(2):
            (Path("photos") / f"extra_{index:02}").mkdir(exist_ok=True)
            source = Path("photos/zero") / f"{copy}.png"
            (Path("photos") / f"extra_{index:02}" / f"{copy}.png").write_bytes(source.read_bytes())
    main(["fit", *FOLDER, *HERE, *UNTRAINED, "--trainer.max_steps", "1", "--trainer.limit_val_batches", "1"])
    lines = capsys.readouterr().out.splitlines()
    words = [line.split() for line in lines]

    assert words[7][0] == "..."
    assert words[13][:3] == ["all", "40", "classes"]
    assert any(line.startswith("  No test image of extra_00, extra_01, extra_02 and 27 more") for line in lines)
    assert any("times the training images of extra_" in line and "class_weights balanced" in line for line in lines)


def refused(*args: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The one sentence that the console says, with exit code 2."""
    monkeypatch.setattr(sys, "argv", ["lightning_vision", "fit", *FOLDER, *HERE, *args])
    assert console() == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "error:" in line]
    return line.removeprefix("lightning_vision fit: error: ")


def test_what_cannot_be_trained_on_is_said_before_training(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(*args: str) -> str:
        return refused(*UNTRAINED, *args, capfd=capfd, monkeypatch=monkeypatch)

    assert said() == "there is no folder photos; root must hold train/CLASS or CLASS folders of images"
    Path("photos").mkdir()
    assert said() == "the folder photos has no class folders with images, such as photos/cat/1.jpg"
    photo_folder("photos", ("cat",))
    assert said() == "all images are of one class, 'cat'; a classifier needs at least two to tell apart"
    photo_folder("photos", ("brick",))
    assert said("--data.val_fraction", "0") == (
        "no image is left for validation, by which the best checkpoint is chosen; add images or raise "
        "--data.val_fraction"
    )
    assert not list(Path().glob("runs/**/*.ckpt"))
    main(["fit", *FOLDER, *HERE, *UNTRAINED, "--trainer.max_steps", "1"])


def test_weights_that_do_not_fit_are_said_and_nothing_is_written(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, weights: Path
) -> None:
    def said(*args: str) -> str:
        return refused(*args, capfd=capfd, monkeypatch=monkeypatch)

    photo_folder("photos", ("brick", "cat"), number=8)
    broken = Path("broken.safetensors")
    broken.write_bytes(weights.read_bytes())
    damage(broken)

    assert said("--model.weights", "no.safetensors") == "no weights at no.safetensors"
    assert said("--model.weights", str(broken)).startswith(f"{broken} is damaged or no safetensors file")
    assert said("--model.weights", str(weights), "--model.backbone", "resnet26t").startswith(
        f"{weights} holds weights of another architecture than ResNet: "
    )
    assert not Path("runs").exists()


def test_without_a_network_the_shipped_config_says_one_sentence_and_writes_nothing() -> None:
    photo_folder("photos", ("brick", "cat"), number=4)
    command = [sys.executable, "-m", "lightning_vision", "fit", *FOLDER]
    nowhere = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": str(Path("cache").absolute())}
    done = subprocess.run(command, capture_output=True, text=True, env=nowhere, timeout=100)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("Seed set")]

    assert done.returncode == 2
    assert len(lines) == 1, done.stderr
    assert "could not be fetched" in lines[0] and "--model.weights FILE" in lines[0]
    assert not Path("runs").exists()


def test_a_class_with_one_image_and_a_damaged_file_do_not_stop_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    photo_folder("photos", ("brick", "cat"), number=12)
    photo_folder("photos", ("moon",), number=1)
    damage(Path("photos/cat/cat_0.jpg"))
    with pytest.warns(UserWarning, match="cat_0.jpg"):
        result: Result = main(["fit", *FOLDER, *HERE, *UNTRAINED, "--trainer.max_epochs", "1"])
    shown = capsys.readouterr().out

    assert "  No val image of moon: too few images to divide.\n" in shown
    assert result.best_ckpt is not None


def test_a_checkpoint_is_measured_without_the_weights_that_it_began_with(weights: Path) -> None:
    photo_folder("photos", ("brick", "cat"), number=12)
    began = Path("began.safetensors")
    began.write_bytes(weights.read_bytes())
    short = [*FOLDER, *HERE, "--trainer.max_epochs", "1"]
    best = str(main(["fit", *short, "--model.weights", str(began)]).best_ckpt)
    began.unlink()

    assert main(["test", *short, "--ckpt_path", best]).metrics.keys() >= {"test/acc"}
    assert main(["test", *short, "--model.weights", str(began), "--ckpt_path", best]).metrics.keys() >= {"test/acc"}


def test_every_photograph_of_the_helper_is_there() -> None:
    assert [name for name, path in PHOTOGRAPHS.items() if not path.is_file()] == []

"""`corrupt` tests a model on corrupted images, tells what is left of its score, and loses nothing it has measured."""

import csv
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_vision import ImageClassifier, main
from lightning_vision.commands._corrupted_data import check_corruptible, data_of_config
from lightning_vision.commands.corrupt import _corruptions, _severities
from lightning_vision.datamodules import Digits
from lightning_vision.datamodules.common._sets import ArrayImages, Fetched, ImageSet
from lightning_vision.detection.coco_metric import CocoMAP
from lightning_vision.robustness import corrupt_images
from support.command_toys import ToyData

CPU = ["--trainer.accelerator", "cpu", "--trainer.logger", "false"]
SCENES = ["--data", "DigitScenes", "--data.image_size", "80", "--data.test_images", "4", "--data.batch_size", "4"]
DIGITS = ["--data", "Digits", "--data.batch_size", "180"]

Corrupt = Callable[..., Any]


class Oracle(LightningModule):
    """Answers with what is there, sure of it: boxes and masks."""

    def __init__(self) -> None:
        super().__init__()
        self.metric = CocoMAP(10, masks=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        found = [{**target, "scores": torch.ones(len(target["labels"]))} for target in batch[1]]
        self.metric.update(found, batch[1])

    def on_test_epoch_end(self) -> None:
        self.log_dict({f"test/{name}": value for name, value in self.metric.compute().items()})
        self.metric.reset()


class Counting(LightningModule):
    """Logs nothing but how bright images are, and counts its tests."""

    tests = 0

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/acc", batch[0].mean() + 2)

    def on_test_epoch_end(self) -> None:
        type(self).tests += 1


class Failing(Digits):
    """Digits whose test set cannot be read any more at the fourth test, until it is mended."""

    mended: ClassVar[bool] = False
    asked: ClassVar[int] = 0

    def test_dataloader(self) -> Any:
        type(self).asked += 1
        if self.asked == 4 and not self.mended:
            raise OSError("the disk is gone")
        return super().test_dataloader()


class Scaled(Digits):
    """Digits that are floats before they are normalised."""

    def load(self) -> None:
        super().load()
        assert isinstance(self.test_set, ArrayImages)
        self.test_set = Floats(self.test_set)


class Floats(ImageSet):
    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def fetch(self, index: Tensor, epoch: int = 0) -> Fetched:
        found = self.images.fetch(index)
        return Fetched(found.image / 255, found.target, found.index)


class Untested(Digits):
    """Digits without a test split."""

    def load(self) -> None:
        super().load()
        self.test_set = None


class Named(Digits):
    """Digits called otherwise."""

    @property
    def class_names(self) -> list[str]:
        return [f"digit {number}" for number in range(10)]


class Foreign(ToyData):
    """A stranger's, with a test loader."""

    in_channels = 1


@pytest.fixture
def checkpoint(tmp_path: Path, trained: bytes) -> str:
    path = tmp_path / "best.ckpt"
    path.write_bytes(trained)
    return str(path)


@pytest.fixture
def corrupt(tmp_path: Path) -> Corrupt:
    """The command, writing into a folder of the test's."""

    def run(*args: str) -> Any:
        return main(["corrupt", *args, *CPU, "--output", str(tmp_path / "out")]).output

    return run


def test_row_86_an_oracle_loses_nothing_by_any_corruption(corrupt: Corrupt) -> None:
    model = ["--model", f"{__name__}.Oracle", "--data.masks", "true"]
    every = corrupt(*SCENES, *model, "--severities", "[5]")["scores"]
    larger = corrupt(*SCENES, *model, "--sizes", "[96]", "--corruptions", "[fog]", "--severities", "[5]")["scores"]

    assert [(row["data"], row["metric"]) for row in larger] == [
        (data, metric) for data in ("data", "size 96") for metric in ("test/map", "test/segm_map")
    ]
    assert [len(row["corruptions"]) for row in every] == [15, 15]
    for row in (*every, *larger):
        assert (row["clean"], row["mpc"], row["rpc"]) == (1, 1, 1)


def test_row_86_the_identity_leaves_exactly_all_of_the_score(corrupt: Corrupt, checkpoint: str) -> None:
    (row,) = corrupt(*DIGITS, "--ckpt_path", checkpoint, "--corruptions", "[identity]", "--severities", "[1,5]")[
        "scores"
    ]

    assert 0.5 < row["clean"] < 1
    assert (row["mpc"], row["rpc"]) == (row["clean"], 1)


def test_a_cell_is_the_accuracy_on_images_corrupted_by_hand(
    corrupt: Corrupt, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = corrupt(*DIGITS, "--ckpt_path", checkpoint, "--corruptions", "[brightness,noise]", "--severities", "[5,1]")
    data, module = Digits(), ImageClassifier.load_from_checkpoint(checkpoint, map_location="cpu").eval()
    data.setup()
    assert isinstance(data.test_set, ArrayImages)
    assert data.test_set.targets is not None

    (row,) = given["scores"]
    assert list(row["corruptions"]) == ["brightness", "gaussian_noise", "shot_noise", "impulse_noise"]
    for severity in (1, 5):
        images = corrupt_images(data.test_set.images, "gaussian_noise", severity)
        with torch.no_grad():
            right = module(data.normalise(images)).argmax(1) == data.test_set.targets
        assert row["corruptions"]["gaussian_noise"]["by_severity"][severity] == pytest.approx(
            right.float().mean().item()
        )
    assert row["corruptions"]["gaussian_noise"]["by_severity"][5] < row["clean"] - 0.1
    told = capsys.readouterr().out
    assert "test/acc of best.ckpt on data" in told
    assert re.search(rf"rPC +{row['rpc']:.4f}\n", told)
    with open(given["csv"], encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [(line["corruption"], line["severity"]) for line in table[:3]] == [
        ("clean", "0"),
        ("brightness", "1"),
        ("brightness", "5"),
    ]
    assert float(table[0]["test/acc"]) == row["clean"]
    assert json.loads(Path(given["json"]).read_text())["scores"] == json.loads(json.dumps(given["scores"]))


def test_a_detector_that_finds_nothing_has_nothing_to_lose(
    corrupt: Corrupt, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", "ObjectDetector", "--model.backbone", "resnet10t", "--model.pyramid_channels", "32"]
    asked = [*SCENES, *model, "--corruptions", "[fog]", "--severities", "[3]"]
    rows = corrupt(*asked)["scores"]

    assert [(row["metric"], row["clean"], row["mpc"], row["rpc"]) for row in rows] == [("test/map", 0, 0, None)]
    assert re.search(r"rPC +-\n", capsys.readouterr().out)
    with pytest.raises(
        FileExistsError, match=r"measured with model.score_threshold 0.05, not 0.3; choose another --ou"
    ):
        corrupt(*asked, "--model.score_threshold", "0.3")


def test_an_interrupted_run_goes_on_and_a_wider_one_measures_only_what_is_new(corrupt: Corrupt) -> None:
    Failing.asked, Failing.mended, Counting.tests = 0, False, 0
    given = ["--data", f"{__name__}.Failing", "--data.batch_size", "400", "--model", f"{__name__}.Counting"]
    asked = [*given, "--corruptions", "[brightness,contrast]", "--severities", "[1,2]"]
    with pytest.raises(OSError, match="the disk is gone"):
        corrupt(*asked)
    assert Counting.tests == 3
    Failing.mended = True
    resumed = corrupt(*asked)["scores"]
    assert Counting.tests == 5
    wider = corrupt(*given, "--corruptions", "[brightness,contrast,fog]", "--severities", "[1,2]")["scores"]

    assert Counting.tests == 7
    assert list(wider[0]["corruptions"]) == ["brightness", "contrast", "fog"]
    assert wider[0]["corruptions"]["contrast"] == resumed[0]["corruptions"]["contrast"]


def test_figures_of_another_model_or_seed_are_not_mixed(corrupt: Corrupt, checkpoint: str) -> None:
    asked = [*DIGITS, "--ckpt_path", checkpoint, "--corruptions", "[impulse_noise]", "--severities", "[4]"]
    first = corrupt(*asked)["scores"]
    with pytest.raises(
        FileExistsError, match=r"measured with corruption_seed 0, not 1; choose another --output or add"
    ):
        corrupt(*asked, "--corruption_seed", "1")
    other = corrupt(*asked, "--corruption_seed", "1", "--overwrite", "true")["scores"]

    assert other[0]["clean"] == first[0]["clean"]
    assert other[0]["mpc"] != first[0]["mpc"]
    same = corrupt(*asked, "--corruption_seed", "1", "--data.num_workers", "1")["scores"]
    assert same == other
    with pytest.raises(
        FileExistsError, match=r"measured with callbacks.test_time_augmentation.class_path None, not li"
    ):
        corrupt(*asked, "--corruption_seed", "1", "--config", "callbacks/test_time_augmentation")
    Path(checkpoint).write_bytes(Path(checkpoint).read_bytes() + b"\0")
    with pytest.raises(FileExistsError, match="measured with weights"):
        corrupt(*asked, "--corruption_seed", "1")


def test_models_and_data_stand_side_by_side(
    corrupt: Corrupt, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, elsewhere = tmp_path / "other.ckpt", tmp_path / "elsewhere.yaml"
    other.write_bytes(Path(checkpoint).read_bytes())
    elsewhere.write_text("data:\n  class_path: Digits\n  init_args:\n    split_seed: 3\n    batch_size: 180\n")
    asked = ["--corruptions", "[contrast]", "--severities", "[5]", "--metrics", "[test/acc]"]
    both = ["--against", f"[{other}]", "--elsewhere", f"[{elsewhere}]"]
    rows = corrupt(*DIGITS, "--ckpt_path", checkpoint, *asked, *both)["scores"]

    assert [(row["model"], row["data"]) for row in rows] == [
        (model, data) for model in (checkpoint, str(other)) for data in ("data", str(elsewhere))
    ]
    scores = [(row["clean"], row["mpc"]) for row in rows]
    assert scores[:2] == scores[2:]
    assert scores[0] != scores[1]
    assert "other.ckpt, data, test/acc" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--corruptions", "[snou]"], "there is no corruption 'snou'; did you mean snow?"),
        (["--corruption_seed", "-1"], "--corruption_seed -1: give at least 0"),
        (["--sizes", "[32]"], "--sizes: images of Digits have one size, for it takes no image_size"),
        (["--elsewhere", "[callbacks/ema]"], "--elsewhere callbacks/ema: the config has no data entry to test on"),
        (["--data", f"{__name__}.Foreign"], "Foreign is no VisionDataModule, so its images cannot be reached before"),
        (["--trainer.devices", "2"], "corrupt runs in one process, not 2; add --trainer.devices 1"),
    ],
    ids=lambda given: given[0] if isinstance(given, list) else "",
)
def test_a_mistake_is_told_before_anything_is_measured(
    corrupt: Corrupt, tmp_path: Path, given: list[str], message: str
) -> None:
    data = [] if "--data" in given else ["--data", "Digits"]
    with pytest.raises(ValueError, match=re.escape(message)):
        corrupt(*data, "--model", f"{__name__}.Counting", *given)

    assert not (tmp_path / "out" / "robustness.json").exists()


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (lambda: _corruptions([]), "--corruptions is empty; name some, or leave it out for all"),
        (lambda: _severities([0, 1]), "--severities [0, 1]: give some of 1 to 5; clean images are always measured"),
        (lambda: _severities([]), "--severities []: give some of 1 to 5"),
        (
            lambda: data_of_config("classification/digts"),
            "no such file and no shipped config of that name; did you mea",
        ),
        (
            lambda: check_corruptible(Scaled()),
            "Scaled gives torch.float32 images of 1 x 8 x 8, and corruptions are for",
        ),
        (lambda: check_corruptible(Untested()), "Untested has no test images to corrupt; give it some"),
    ],
    ids=["no corruption", "severity 0", "no severity", "no config", "floats", "untested"],
)
def test_what_cannot_be_measured_is_refused(refused: Callable[[], object], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        refused()


def test_a_metric_that_is_not_logged_is_told_with_the_nearest_and_what_is_measured_stays(
    corrupt: Corrupt, checkpoint: str, tmp_path: Path
) -> None:
    asked = [*DIGITS, "--ckpt_path", checkpoint, "--corruptions", "[contrast]", "--severities", "[1]"]
    with pytest.raises(ValueError, match="--metrics test/acd: the test logs no such metric; did you mean test/acc"):
        corrupt(*asked, "--metrics", "[test/acd]")

    content: Mapping[str, Any] = json.loads((tmp_path / "out" / "robustness.json").read_text())
    assert [cell["corruption"] for cell in content["cells"]] == ["clean"]


def test_data_of_other_classes_is_told_before_anything_is_measured(
    corrupt: Corrupt, checkpoint: str, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "named.yaml"
    elsewhere.write_text(f"data: {__name__}.Named\n")
    with pytest.raises(ValueError, match=r"was trained on the classes 0, 1, 2, 3, 4, \.\.\., .*named.yaml has digit 0"):
        corrupt(*DIGITS, "--ckpt_path", checkpoint, "--elsewhere", f"[{elsewhere}]")

    assert not (tmp_path / "out" / "robustness.json").exists()


def test_a_damaged_file_is_told_and_replaced_when_asked(corrupt: Corrupt, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "robustness.json").write_text('{"cells": [')
    asked = ["--data", "Digits", "--data.batch_size", "400", "--model", f"{__name__}.Counting"]
    asked += ["--corruptions", "[contrast]", "--severities", "[1]"]
    with pytest.raises(ValueError, match=r"robustness.json is damaged; choose another --output or add --overwrite"):
        corrupt(*asked)

    assert len(corrupt(*asked, "--overwrite", "true")["scores"]) == 1

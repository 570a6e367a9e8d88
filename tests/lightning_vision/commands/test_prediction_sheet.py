"""The sheet that `predict --sheet` draws: mistakes first, then a fair look at the rest."""

import json
from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from PIL import Image

from lightning_vision import ImageClassifier, main
from lightning_vision.commands._prediction_files import captions
from lightning_vision.datamodules import Digits

CLASSES = ["cat", "dog"]


def record(index: int, label: int, target: int | None) -> dict[str, object]:
    best = {"label": label, "class_name": CLASSES[label], "probability": 0.875}
    truth = {"target": target, "target_name": None if target is None else CLASSES[target]}
    return {"index": index, "label": label, "class_name": CLASSES[label], "top_k": [best], **truth}


def written(*records: dict[str, object]) -> Path:
    Path("told.jsonl").write_text("".join(json.dumps(line) + "\n" for line in records))
    return Path("told.jsonl")


def test_mistakes_come_first_and_name_the_truth() -> None:
    told = written(record(0, 0, 0), record(1, 1, 0), record(2, 1, 1))

    assert captions(told, 2) == ([1, 0], ["dog 88%, is cat", "cat 88%"])


def test_the_rest_is_spread_over_the_file() -> None:
    told = written(*(record(index, 0, None) for index in range(9)))

    assert captions(told, 3)[0] == [0, 3, 6]
    assert captions(told, 100)[0] == list(range(9))


def test_more_mistakes_than_room_fill_the_sheet() -> None:
    told = written(*(record(index, 1, 0) for index in range(5)))

    assert captions(told, 2)[0] == [0, 1]


def test_predict_draws_the_sheet_on_request(tmp_path: Path) -> None:
    network = ImageClassifier("resnet8_cifar", num_classes=10, in_channels=1)
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=0, **quiet)
    trainer.fit(network, Digits())
    trainer.save_checkpoint("new.ckpt")
    place = ["--ckpt_path", "new.ckpt", "--output", "told", "--trainer.logger", "false"]
    told = main(["predict", "--data", "Digits", *place, "--sheet", "4"]).output

    assert told["png"] == str(tmp_path / "told" / "predictions.png")
    assert Image.open(told["png"]).size[0] > 300


def test_a_datamodule_that_cannot_draw_is_refused_before_anything_is_predicted() -> None:
    data = ["--data", "support.command_toys.ToyData", "--model", "support.command_toys.ToyModule"]

    with pytest.raises(ValueError, match=r"^--sheet 4: ToyData is not of this package and cannot draw one$"):
        main(["predict", *data, "--model.in_channels", "1", "--trainer.logger", "false", "--sheet", "4"])

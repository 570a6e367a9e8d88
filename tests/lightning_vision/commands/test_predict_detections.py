"""What `test` and `predict` say of a detector, from the files that users read."""

import csv
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lightning_vision import ObjectDetector, main
from lightning_vision.commands._detection_files import DetectionFiles, drawn_objects
from lightning_vision.datamodules import DigitScenes
from support import ROOT
from support.trainers import QUIET, quiet_trainer

pytestmark = pytest.mark.one_worker

SCENES: dict[str, Any] = {
    "image_size": 64,
    "objects": (1, 2),
    "sizes": (0.4, 0.6),
    "train_images": 320,
    "val_images": 4,
    "test_images": 14,
    "batch_size": 8,
}
CPU = ["--trainer.accelerator", "cpu", *QUIET]
DATA = [
    "--data",
    "DigitScenes",
    *(
        word
        for name, value in SCENES.items()
        for word in (f"--data.{name}", str(value).replace("(", "[").replace(")", "]"))
    ),
]


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint after 40 steps, which finds some digits."""
    torch.manual_seed(0)
    optimizer = functools.partial(torch.optim.AdamW, lr=4e-3)
    sizes: dict[str, Any] = {"num_classes": 10, "image_size": 64, "object_sizes": (0.4, 0.6)}
    module = ObjectDetector("fcos", "test_resnet", strides=[8, 16], pyramid_channels=32, optimizer=optimizer, **sizes)
    trainer = quiet_trainer(max_epochs=1, limit_val_batches=0, gradient_clip_val=5.0)
    trainer.fit(module, datamodule=DigitScenes(**SCENES))
    path = str(tmp_path_factory.mktemp("trained") / "best.ckpt")
    trainer.save_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Five test scenes as files on a wider canvas, one of them in a folder below."""
    root = tmp_path_factory.mktemp("images")
    for number, image in enumerate(next(iter(DigitScenes(**SCENES).test_dataloader()))[0][:5]):
        path = root / ("deep" if number == 4 else "") / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        canvas = Image.new("RGB", (100, 64 + 8 * number), "white")
        canvas.paste(Image.fromarray(image.permute(1, 2, 0).numpy()), (20, 0))
        canvas.save(path)
    return str(root)


def predict(*args: str) -> dict[str, Any]:
    output = main(["predict", *CPU, *args]).output
    assert isinstance(output, dict)
    return output


def records(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def truth() -> COCO:
    """The test scenes as COCO has annotations."""
    coco = COCO()
    images, rows = [], []
    for _, annotations, _ in DigitScenes(**SCENES).test_dataloader():
        for target in annotations:
            image = int(target["image_id"])
            images.append({"id": image, "height": 64, "width": 64})
            for (left, top, right, bottom), label, area in zip(
                *(target[it].tolist() for it in ("boxes", "labels", "area")), strict=True
            ):
                box = [left, top, right - left, bottom - top]
                rows.append(
                    {
                        "id": len(rows) + 1,
                        "image_id": image,
                        "category_id": label,
                        "bbox": box,
                        "area": area,
                        "iscrowd": 0,
                    }
                )
    coco.dataset = {"images": images, "annotations": rows, "categories": [{"id": k} for k in range(1, 11)], "info": {}}
    coco.createIndex()
    return coco


def test_the_files_evaluated_by_pycocotools_give_what_test_reports(
    best: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = ObjectDetector.load_from_checkpoint(best)
    (alone,) = quiet_trainer().test(module, DigitScenes(**SCENES), verbose=False)
    place = ["--trainer.logger.class_path", "CSVLogger", "--trainer.logger.init_args.save_dir", "runs"]
    table = main(["test", "--ckpt_path", best, *DATA, "--trainer.accelerator", "cpu", *place]).output
    printed = capsys.readouterr().out
    output = predict("--ckpt_path", best, *DATA)
    known = truth()
    evaluation = COCOeval(known, known.loadRes(output["json"]), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()

    assert evaluation.stats[0] > 0.01
    assert evaluation.stats[0] == pytest.approx(alone["test/map"], abs=1e-6)
    assert f"Average Precision (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = {alone['test/map']:.3f}" in printed
    assert re.search(r"evaluated in [\d.]+ s, \d+% of the epoch", printed)
    with open(str(table), newline="") as file:
        rows = list(csv.DictReader(file))
    scores = [float(row["map"]) for row in rows if float(row["map"]) >= 0]
    assert list(rows[0]) == ["class", "support", "map", "map_50", "map_75", "mar_100"]
    assert [row["class"] for row in rows] == list("0123456789")
    assert sum(int(row["support"]) for row in rows) == len(known.anns)
    assert sum(scores) / len(scores) == pytest.approx(alone["test/map"], abs=1e-6)


def test_an_image_has_one_record_with_what_was_found_and_what_is_there(best: str) -> None:
    output = predict("--ckpt_path", best, *DATA)
    found, known = records(output["jsonl"]), truth()

    assert [record["index"] for record in found] == list(range(14)) and output["count"] == 14
    assert {record["image_id"]: len(record["true"]) for record in found} == {
        image: len(rows) for image, rows in known.imgToAnns.items()
    }
    assert sum(len(record["objects"]) for record in found) == len(json.loads(Path(output["json"]).read_text())) > 14
    for record in found:
        scores = [row["score"] for row in record["objects"]]
        assert scores == sorted(scores, reverse=True)
        assert all(row["class_name"] == str(row["label"] - 1) for row in record["objects"] + record["true"])
    page = (ROOT / "docs" / "predictions.md").read_text()
    table = page[page.index("## A detector's record") :]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == found[0].keys()


def test_files_need_nothing_but_the_checkpoint(best: str, folder: str) -> None:
    output = predict("--ckpt_path", best, "--images", folder, "--batch_size", "2", "--sheet", "4")
    module = ObjectDetector.load_from_checkpoint(best)
    paths = [f"{folder}/{name}.png" for name in ("0", "1", "2", "3", "deep/4")]
    expected = module.train().predict(paths, batch_size=2)
    found = records(output["jsonl"])

    assert module.training and module.network.training
    assert [record["path"] for record in found] == paths
    assert [(record["height"], record["width"], record["true"]) for record in found] == [
        (64 + 8 * k, 100, None) for k in range(5)
    ]
    assert [record["objects"] for record in found] == [record["objects"] for record in expected]
    for path, record in zip(paths, expected, strict=True):
        (single,) = module.predict(path)
        scores = [[row["score"] for row in it["objects"]] for it in (single, record)]
        assert single["path"] == path and scores[0] == pytest.approx(scores[1], abs=1e-4)
    boxes = torch.tensor([row["box"] for record in found for row in record["objects"]])
    assert len(boxes) and boxes.min() >= 0 and 64 < boxes[:, 2].max() <= 100
    assert Image.open(output["png"]).size[0] > 300
    with pytest.raises(ValueError, match=r"^batch_size is 0; give at least 1$"):
        module.predict(paths, batch_size=0)


def test_two_processes_write_the_files_of_one(best: str, two_ranks: Callable[..., Any]) -> None:
    args = ["predict", "--ckpt_path", best, *DATA, "--data.batch_size", "3", *CPU, "--output"]
    two = [*args, "two", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    counts = two_ranks(lambda: main(two).output["count"])
    main([*args, "one"])
    one, both = (json.loads(Path(name, "predictions.json").read_text()) for name in ("one", "two"))

    assert counts == [14, 14]
    assert [record["index"] for record in records("two/predictions.jsonl")] == list(range(14))
    assert [(row["image_id"], row["category_id"]) for row in both] == [
        (row["image_id"], row["category_id"]) for row in one
    ]
    torch.testing.assert_close(*(torch.tensor([[*row["bbox"], row["score"]] for row in rows]) for rows in (both, one)))
    assert not list(Path("two").glob(".predictions"))


def test_true_boxes_are_drawn_beside_found_ones_and_existing_files_stay(best: str) -> None:
    main(["predict", *CPU, "--ckpt_path", best, *DATA, "--sheet", "3"])
    sheet = torch.from_numpy(np.array(Image.open("predictions.png")))
    with pytest.raises(FileExistsError, match=r"predictions.jsonl exists; choose another --output or add --overwrite$"):
        predict("--ckpt_path", best, *DATA)

    assert (sheet == torch.tensor([60, 190, 255])).all(-1).any()  # the blue of true boxes


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--top_k", "3"],
            r"^--top_k 3 goes with classifiers; .* --model.score_threshold beside the --config that it was",
        ),
        (["--images", "empty"], r"^the folder empty holds no images"),
        (["--sheet", "-3"], r"^--sheet -3: give how many images to draw, 0 for none$"),
    ],
    ids=["classes", "empty folder", "less than no sheet"],
)
def test_what_does_not_go_with_a_detector_is_refused(best: str, args: list[str], message: str) -> None:
    Path("empty").mkdir()

    with pytest.raises(ValueError, match=message):
        predict("--ckpt_path", best, *DATA[: 0 if "--images" in args else None], *args)
    assert {path.name for path in Path().iterdir()} == {"empty"}


def test_nothing_found_is_an_empty_list() -> None:
    record = {"path": None, "index": 0, "image_id": 7, "height": 64, "width": 64, "objects": [], "true": []}
    Path("part").write_text(json.dumps(record) + "\n")
    DetectionFiles().write([Path("part")], Path())

    assert json.loads(Path("predictions.json").read_text()) == []
    assert records("predictions.jsonl") == [record]


def test_a_sheet_shows_the_best_over_the_others() -> None:
    assert drawn_objects([{"score": score} for score in (0.9, 0.5, 0.1)]) == [{"score": 0.5}, {"score": 0.9}]

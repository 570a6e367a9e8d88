"""Predictions in files: every image once, in dataset order, equal in both files and from any number of ranks."""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from PIL import Image
from torch.utils.data import DataLoader

from lightning_vision import ImageClassifier, main
from lightning_vision.classification.records import prediction_records
from lightning_vision.commands._prediction_files import merge
from lightning_vision.datamodules import Digits
from lightning_vision.images import list_images
from support import ROOT

pytestmark = pytest.mark.one_worker

CPU = ["--trainer.accelerator", "cpu"]
SCALARS = ["index", "path", "label", "class_name", "target", "target_name"]


class ForeignData(LightningDataModule):
    """A datamodule that knows nothing of this project: batches are (image, target), without an index."""

    def predict_dataloader(self) -> DataLoader[Any]:
        images = Digits().normalise(digits(10)[0])
        return DataLoader(list(zip(images, digits(10)[1], strict=True)), batch_size=4)


class HalfLabelledData(LightningDataModule):
    """Labels that nobody knows (-1), that have a name, and that have none."""

    class_names = ("zero", "one")

    def predict_dataloader(self) -> DataLoader[Any]:
        return DataLoader([(torch.zeros(1, 8, 8), label) for label in (-1, 1, 12)], batch_size=3)


class ForeignModule(LightningModule):
    """A module that knows no names of classes; the second of three is always the most probable."""

    def predict_step(self, batch: Any) -> dict[str, torch.Tensor]:
        return {"probabilities": torch.tensor([[0.25, 0.5, 0.25]]).repeat(len(batch[1]), 1)}


class ShuffledData(LightningDataModule):
    """A datamodule whose prediction loader shuffles."""

    def predict_dataloader(self) -> DataLoader[Any]:
        samples = [{"image": torch.zeros(1, 8, 8), "index": k} for k in (1, 0)]
        return DataLoader(samples, batch_size=1)


class Interrupt(Callback):
    """Ctrl-C in the second batch."""

    def on_predict_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            raise KeyboardInterrupt


def digits(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first test digits, uint8 `(count, 1, 8, 8)`, and their labels."""
    image, target, _ = next(iter(Digits(batch_size=count).test_dataloader()))
    return image, target


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint after 40 steps on the digits."""
    torch.manual_seed(0)
    module = ImageClassifier("resnet8_cifar", num_classes=10, in_channels=1)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", max_steps=40, limit_val_batches=0, enable_checkpointing=False, **quiet)
    trainer.fit(module, datamodule=Digits(batch_size=64))
    path = str(tmp_path_factory.mktemp("trained") / "best.ckpt")
    trainer.save_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Seven test digits as files, the last three in nested folders."""
    root = tmp_path_factory.mktemp("images")
    for k, image in enumerate(digits(7)[0]):
        path = root / ("deep/er" if k > 3 else "") / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(path)
    return str(root)


def predict(*args: str) -> dict[str, Any]:
    output = main(["predict", *CPU, *args]).output
    assert isinstance(output, dict)
    return output


def records(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def rows(path: str | Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def left(where: str = ".") -> set[str]:
    return {path.name for path in Path(where).iterdir()}


def test_the_test_split_is_predicted_in_order_with_its_labels(best: str) -> None:
    config = ["--config", "classification/digits", "--ckpt_path", best]
    output = predict(*config)
    found = records(output["jsonl"])
    data = Digits()
    data.setup()
    assert data.test_set is not None and data.test_set.targets is not None
    right = [record["label"] == record["target"] for record in found]

    assert [record["index"] for record in found] == list(range(len(data.test_set)))
    assert [record["target"] for record in found] == data.test_set.targets.tolist()
    assert all(record["target_name"] == str(record["target"]) and record["path"] is None for record in found)
    assert sum(right) / len(right) == pytest.approx(main(["test", *CPU, *config]).metrics["test/acc"], abs=1e-6)
    assert sum(right) / len(right) > 0.5


def test_a_folder_without_labels_gives_what_the_module_says_of_the_files(best: str, folder: str) -> None:
    found = records(predict("--ckpt_path", best, "--images", folder, "--batch_size", "3")["jsonl"])
    module = ImageClassifier.load_from_checkpoint(best)
    expected = module.predict(list_images(folder), batch_size=3)

    assert [record["path"] for record in found] == [f"{folder}/{k}.png" for k in range(4)] + [
        f"{folder}/deep/er/{k}.png" for k in range(4, 7)
    ]
    assert [{**record, "target": None, "target_name": None} for record in expected] == found


def test_digits_as_files_are_predicted_like_digits_in_memory(best: str, folder: str) -> None:
    files = records(predict("--ckpt_path", best, "--images", folder, "--output", "a")["jsonl"])
    memory = records(predict("--ckpt_path", best, "--data", "Digits", "--output", "b")["jsonl"])[:7]
    difference = torch.tensor([r["probabilities"] for r in files]) - torch.tensor([r["probabilities"] for r in memory])

    assert float(difference.abs().max()) < 1e-5
    assert [record["label"] for record in files] == [record["label"] for record in memory]


def test_both_files_say_the_same(best: str) -> None:
    output = predict("--ckpt_path", best, "--data", "Digits", "--top_k", "2")
    lines, table = records(output["jsonl"]), rows(output["csv"])
    ranked = ["top_1", "top_1_name", "top_1_probability", "top_2", "top_2_name", "top_2_probability"]

    assert list(table[0]) == [*SCALARS, *(f"probability_{name}" for name in "0123456789"), *ranked]
    assert len(table) == len(lines) == output["count"]
    for line, row in zip(lines, table, strict=True):
        assert [row[name] for name in SCALARS] == ["" if line[name] is None else str(line[name]) for name in SCALARS]
        assert [float(row[f"probability_{k}"]) for k in range(10)] == line["probabilities"]
        assert [
            {
                "label": int(row[f"top_{k}"]),
                "class_name": row[f"top_{k}_name"],
                "probability": float(row[f"top_{k}_probability"]),
            }
            for k in (1, 2)
        ] == line["top_k"]


def test_probabilities_sum_to_one_and_the_most_probable_class_leads(best: str, folder: str) -> None:
    for record in records(predict("--ckpt_path", best, "--images", folder)["jsonl"]):
        probabilities = record["probabilities"]

        assert sum(probabilities) == pytest.approx(1, abs=1e-6)
        assert record["label"] == record["top_k"][0]["label"] == probabilities.index(max(probabilities))
        assert [entry["probability"] for entry in record["top_k"]] == sorted(probabilities, reverse=True)[:5]


def test_a_single_file_is_predicted(best: str, folder: str) -> None:
    output = predict("--ckpt_path", best, "--images", f"{folder}/2.png", "--output", "one")

    assert output["count"] == 1
    assert [(record["index"], record["path"]) for record in records(output["jsonl"])] == [(0, f"{folder}/2.png")]
    assert left("one") == {"predictions.jsonl", "predictions.csv"}


def ours(two: list[str], two_ranks: Callable[..., Any]) -> None:
    """On the pair of ranks that other tests have started."""
    assert [it["count"] for it in two_ranks(lambda: main(two).output)] == [7, 7]


def started(two: list[str], two_ranks: Callable[..., Any]) -> None:
    """As a user does it: the program starts the second process itself."""
    script = Path(sys.executable).with_name("lightning_vision")
    done = subprocess.run([script, *two], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("run", [ours, pytest.param(started, marks=pytest.mark.slow)])
def test_two_processes_write_the_files_of_one(
    run: Callable[..., None], best: str, folder: str, two_ranks: Callable[..., Any]
) -> None:
    """Seven images on two ranks are shards of four and three; each rank would choose a run folder of its own."""
    args = ["predict", "--config", "classification/digits", "--ckpt_path", best, "--images", folder, *CPU]
    run([*args, "--batch_size", "2", "--trainer.devices", "2", "--trainer.strategy", "ddp"], two_ranks)
    one = records(main([*args, "--output", "one"]).output["jsonl"])
    folders = sorted(path.parent for path in Path("runs").rglob("predictions.csv"))
    both = records(folders[0] / "predictions.jsonl")

    assert len(folders) == 1
    assert [(record["index"], record["path"]) for record in both] == [(k, one[k]["path"]) for k in range(7)]
    assert [row["path"] for row in rows(folders[0] / "predictions.csv")] == [record["path"] for record in one]
    expected = torch.tensor([record["probabilities"] for record in one])
    torch.testing.assert_close(torch.tensor([record["probabilities"] for record in both]), expected, rtol=0, atol=1e-6)
    assert not list(Path("runs").rglob(".predictions"))


def test_parts_of_uneven_length_become_one_in_dataset_order() -> None:
    for rank, indices in enumerate([[0, 3, 6], [1, 4], [2, 5]]):
        lines = [
            {**dict.fromkeys(SCALARS), "index": k, "probabilities": [k / 8, 1 - k / 8], "top_k": []} for k in indices
        ]
        Path(f"{rank}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    merge([Path(f"{rank}.jsonl") for rank in range(3)], Path(), ["a", "b"])

    assert [record["index"] for record in records("predictions.jsonl")] == list(range(7))
    assert [row["probability_b"] for row in rows("predictions.csv")] == [str(1 - k / 8) for k in range(7)]


def test_a_sample_in_two_parts_and_a_missing_part_are_refused() -> None:
    line = json.dumps({**dict.fromkeys(SCALARS), "index": 3, "probabilities": [1.0], "top_k": []}) + "\n"
    for name in "ab":
        Path(name).write_text(line)

    with pytest.raises(
        ValueError, match=r"^sample 3 was predicted by two processes; let the datamodule shard by rank$"
    ):
        merge([Path("a"), Path("b")], Path(), ["only"])
    with pytest.raises(FileNotFoundError, match=r"^c is missing; set --output to a folder that all ranks see$"):
        merge([Path("a"), Path("c")], Path(), ["only"])


def test_data_without_an_index_is_counted(best: str) -> None:
    found = records(predict("--ckpt_path", best, "--data", f"{__name__}.ForeignData")["jsonl"])

    assert [record["index"] for record in found] == list(range(10))


def test_an_unknown_label_is_null_and_one_without_name_keeps_its_number(best: str) -> None:
    found = records(predict("--ckpt_path", best, "--data", f"{__name__}.HalfLabelledData")["jsonl"])

    assert [(record["target"], record["target_name"]) for record in found] == [(None, None), (1, "one"), (12, None)]


def test_a_module_without_names_of_classes_is_written_with_numbers() -> None:
    data = ["--data", f"{__name__}.ForeignData", "--model", f"{__name__}.ForeignModule"]
    output = predict(*data)

    assert {(record["label"], record["class_name"]) for record in records(output["jsonl"])} == {(1, "1")}
    assert [name for name in rows(output["csv"])[0] if name.startswith("probability_")] == [
        f"probability_{label}" for label in range(3)
    ]


def test_data_that_comes_out_of_order_is_refused(best: str) -> None:
    with pytest.raises(ValueError, match=r"^ShuffledData predicts samples twice or out of order; give it one loader"):
        predict("--ckpt_path", best, "--data", f"{__name__}.ShuffledData")
    assert left() == set()


def test_existing_predictions_stay_unless_overwriting_is_asked_for(best: str, folder: str) -> None:
    Path("predictions.csv").write_text("mine")
    with pytest.raises(FileExistsError, match=r"predictions.csv exists; choose another --output or add --overwrite$"):
        predict("--ckpt_path", best, "--images", folder)
    kept = Path("predictions.csv").read_text(), left()
    predict("--ckpt_path", best, "--images", folder, "--overwrite", "true")

    assert kept == ("mine", {"predictions.csv"})
    assert len(rows("predictions.csv")) == 7


def test_a_damaged_image_is_named_and_leaves_no_half_written_file(best: str, folder: str) -> None:
    images = damaged(folder)
    with pytest.raises(ValueError, match=r"cannot decode the image images/5.png: "):
        predict("--ckpt_path", best, "--images", "images", "--batch_size", "2", "--output", "out")

    assert images == 7
    assert left("out") == set()


def test_a_damaged_image_can_be_left_out_and_is_reported(best: str, folder: str) -> None:
    damaged(folder)
    with pytest.warns(UserWarning, match=r"^left out 1 of 7 images.*: images/5.png$"):
        output = predict("--ckpt_path", best, "--images", "images", "--batch_size", "2", "--on_bad_image", "skip")

    assert [record["index"] for record in records(output["jsonl"])] == [0, 1, 2, 3, 4, 6]


def test_an_interrupted_prediction_leaves_nothing(best: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        predict("--ckpt_path", best, "--data", "Digits", "--callbacks.stop", f"{__name__}.Interrupt")
    assert left() == set()


def test_the_page_names_every_field() -> None:
    page = (ROOT / "docs" / "predictions.md").read_text().partition("## A detector's record")[0]
    fields = prediction_records(torch.ones(1, 1), [0], ["only"], [None], 1, [0.5])[0].keys() | {"target", "target_name"}

    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == fields


def damaged(folder: str) -> int:
    """Copy the images to `images`, cut number 5 short, and count them."""
    Path("images").mkdir()
    for k, path in enumerate(list_images(folder)):
        content = Path(path).read_bytes()
        Path(f"images/{k}.png").write_bytes(content[: len(content) // 2] if k == 5 else content)
    return len(list_images("images"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--images", "empty"], r"^the folder empty holds no images"),
        (["--images", "nowhere"], r"^there is no folder nowhere$"),
        ([], r"^no data given; add --config NAME"),
        (
            ["--data", "Digits", "--batch_size", "4"],
            r"^--batch_size goes with --images; the configured data takes --data.batch",
        ),
        (["--images", "empty", "--top_k", "0"], r"^--top_k 0: at least one class must be listed$"),
        (["--data", "Digits", "--trainer.limit_predict_batches", "0"], r"^nothing was predicted, for --trainer.limit"),
    ],
    ids=["empty folder", "no folder", "no data", "batch size of nothing", "no class", "no batch"],
)
def test_what_cannot_be_predicted_is_refused_in_a_sentence(best: str, args: list[str], message: str) -> None:
    Path("empty").mkdir()

    with pytest.raises((ValueError, FileNotFoundError), match=message):
        predict("--ckpt_path", best, *args)
    assert left() == {"empty"}


def test_images_need_a_checkpoint(folder: str) -> None:
    with pytest.raises(
        ValueError, match=r"^--images needs --ckpt_path, the checkpoint that says how to prepare an image$"
    ):
        predict("--config", "classification/digits", "--images", folder)

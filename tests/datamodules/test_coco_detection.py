"""CocoDetection: what the file says arrives, pixel for pixel, and goes back; layouts, splits, prediction."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lightning_vision import ObjectDetector
from lightning_vision.datamodules import CocoDetection
from lightning_vision.datamodules.detection import Annotations
from lightning_vision.detection.coco_metric import CocoMAP
from lightning_vision.detection.placement import original_boxes
from support.box_files import CATEGORIES, coco_content, coco_folder, draw_scenes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return coco_folder(tmp_path / "data")


def content(root: Path, split: str) -> dict[str, Any]:
    return json.loads((root / "annotations" / f"instances_{split}.json").read_text())


def write(root: Path, split: str, found: dict[str, Any]) -> None:
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(found))


def whole(data: CocoDetection, split: str) -> tuple[torch.Tensor, Annotations]:
    """All images of a split as one batch."""
    data.setup()
    images = getattr(data, f"{split}_set")
    fetched = images.fetch(torch.arange(len(images)))
    return fetched.image, fetched.target


def perfect(annotations: Annotations) -> list[dict[str, torch.Tensor]]:
    targets = annotations.keep(~annotations.crowd).targets()
    return [
        {**{name: it[name] for name in ("boxes", "labels")}, "scores": torch.ones(len(it["labels"]))} for it in targets
    ]


@pytest.mark.parametrize("resize", ["letterbox", "squash"])
def test_boxes_ids_areas_and_sizes_go_round(root: Path, resize: Any) -> None:
    found = content(root, "train")
    _, annotations = whole(CocoDetection(root, image_size=(96, 64), resize=resize), "train")
    back = original_boxes(annotations.boxes.numpy(), annotations.placement[annotations.sample].numpy())
    by_image = [
        entry for image in found["images"] for entry in found["annotations"] if entry["image_id"] == image["id"]
    ]
    boxes = np.array([entry["bbox"] for entry in by_image])

    assert np.allclose(np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]), back, atol=1e-4)
    assert annotations.image_id.tolist() == [image["id"] for image in found["images"]]
    assert annotations.size.tolist() == [[image["height"], image["width"]] for image in found["images"]]
    assert annotations.area.tolist() == [entry["area"] for entry in by_image]
    assert [[3, 7, 40][label - 1] for label in annotations.labels.tolist()] == [it["category_id"] for it in by_image]


def test_pixels_and_masks_lie_where_the_boxes_do(root: Path) -> None:
    """A square is one colour and no other object is, so its box, its mask and its pixels are the same."""
    images, annotations = whole(CocoDetection(root, image_size=160, masks=True), "train")
    assert annotations.masks is not None
    squares = (annotations.labels == 2).nonzero()[:, 0].tolist()
    green = (images[:, 1] > 180).logical_and(images[:, 0] < 120)

    assert len(squares) > 3
    for number in squares:
        left, top, right, bottom = annotations.boxes[number].tolist()
        mask = annotations.masks[number].bool()
        across, down = mask.any(0).nonzero()[:, 0], mask.any(1).nonzero()[:, 0]
        edges = [int(across[0]), int(down[0]), int(across[-1]) + 1, int(down[-1]) + 1]
        assert torch.allclose(torch.tensor([left, top, right, bottom]), torch.tensor(edges).float(), atol=0.51)
        inner = mask[int(top) + 3 : int(bottom) - 3, int(left) + 3 : int(right) - 3]
        assert bool(inner.all())
        assert bool(
            green[annotations.sample[number]][int(top) + 3 : int(bottom) - 3, int(left) + 3 : int(right) - 3].all()
        )


def test_ids_with_gaps_become_labels_in_their_order_and_are_kept(root: Path) -> None:
    data = CocoDetection(root, image_size=64)

    assert data.category_ids == [3, 7, 40] == data.preprocessing["category_ids"]
    assert data.class_names == list(CATEGORIES.values())
    assert (data.num_classes, data.preprocessing["resize"]) == (3, "letterbox")


def test_categories_written_in_another_order_give_the_same_labels(root: Path) -> None:
    found = content(root, "train")
    plain = whole(CocoDetection(root, image_size=64), "train")[1]
    write(root, "train", {**found, "categories": found["categories"][::-1]})

    assert torch.equal(plain.labels, whole(CocoDetection(root, image_size=64), "train")[1].labels)


def test_a_perfect_detector_scores_1_here_and_by_pycocotools_on_the_same_file(root: Path, tmp_path: Path) -> None:
    found = content(root, "val")
    found["annotations"][0].update(iscrowd=1)
    found["annotations"][1]["bbox"][0] -= 0.4  # some reach over their image
    write(root, "val", found)
    data = CocoDetection(root, image_size=64)
    _, annotations = whole(data, "val")
    results = perfect(annotations)
    metric = CocoMAP(data.num_classes)
    metric.update(results, annotations.targets())
    written = []
    for result, target in zip(results, annotations.targets(), strict=True):
        boxes = original_boxes(result["boxes"].numpy(), target["placement"].numpy())
        boxes[:, 2:] -= boxes[:, :2]
        rows = zip(boxes.tolist(), result["labels"].tolist(), strict=True)
        image = int(target["image_id"])
        written += [
            {"image_id": image, "category_id": data.category_ids[label - 1], "bbox": box, "score": 1.0}
            for box, label in rows
        ]
    (tmp_path / "results.json").write_text(json.dumps(written))
    truth = COCO(str(root / "annotations" / "instances_val.json"))
    judge = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()

    assert int(annotations.crowd.sum()) == 1
    assert metric.compute()["map"].item() == pytest.approx(1.0)
    assert judge.stats[0] == pytest.approx(1.0)


def test_images_without_objects_are_trained_on(root: Path) -> None:
    found = content(root, "train")
    write(root, "train", {**found, "annotations": []})
    images, annotations = whole(CocoDetection(root, image_size=64), "train")

    assert (len(images), annotations.boxes.shape, annotations.labels.shape) == (12, (0, 4), (0,))
    assert [len(target["boxes"]) for target in annotations.targets()] == [0] * 12


def test_an_object_without_an_outline_is_masked_by_its_box(root: Path) -> None:
    found = content(root, "train")
    for entry in found["annotations"]:
        entry["segmentation"] = []
    write(root, "train", found)
    _, annotations = whole(CocoDetection(root, image_size=64, masks=True), "train")
    assert annotations.masks is not None
    sides = annotations.boxes.round()[:, 2:] - annotations.boxes.round()[:, :2]

    assert annotations.masks.flatten(1).sum(1).tolist() == sides.prod(1).tolist()


def test_outlines_are_not_kept_where_masks_are_not_wanted(root: Path) -> None:
    data = CocoDetection(root, image_size=64)

    assert whole(data, "train")[1].masks is None
    assert data.found[1]["train"].shapes is None


def test_without_a_file_for_validation_images_are_drawn_by_their_names(root: Path) -> None:
    (root / "annotations" / "instances_val.json").unlink()
    parts = []
    for _ in range(2):
        data = CocoDetection(root, image_size=64, val_fraction=0.25)
        data.setup()
        parts.append([{Path(path).name for path in images.paths} for images in (data.train_set, data.val_set)])  # type: ignore[union-attr]
        found = content(root, "train")
        write(root, "train", {**found, "images": found["images"][::-1]})

    assert parts[0] == parts[1]
    assert (len(parts[0][0]), len(parts[0][1]), parts[0][0] & parts[0][1]) == (9, 3, set())
    assert CocoDetection(root, val_fraction=0).val_dataloader() == []


def test_the_folders_that_annotation_tools_export_are_found(tmp_path: Path) -> None:
    for split, number in (("train", 4), ("valid", 2), ("test", 3)):
        (tmp_path / split).mkdir()
        scenes = draw_scenes(number, seed=number)
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(coco_content(scenes)))
        for index, scene in enumerate(scenes):
            scene.image.save(tmp_path / split / f"{index:04}.png")
    data = CocoDetection(tmp_path, image_size=64)
    data.setup()

    assert [len(images) for images in (data.train_set, data.val_set, data.test_set)] == [4, 2, 3]  # type: ignore[arg-type]


def test_files_of_any_name_can_be_given(root: Path) -> None:
    (root / "annotations" / "instances_train.json").rename(root / "mine.json")
    (root / "train").rename(root / "pictures")
    data = CocoDetection(root, train_annotations="mine.json", train_images="pictures", image_size=64)
    data.setup()

    assert data.train_set is not None and data.val_set is not None
    assert len(data.train_set) + len(data.val_set) == 12


def test_the_validation_images_test_where_there_are_no_others_and_a_list_of_images_is_for_prediction(
    root: Path,
) -> None:
    data = CocoDetection(root, image_size=64)
    data.setup()
    assert data.test_set is data.val_set is data.predict_set

    found = content(root, "val")
    write(root, "test2017", {name: found[name] for name in ("images", "categories")})
    (root / "val").rename(root / "test2017")
    write(root, "val", content(root, "train"))
    (root / "val").symlink_to(root / "train")
    data = CocoDetection(root, image_size=64, batch_size=2)
    batch = next(iter(data.predict_dataloader()))

    assert data.test_set is data.val_set
    assert batch["target"].image_id.tolist() == [image["id"] for image in found["images"]][:2]
    assert len(batch["target"].boxes) == 0


def test_images_to_predict_that_are_left_out_are_told_of(root: Path) -> None:
    found = content(root, "val")
    found["images"][0]["file_name"] = "gone.png"
    write(root, "test", {name: found[name] for name in ("images", "categories")})
    (root / "test").symlink_to(root / "val")
    with pytest.warns(
        UserWarning, match=r"instances_test.json: unusable and left out: 1 \(image id 1011 names the file"
    ):
        data = CocoDetection(root, on_bad_annotation="skip")
        data.setup()

    assert data.predict_set is not None and len(data.predict_set) == 5


def test_a_folder_alone_can_be_predicted(root: Path) -> None:
    data = CocoDetection(predict_root=root / "val", image_size=64, batch_size=4)
    batch = data.on_after_batch_transfer(next(iter(data.predict_dataloader())), 0)
    with Image.open(root / "val" / "0001.png") as image:
        size = [image.height, image.width]

    assert batch["image"].shape == (4, 3, 64, 64)
    assert batch["target"][1]["size"].tolist() == size
    assert [int(target["image_id"]) for target in batch["target"]] == [1, 2, 3, 4]


def test_workers_give_what_the_main_process_does(root: Path) -> None:
    plain, working = (CocoDetection(root, image_size=64, batch_size=4, num_workers=number) for number in (0, 1))
    pairs = zip(plain.train_dataloader(), working.train_dataloader(), strict=True)

    for (image, annotations, index), (other, others, numbers) in pairs:
        assert torch.equal(image, other) and torch.equal(index, numbers)
        assert torch.equal(annotations.boxes, others.boxes)
    working.teardown("fit")


def test_a_damaged_image_is_left_out_of_its_batch_with_its_objects(root: Path) -> None:
    (root / "train" / "0002.png").write_bytes(b"no image")
    data = CocoDetection(root, image_size=64, on_bad_image="skip")
    images, annotations = whole(data, "train")
    found = content(root, "train")

    assert len(images) == len(annotations) == 11
    assert found["images"][2]["id"] not in annotations.image_id.tolist()
    assert len(annotations.labels) == sum(it["image_id"] != found["images"][2]["id"] for it in found["annotations"])


def test_a_detector_with_another_number_of_classes_is_refused_before_training(root: Path) -> None:
    module = ObjectDetector("fcos", "test_resnet", num_classes=2, image_size=64)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with pytest.raises(
        ValueError, match=r"^ObjectDetector has num_classes=2 but CocoDetection has num_classes=3; make"
    ):
        trainer.fit(module, datamodule=CocoDetection(root, image_size=64))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({}, "^CocoDetection needs a root, the folder of images and annotations, or a predict_root$"),
        ({"root": "x", "val_annotations": "a.json"}, "^a.json is given without train_annotations; give all files, or"),
        ({"root": "x", "val_fraction": 1.0}, "^val_fraction is 1.0; give a share"),
        ({"root": "x", "min_size": -1}, "^min_size is -1; give a side in pixels"),
        ({"root": "x", "min_size": float("nan")}, "^min_size is nan; give a side in pixels"),
        ({"root": "x", "resize": "crop"}, "^resize is 'crop'; give letterbox or squash$"),
        ({"root": "x", "channels": 2}, "^channels is 2; give 1 or 3$"),
        ({"root": "x", "image_size": 0}, "^image_size is 0; give height and width in pixels$"),
        ({"root": "x", "on_bad_annotation": "warn"}, "^on_bad_annotation is 'warn' and on_bad_image 'error'; give"),
    ],
)
def test_an_argument_out_of_its_range_is_refused(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        CocoDetection(**arguments)


@pytest.mark.parametrize(
    ("break_it", "problem"),
    [
        (lambda root: root.rename(root.with_name("away")), "there is no folder .*data; root must hold COCO's"),
        (lambda root: (root / "annotations" / "instances_train.json").unlink(), "there is neither .*train_annotations"),
        (lambda root: (root / "val").rename(root / "other"), "there is no folder of images .*val"),
    ],
)
def test_a_missing_folder_is_named(root: Path, break_it: Any, problem: str) -> None:
    break_it(root)
    with pytest.raises(FileNotFoundError, match=f"^{problem}"):
        CocoDetection(root).setup()


def test_two_files_for_a_split_are_refused(root: Path) -> None:
    write(root, "train2017", content(root, "train"))
    with pytest.raises(
        ValueError,
        match=r"instances_train.json and .*instances_train2017.json are both for train; give train_annotations and",
    ):
        CocoDetection(root).setup()


def test_a_draw_that_leaves_nothing_is_refused(root: Path) -> None:
    (root / "annotations" / "instances_val.json").unlink()
    with pytest.raises(ValueError, match=r"^val_fraction 0.01 of 12 images leaves none to train on or to validate"):
        CocoDetection(root, val_fraction=0.01).setup()

"""OpenImages on a miniature tree: boxes, groups, ancestors, verified labels; what is wrong is told with its line."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_vision import ImageClassifier, ObjectDetector
from lightning_vision.datamodules import ColorJitter, HorizontalFlip, OpenImages
from lightning_vision.datamodules.detection import Annotations
from lightning_vision.detection.open_images_metric import OpenImagesMAP
from lightning_vision.detection.placement import original_boxes
from support.box_files import Scene, draw_scenes
from support.open_images_files import ABOVE, IDS, open_images_folder, rewrite
from support.trainers import quiet_trainer

NAMES = [name.title() for name in IDS]
BOXES, LABELS = "train-annotations-bbox.csv", "train-annotations-human-imagelabels-boxable.csv"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return open_images_folder(tmp_path / "data")


def scenes(split: str = "train") -> list[Scene]:
    return draw_scenes(8, 0) if split == "train" else draw_scenes(4, 1)


def whole(data: OpenImages, split: str = "train") -> tuple[Tensor, Any]:
    """All images of a split as one batch."""
    data.setup()
    images = getattr(data, f"{split}_set")
    fetched = images.fetch(torch.arange(len(images)))
    return fetched.image, fetched.target


def perfect(annotations: Annotations) -> list[dict[str, Tensor]]:
    return [
        {"boxes": it["boxes"], "labels": it["labels"], "scores": torch.ones(len(it["labels"]))}
        for it in annotations.keep(~annotations.crowd).targets()
    ]


@pytest.mark.parametrize("resize", ["letterbox", "squash"])
def test_boxes_go_round_and_sizes_are_those_of_the_files(root: Path, resize: Any) -> None:
    _, annotations = whole(OpenImages(root, image_size=(96, 64), resize=resize))
    back = original_boxes(annotations.boxes.numpy(), annotations.placement[annotations.sample].numpy())
    expected = [box for scene in scenes() for box in scene.boxes]

    assert back == pytest.approx(torch.tensor(expected).double().numpy(), abs=1e-3)
    assert annotations.area.tolist() == pytest.approx([(r - x) * (b - y) for x, y, r, b in expected], rel=1e-4)
    assert annotations.size.tolist() == [[*scene.image.size[::-1]] for scene in scenes()]
    named = [NAMES[label - 1].lower() for label in annotations.labels.tolist()]
    assert named == [name for scene in scenes() for name in scene.names]


def test_the_green_squares_lie_in_their_boxes(root: Path) -> None:
    images, annotations = whole(OpenImages(root, image_size=160))
    squares = (annotations.labels == 3).nonzero()[:, 0].tolist()

    assert len(squares) > 2
    for number in squares:
        left, top, right, bottom = annotations.boxes[number].int().tolist()
        inner = images[annotations.sample[number], :, top + 3 : bottom - 3, left + 3 : right - 3]
        assert int(inner[1].min()) > 180 and int(inner[0].max()) < 120


def test_names_become_numbers_of_64_bits(root: Path) -> None:
    found = whole(OpenImages(root))[1].image_id.tolist()

    assert [0xD000000000000000 + number - 2**64 for number in range(8)] == found


def test_other_names_are_counted(root: Path) -> None:
    file = root / "train" / "d000000000000000.png"
    file.rename(file.with_name("one.png"))
    for name in (BOXES, LABELS):
        (root / name).write_text((root / name).read_text().replace(file.stem, "one"))

    assert [*range(1, 9)] == whole(OpenImages(root))[1].image_id.tolist()


def test_groups_are_crowds_and_flags_are_if_wanted_in_training(root: Path) -> None:
    rewrite(root / BOXES, 2, IsGroupOf="1")
    rewrite(root / BOXES, 3, IsDepiction="1")
    rewrite(root / "validation-annotations-bbox.csv", 2, IsDepiction="1")
    data = OpenImages(root, ignored_flags=["IsDepiction"])

    assert whole(OpenImages(root))[1].crowd.nonzero()[:, 0].tolist() == [0]
    assert whole(data)[1].crowd.nonzero()[:, 0].tolist() == [0, 1]
    assert not bool(whole(data, "val")[1].crowd.any())
    objects = len(whole(data)[1].labels)
    assert sum(data.class_counts["train"].values()) == objects - 2


def test_row_313_the_hierarchy_adds_exactly_the_ancestors(root: Path) -> None:
    plain = whole(OpenImages(root))[1]
    spread = whole(OpenImages(root, expand_hierarchy=True))[1]

    for number in range(8):
        own = (plain.sample == number).nonzero()[:, 0].tolist()
        expected = []
        for row in own:
            name = NAMES[int(plain.labels[row]) - 1].lower()
            expected += [(NAMES.index(it.title()) + 1, *plain.boxes[row].tolist()) for it in (name, *ABOVE[name])]
        rows = (spread.sample == number).nonzero()[:, 0].tolist()
        found = [(int(spread.labels[row]), *spread.boxes[row].tolist()) for row in rows]
        assert sorted(found) == sorted(expected)
    assert OpenImages(root).ancestors == [[], [1], [1, 2], [1], [1, 2]]


def test_row_313_ancestors_of_a_class_that_is_not_chosen_are(root: Path) -> None:
    data = OpenImages(root, classes=["Polygon", "/m/04"], expand_hierarchy=True)
    expected = [1 if name != "disc" else 2 for scene in scenes() for name in scene.names]

    assert whole(data)[1].labels.tolist() == expected
    assert (data.class_names, data.class_ids, data.category_ids) == (["Polygon", "Disc"], ["/m/02", "/m/04"], [1, 2])


def known(name: str, scene: Scene, index: int) -> float:
    """What the tables say of a class that people verify."""
    if name in scene.names:
        return 1.0
    absent = [it for it in ("disc", "square", "triangle") if it not in scene.names]
    return 0.0 if index % 2 and absent[0] == name else float("nan")


def test_labels_that_nobody_verified_are_unknown(root: Path) -> None:
    data = OpenImages(root, task="image_labels", classes=["Disc", "Square", "Triangle", "Figure"], image_size=32)
    image, target = whole(data)
    expected = [
        [*(known(name, scene, index) for name in ("disc", "square", "triangle")), float("nan")]
        for index, scene in enumerate(scenes())
    ]

    assert (image.shape, image.dtype) == ((8, 3, 32, 32), torch.uint8)
    assert torch.allclose(torch.tensor(expected), target, equal_nan=True)
    assert data.multilabel
    assert data.class_counts["train"] == {
        name: int((target[:, place] == 1).sum()) for place, name in enumerate(data.class_names)
    }


def test_row_313_what_is_there_has_ancestors_and_what_is_not_no_descendants(root: Path) -> None:
    """The table says polygon 0 of the second image, whose rows otherwise name what it shows."""
    lines = (root / LABELS).read_text().splitlines()
    name = f"d{1:015x}"
    kept = [line for line in lines if not line.startswith(name)]
    (root / LABELS).write_text("\n".join([*kept, f"{name},verification,{IDS['polygon']},0"]))
    data = OpenImages(root, task="image_labels", expand_hierarchy=True)
    _, target = whole(data)
    place = data.train_set.paths.index(str(root / "train" / f"{name}.png"))

    assert target[place].nan_to_num(-1).tolist() == [-1, 0, 0, -1, 0]
    first = scenes()[0].names
    for label, title in enumerate(NAMES):
        below = [it for it in (title.lower(), *(low for low, above in ABOVE.items() if title.lower() in above))]
        assert (float(target[0, label]) == 1) == any(it in first for it in below)


def test_of_two_answers_that_differ_present_is_right(root: Path) -> None:
    with open(root / LABELS, "a") as text:
        text.write(f"d{0:015x},verification,{IDS[scenes()[0].names[0]]},0\n")

    assert float(whole(OpenImages(root, task="image_labels"))[1][0, [*IDS].index(scenes()[0].names[0])]) == 1


def test_boxes_that_are_judged_come_with_what_is_verified_and_a_perfect_detector_scores_1(root: Path) -> None:
    rewrite(root / "validation-annotations-bbox.csv", 2, IsGroupOf="1")
    data = OpenImages(root, image_size=64)
    _, annotations = whole(data, "val")
    verified = annotations.targets()[1]["verified"]
    results = perfect(annotations)
    # Something that nobody looked for.
    unknown = int(verified.isnan().nonzero()[0]) + 1
    results[1] = {
        "boxes": torch.cat([results[1]["boxes"], torch.tensor([[0.0, 0.0, 9.0, 9.0]])]),
        "labels": torch.cat([results[1]["labels"], torch.tensor([unknown])]),
        "scores": torch.ones(len(results[1]["scores"]) + 1),
    }
    metric = OpenImagesMAP(data.num_classes, group_weight=0)
    metric.update(results, annotations.targets())

    assert float(metric.compute()["map_50"]) == 1.0
    assert "verified" not in whole(data, "train")[1].targets()[0]


def test_images_train_if_they_have_boxes_of_the_classes_or_lack_them_for_certain(root: Path) -> None:
    data = OpenImages(root, classes=["Disc"])
    paths = [Path(path).stem for path in (data.setup(), data.train_set.paths)[1]]
    expected = [
        f"d{index:015x}"
        for index, scene in enumerate(scenes())
        if "disc" in scene.names or known("disc", scene, index) == 0
    ]

    assert sorted(paths) == expected
    assert 0 < whole(data)[1].sample.unique().numel() < len(paths) < 8


def test_images_that_no_row_of_boxes_names_are_judged_but_not_trained_on(root: Path) -> None:
    for split in ("train", "validation"):
        file = root / f"{split}-annotations-bbox.csv"
        lines = file.read_text().splitlines()
        name = f"{'d' if split == 'train' else 'c'}{0:015x}"
        file.write_text("\n".join(line for line in lines if not line.startswith(name)))
    data = OpenImages(root)

    assert len(whole(data)[0]) == 7
    assert len(whole(data, "val")[0]) == 4


def test_fewer_samples_are_drawn_by_their_names(root: Path) -> None:
    parts = []
    for most in (3, 5, 100):
        data = OpenImages(root, max_samples=most)
        data.setup()
        parts.append({Path(path).stem for path in data.train_set.paths})
        image, annotations = whole(data, "val")
        assert len(image) == min(most, 4) == len(annotations.targets())

    assert [len(part) for part in parts] == [3, 5, 8]
    assert parts[0] < parts[1]
    labels = OpenImages(root, task="image_labels", max_samples=3)
    stems = [Path(path).stem for path in (labels.setup(), labels.train_set.paths)[1]]
    for stem, row in zip(stems, whole(labels)[1], strict=True):
        assert {NAMES[k].lower() for k in (row == 1).nonzero()[:, 0].tolist()} == {*scenes()[int(stem[1:], 16)].names}


@pytest.mark.parametrize("task", ["boxes", "image_labels"])
def test_a_balanced_epoch_shows_every_class_as_often(root: Path, task: Any) -> None:
    data = OpenImages(
        root, task=task, classes=["Disc", "Square", "Triangle"], sampler="balanced", batch_size=8, image_size=16
    )
    loader = data.train_dataloader()
    for epoch in range(10):
        loader.sampler.set_epoch(epoch)
        positions = loader.sampler.positions()
        pairs = data.train_set.shown
        shown = torch.cat([pairs[pairs[:, 0] == number, 1] for number in (positions % 8).tolist()])

        assert len(positions.unique()) == 8  # copies are told apart
        assert int(shown.bincount(minlength=3).min()) >= 8 // 3
    batch = next(iter(loader))

    assert len(batch[0]) == 8


def test_a_detector_and_a_classifier_train_on_it(root: Path) -> None:
    torch.manual_seed(0)
    boxes = OpenImages(root, image_size=32, batch_size=4, sampler="balanced")
    detector = ObjectDetector(
        "fcos", "test_resnet", boxes.num_classes, image_size=32, strides=[8, 16], pyramid_channels=32
    )
    run = quiet_trainer(max_epochs=1)
    run.fit(detector, boxes)
    labels = OpenImages(root, task="image_labels", image_size=16, batch_size=4, augment=ColorJitter())
    sgd = partial(torch.optim.SGD, lr=0.1)
    classifier = ImageClassifier("resnet8_cifar", labels.num_classes, 3, loss="bce", optimizer=sgd)
    other = quiet_trainer(max_epochs=1)
    other.fit(classifier, labels)

    assert float(run.callback_metrics["train/loss_epoch"]) > 0
    assert 0 < float(other.callback_metrics["train/loss_epoch"]) < 2
    with pytest.raises(ValueError, match="of OpenImages's images some labels are unknown"):
        quiet_trainer(max_epochs=1).fit(
            ImageClassifier("resnet8_cifar", labels.num_classes, 3, loss="bce", class_weights="balanced"), labels
        )


def test_images_of_a_folder_are_predicted(root: Path) -> None:
    for task in ("boxes", "image_labels"):
        data = OpenImages(task=task, predict_root=root / "train", image_size=16, batch_size=8)
        batch = next(iter(data.predict_dataloader()))

        assert (len(batch["image"]), len(data.predict_paths or [])) == (8, 8)


def test_files_of_later_releases_are_found(root: Path) -> None:
    (root / "annotations").mkdir()
    (root / "images").mkdir()
    (root / "train").rename(root / "images" / "train")
    for file in [*root.glob("*.csv")]:
        later = re.sub(r"^validation-(?=.*labels)", "val-", file.name)
        file.rename(root / "annotations" / f"oidv7-{later}")
    described = root / "annotations" / "oidv7-class-descriptions-boxable.csv"
    described.write_text("LabelName,DisplayName\n" + described.read_text())
    data = OpenImages(root)
    _, annotations = whole(data, "val")

    assert data.class_names == NAMES
    assert len(whole(data)[0]) == 8
    assert annotations.verified is not None


@pytest.mark.parametrize(
    ("table", "line", "cells", "message"),
    [
        (BOXES, 3, {"LabelName": "/m/99"}, "line 3 is of the class '/m/99', which the class descriptions have not"),
        (BOXES, 3, {"XMin": "-0.1"}, r"line 3 has XMin -0.1, YMin \S+, XMax \S+, YMax \S+, which is no box inside an"),
        (BOXES, 3, {"YMax": "1.5"}, "line 3 has XMin .*, YMax 1.5, which is no box inside an image"),
        (BOXES, 3, {"XMin": "0.9", "XMax": "0.2"}, "line 3 has XMin 0.9, .* XMax 0.2, .* which is no box inside"),
        (BOXES, 3, {"XMin": "nan"}, "line 3 has XMin nan, .* no box"),
        (BOXES, 3, {"XMin": "left"}, "line 3 has XMin left, .* no box"),
        (BOXES, 3, {"ImageID": "d00000000000000f"}, "line 3 names the file 'd00000000000000f.jpg', which is not in"),
        (
            BOXES,
            3,
            {"ImageID": "../validation/c000000000000000"},
            "line 3 names the file '../validation/.*, which is no",
        ),
        (LABELS, 3, {"LabelName": "/m/99"}, "line 3 is of the class '/m/99', which the class descriptions have not"),
        (LABELS, 3, {"Confidence": "2"}, "line 3 has the confidence '2'; it is 1 present, 0 absent or between"),
        (LABELS, 3, {"Confidence": ""}, "line 3 has the confidence ''"),
    ],
)
def test_rows_that_cannot_be_used_stop_with_their_line_or_are_left_out_and_told(
    root: Path, table: str, line: int, cells: dict[str, str], message: str
) -> None:
    rewrite(root / table, line, **cells)

    with pytest.raises(ValueError, match=rf"{table}: {message}.*mend it or pass on_bad_annotation='skip'"):
        OpenImages(root).setup()
    with pytest.warns(UserWarning, match=f"{table}: unusable and left out: 1"):
        OpenImages(root, on_bad_annotation="skip").setup()


def test_boxes_without_area_are_dropped_and_told(root: Path) -> None:
    rewrite(root / BOXES, 2, XMin="0.5", XMax="0.5")

    with pytest.warns(UserWarning, match=r"boxes without area dropped: 1 \(line 2\)"):
        assert len(whole(OpenImages(root))[1].labels) == sum(len(scene.names) for scene in scenes()) - 1


def test_a_line_that_breaks_off_is_told(root: Path) -> None:
    with open(root / BOXES, "a") as text:
        text.write("d000000000000000,xclick\n")

    with pytest.raises(ValueError, match="has 2 cells, the first line 13; mend it or pass"):
        OpenImages(root).setup()


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (BOXES, "XMin", "Left", "has no column XMin; its first line is 'ImageID,Source"),
        (LABELS, "Confidence", "Sure", "has no column Confidence"),
        ("class-descriptions-boxable.csv", ",Square", "", "line 3 is not a class id and its name"),
        ("class-descriptions-boxable.csv", "/m/04", "/m/03", "line 4 describes /m/03 a second time"),
        ("bbox_labels_600_hierarchy.json", "}", "", "hierarchy.json cannot be read as JSON"),
        ("bbox_labels_600_hierarchy.json", "LabelName", "Label", "below the root stands a node without LabelName"),
        ("bbox_labels_600_hierarchy.json", "/m/03", "/m/01", "/m/01 is its own ancestor|/m/02 is its own ancestor"),
    ],
)
def test_tables_that_are_none_are_told(root: Path, file: str, old: str, new: str, message: str) -> None:
    text = (root / file).read_text()
    assert old in text
    (root / file).write_text(text.replace(old, new, 1))

    with pytest.raises(ValueError, match=message):
        OpenImages(root, expand_hierarchy=True).setup()


@pytest.mark.parametrize(
    ("file", "settings", "message"),
    [
        ("class-descriptions-boxable.csv", {}, "there is no table class-descriptions-boxable.csv in"),
        (BOXES, {}, "there is no table train-annotations-bbox.csv in"),
        (LABELS, {"task": "image_labels"}, "there is no table train-annotations-human-imagelabels.csv in"),
        ("bbox_labels_600_hierarchy.json", {"expand_hierarchy": True}, "there is no bbox_labels_600_hierarchy.json in"),
        ("train", {}, "there is no folder of images"),
    ],
)
def test_what_is_missing_is_told(root: Path, file: str, settings: dict[str, Any], message: str) -> None:
    (root / file).rename(root / "elsewhere")

    with pytest.raises(FileNotFoundError, match=message):
        OpenImages(root, **settings).setup()


def test_two_releases_in_one_folder_are_refused(root: Path) -> None:
    (root / f"oidv6-{BOXES}").write_text((root / BOXES).read_text())

    with pytest.raises(ValueError, match="hold the same of two releases; keep one of them"):
        OpenImages(root).setup()


def test_classes_that_nothing_shows_are_refused(root: Path) -> None:
    for split in ("train", "validation"):
        (root / f"{split}-annotations-human-imagelabels-boxable.csv").unlink()

    with pytest.raises(ValueError, match="says nothing of the chosen classes in any image that is there"):
        OpenImages(root, classes=["Figure"]).setup()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "relationships"}, "task is 'relationships'; give boxes or image_labels"),
        ({"task": "image_labels", "resize": "letterbox"}, "resize is 'letterbox'; give crop or squash"),
        ({"resize": "crop"}, "resize is 'crop'; give letterbox or squash"),
        ({"classes": []}, "classes is an empty list"),
        ({"max_samples": 0}, "max_samples is 0"),
        ({"sampler": "rare"}, "sampler is 'rare'; give all or balanced"),
        ({"ignored_flags": ["IsGroupOf"]}, "ignored_flags names 'IsGroupOf'; there are IsOccluded"),
        ({"task": "image_labels", "augment": HorizontalFlip()}, "augment"),
        ({"root": None}, "OpenImages needs a root"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        OpenImages(**{"root": "data", **settings})


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["Squares"], "classes names 'Squares', which the class descriptions have not; did you mean Square"),
        (["Disc", "/m/04"], "classes names 'Disc' twice; drop one"),
    ],
)
def test_classes_that_are_none_are_refused(root: Path, classes: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OpenImages(root, classes=classes).setup()

"""DIOR on a miniature tree: boxes and names round trip, flips are undone by flips, a perfect detector scores 1."""

from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image
from torchmetrics.detection import MeanAveragePrecision

from lightning_vision.datamodules import DIOR, HorizontalFlip
from lightning_vision.datamodules.detection import Annotations

CLASSES = [
    "airplane",
    "airport",
    "baseballfield",
    "basketballcourt",
    "bridge",
    "chimney",
    "dam",
    "Expressway-Service-area",
    "Expressway-toll-station",
    "golffield",
    "groundtrackfield",
    "harbor",
    "overpass",
    "ship",
    "stadium",
    "storagetank",
    "tenniscourt",
    "trainstation",
    "vehicle",
    "windmill",
]
SPLITS = {"train": range(1, 6), "val": range(6, 9), "test": range(11726, 11729)}
SIDE = 800


def boxes_of(number: int) -> list[tuple[str, tuple[int, int, int, int]]]:
    """Class names and left, top, right, bottom, each image some of them, all classes in every split."""
    draw = torch.Generator().manual_seed(number)
    found = []
    for name in CLASSES if number in (1, 6, 11726) else CLASSES[number % 20 :][:3]:
        left, top = torch.randint(0, SIDE - 60, (2,), generator=draw).tolist()
        width, height = torch.randint(8, 60, (2,), generator=draw).tolist()
        found.append((name, (left, top, left + width, top + height)))
    return found


def tree(root: Path, published: bool) -> Path:
    """As the files are unpacked, or with all images and all XML files in one folder each."""
    annotations = root / "Annotations" / "Horizontal Bounding Boxes" if published else root / "Annotations"
    for folder in (annotations, root / "ImageSets" / "Main"):
        folder.mkdir(parents=True)
    for split, numbers in SPLITS.items():
        part = ("test" if split == "test" else "trainval") if published else None
        images = root / (f"JPEGImages-{part}" if part else "JPEGImages")
        images.mkdir(exist_ok=True)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{number:05}\n" for number in numbers))
        for number in numbers:
            Image.new("RGB", (SIDE, SIDE), (number % 256, 90, 90)).save(images / f"{number:05}.jpg")
            whole = ElementTree.Element("annotation")
            size = ElementTree.SubElement(whole, "size")
            for name, value in (("width", SIDE), ("height", SIDE), ("depth", 3)):
                ElementTree.SubElement(size, name).text = str(value)
            for name, (left, top, right, bottom) in boxes_of(number):
                entry = ElementTree.SubElement(whole, "object")
                ElementTree.SubElement(entry, "name").text = name
                corners = ElementTree.SubElement(entry, "bndbox")
                for side, value in (("xmin", left + 1), ("ymin", top + 1), ("xmax", right), ("ymax", bottom)):
                    ElementTree.SubElement(corners, side).text = str(value)
            ElementTree.ElementTree(whole).write(annotations / f"{number:05}.xml")
    return root


@pytest.fixture(scope="module", params=[True, False], ids=["as published", "one folder each"])
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tree(tmp_path_factory.mktemp("data") / "DIOR", request.param)


def batch_of(data: DIOR, split: str) -> tuple[torch.Tensor, Annotations]:
    data.setup()
    images = getattr(data, f"{split}_set")
    fetched = images.fetch(torch.arange(len(images)))
    return fetched.image, fetched.target


@pytest.mark.parametrize("split", SPLITS)
def test_row_163_boxes_and_class_names_go_round_exactly(split: str, root: Path) -> None:
    data = DIOR(root)
    images, annotations = batch_of(data, split)
    expected = [entry for number in SPLITS[split] for entry in boxes_of(number)]

    assert images.shape == (len(SPLITS[split]), 3, SIDE, SIDE)
    assert data.class_names == CLASSES and data.category_ids == list(range(1, 21))
    assert annotations.boxes.tolist() == [list(box) for _, box in expected]
    assert [data.class_names[label - 1] for label in annotations.labels] == [name for name, _ in expected]
    assert annotations.image_id.tolist() == list(SPLITS[split])


def test_row_163_flipped_twice_boxes_are_where_they_were(root: Path) -> None:
    images, annotations = batch_of(DIOR(root), "val")
    flip = HorizontalFlip(prob=1.0)
    draws = torch.zeros(len(images), flip.draws)
    once = flip.apply(images, annotations, draws)
    twice = flip.apply(*once, draws)

    assert torch.equal(images, twice[0]) and torch.equal(annotations.boxes, twice[1].boxes)
    assert not torch.equal(annotations.boxes, once[1].boxes)
    assert torch.equal(SIDE - annotations.boxes[:, 2], once[1].boxes[:, 0])


def test_row_163_a_perfect_detector_scores_1_and_a_shifted_one_less(root: Path) -> None:
    _, annotations = batch_of(DIOR(root, image_size=400), "test")
    targets = annotations.targets()
    scores = []
    for shift in (0, 4):
        metric = MeanAveragePrecision(backend="faster_coco_eval")
        found = [
            {**target, "scores": torch.ones(len(target["labels"])), "boxes": target["boxes"] + shift}
            for target in targets
        ]
        metric.update(found, targets)
        scores.append(metric.compute()["map"].item())

    assert scores[0] == 1.0
    assert scores[1] < 0.7


def test_an_oriented_annotation_beside_the_upright_ones_is_not_read(root: Path) -> None:
    (root / "Annotations" / "Oriented Bounding Boxes").mkdir(exist_ok=True)

    assert len(batch_of(DIOR(root, image_size=100), "val")[1]) == 3


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^there is no folder .*ImageSets.Main; root must hold"):
        DIOR(tmp_path).setup()

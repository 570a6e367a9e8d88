"""VOCDetection: pixels counted from 1 become boxes counted from 0; difficult objects; what is wrong is told."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lightning_vision.datamodules import VOCDetection
from lightning_vision.datamodules.detection._image_files import upright_size
from lightning_vision.detection.coco_metric import CocoMAP
from lightning_vision.images import read_fitted
from support.box_files import draw_scenes, voc_folder, write_voc

FIRST = "2007_000001"
BOMB = '<!DOCTYPE a [<!ENTITY b "bbbbbbbbbb">{}]><annotation>&z;</annotation>'.format(
    "".join(f'<!ENTITY {name} "{f"&{other};" * 10}">' for other, name in zip("bcdefghijkl", "cdefghijklz", strict=True))
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return voc_folder(tmp_path / "VOC2012")


def xml(root: Path, name: str = FIRST) -> Path:
    return root / "Annotations" / f"{name}.xml"


def replace(root: Path, pattern: str, new: str) -> None:
    text, count = re.subn(pattern, new, xml(root).read_text(), count=1)
    assert count == 1
    xml(root).write_text(text)


def test_boxes_begin_at_0_and_end_behind_their_last_pixel(root: Path) -> None:
    data = VOCDetection(root.parent, image_size=64)
    train, val = (data.found[1][split] for split in ("train", "val"))
    scenes = draw_scenes(9)

    assert train.boxes.tolist() == [list(box) for scene in scenes[:6] for box in scene.boxes]
    assert val.boxes.tolist() == [list(box) for scene in scenes[6:] for box in scene.boxes]
    assert [data.class_names[label - 1] for label in train.labels] == [it for scene in scenes[:6] for it in scene.names]
    assert train.image_id.tolist() == list(range(2007000001, 2007000007))
    assert train.size.tolist() == [[scene.image.height, scene.image.width] for scene in scenes[:6]]
    assert (data.class_names, data.category_ids) == (["disc", "square", "triangle"], [1, 2, 3])


@pytest.mark.parametrize("place", ["VOCdevkit/VOC2007", "VOC2007", ""])
def test_the_folder_is_found_where_people_have_it(place: str, tmp_path: Path) -> None:
    voc_folder(tmp_path / place)
    data = VOCDetection(tmp_path, year="2007", image_size=64, batch_size=4)
    image, annotations, _ = next(iter(data.train_dataloader()))

    assert image.shape == (4, 3, 64, 64)
    assert len(annotations) == 4
    assert data.test_set is data.val_set


def test_names_that_are_no_numbers_get_numbers(tmp_path: Path) -> None:
    voc_folder(tmp_path, train=2, val=1)
    for file in [*tmp_path.glob("*/2007*"), *tmp_path.glob("ImageSets/Main/*.txt")]:
        if file.suffix == ".txt":
            file.write_text(file.read_text().replace("2007_", "road-"))
        else:
            file.rename(file.with_name(file.name.replace("2007_", "road-")))

    assert VOCDetection(tmp_path).found[1]["train"].image_id.tolist() == [1, 2]


def test_the_second_word_of_a_line_is_not_a_name(root: Path) -> None:
    (root / "ImageSets" / "Main" / "train.txt").write_text(f"{FIRST} -1\n\n2007_000003  1\n")

    found = VOCDetection(root, classes=["disc", "square", "triangle"]).found[1]["train"]

    assert found.image_id.tolist() == [2007000001, 2007000003]


def test_classes_can_be_given(root: Path) -> None:
    data = VOCDetection(root, classes=["triangle", "disc", "square", "nothing"])
    plain = VOCDetection(root)
    other = [data.class_names[label - 1] for label in data.found[1]["train"].labels]

    assert [plain.class_names[label - 1] for label in plain.found[1]["train"].labels] == other
    assert data.num_classes == 4


@pytest.mark.parametrize("keep", [False, True])
def test_difficult_objects_are_ignored_in_evaluation_and_trained_on_if_kept(keep: bool, root: Path) -> None:
    scenes = draw_scenes(9)
    for name, scene in ((FIRST, scenes[0]), ("2007_000007", scenes[6])):
        write_voc(xml(root, name), scene, difficult=(True,) * len(scene.names))
    data = VOCDetection(root, image_size=64, keep_difficult=keep)
    train, val = (data.found[1][split] for split in ("train", "val"))
    marked = [len(scenes[number].names) for number in (0, 6)]

    assert train.crowd.tolist() == [not keep] * marked[0] + [False] * (len(train.labels) - marked[0])
    assert val.crowd.tolist() == [True] * marked[1] + [False] * (len(val.labels) - marked[1])


def test_a_difficult_object_that_is_not_found_costs_nothing_and_a_plain_one_does(root: Path) -> None:
    scene = draw_scenes(9)[6]
    scores = []
    for difficult in (True, False):
        write_voc(xml(root, "2007_000007"), scene, difficult=(difficult,) * len(scene.names))
        data = VOCDetection(root, image_size=64)
        data.setup()
        assert data.val_set is not None
        annotations: Any = data.val_set.fetch(torch.arange(3)).target
        results = [{**target, "scores": torch.ones(len(target["labels"]))} for target in annotations.targets()]
        results[0] |= {name: results[0][name][:0] for name in ("boxes", "labels", "scores")}
        metric = CocoMAP(3)
        metric.update(results, annotations.targets())
        scores.append(metric.compute()["map"].item())

    assert scores[0] == pytest.approx(1.0)
    assert scores[1] < 0.9


# What becomes of the first image's file, and what is said of it.
BAD = {
    "no annotations": (
        lambda root: xml(root).unlink(),
        r"names the file '2007_000001.xml', which is not in .*Annotations",
    ),
    "no image": (
        lambda root: (root / "JPEGImages" / f"{FIRST}.png").unlink(),
        "names the file '2007_000001', which is not in .*JPEGImages",
    ),
    "no XML": (
        lambda root: xml(root).write_text("<annotation>"),
        r".*000001.xml cannot be read as XML: no element found",
    ),
    "empty": (lambda root: xml(root).write_text(""), r".*000001.xml cannot be read as XML: no element found"),
    "a bomb": (
        lambda root: xml(root).write_text(BOMB),
        r".*000001.xml cannot be read as XML: it declares a document type",
    ),
    "a bomb in 16 bits": (
        lambda root: xml(root).write_bytes(('<?xml version="1.0" encoding="utf-16"?>' + BOMB).encode("utf-16")),
        r".*000001.xml cannot be read as XML: it declares a document type",
    ),
    "another file's content": (
        lambda root: xml(root).write_text(
            '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation>&b;</annotation>'
        ),
        r".*000001.xml cannot be read as XML: it declares a document type",
    ),
    "no size": (lambda root: replace(root, "<size>.*</size>", ""), r".*000001.xml says no size of its image in pixels"),
    "a size of 0": (
        lambda root: replace(root, r"<width>\d+", "<width>0"),
        r".*000001.xml says no size of its image in",
    ),
    "another size": (
        lambda root: replace(root, r"<width>\d+", "<width>99"),
        r".*000001.xml says 99 x \d+ pixels, but .*2007_000001.png has \d+ x \d+ pixels",
    ),
    "an image that is none": (
        lambda root: (root / "JPEGImages" / f"{FIRST}.png").write_bytes(b"x"),
        r".*000001.xml is of the image .*2007_000001.png, which cannot be decoded",
    ),
    "no class": (lambda root: replace(root, "<name>[a-z]+</name>", ""), r".*000001.xml has no name for object 1"),
    "no box": (lambda root: replace(root, r"<xmin>\d+</xmin>", ""), r".*000001.xml has no bndbox of four numbers for"),
    "a box of text": (lambda root: replace(root, r"<xmin>\d+", "<xmin>left"), r".*000001.xml has no bndbox of four"),
    "a box that is not a number": (
        lambda root: replace(root, r"<xmin>\d+", "<xmin>nan"),
        "object 1 of 2007_000001.xml has a box with a number that is not finite",
    ),
    "a negative box": (
        lambda root: replace(root, r"<xmax>\d+", "<xmax>-9"),
        "object 1 of 2007_000001.xml has a box of negative size, width",
    ),
    "a box outside": (
        lambda root: replace(root, r"<xmin>\d+(.*?)<xmax>\d+", r"<xmin>900\1<xmax>950"),
        "object 1 of 2007_000001.xml has a box outside its image",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_used_stops_with_file_and_number_or_is_left_out_and_told(what: str, root: Path) -> None:
    objects = len(VOCDetection(root).found[1]["train"].labels)
    edit, problem = BAD[what]
    edit(root)
    where = re.escape(str(root / "ImageSets" / "Main" / "train.txt"))
    with pytest.raises(ValueError, match=rf"^{where}: {problem}.*; mend it or pass on_bad_annotation='skip'$"):
        VOCDetection(root).setup()
    with pytest.warns(UserWarning, match=rf"{where}: unusable and left out: 1 \({problem}"):
        train = VOCDetection(root, on_bad_annotation="skip").found[1]["train"]

    assert len(train) == (6 if problem.startswith("object") else 5)
    assert len(train.labels) < objects


def test_a_class_that_is_not_trained_is_refused_or_left_out(root: Path) -> None:
    file = xml(root, "2007_000007")
    file.write_text(re.sub("<name>[a-z]+", "<name>cube", file.read_text(), count=1))
    with pytest.raises(
        ValueError, match=r"val.txt: object 1 of 2007_000007.xml is a 'cube', which is no class of training;"
    ):
        VOCDetection(root).setup()
    with pytest.warns(
        UserWarning, match=r"val.txt: unusable and left out: 1 \(object 1 of 2007_000007.xml is a 'cube'"
    ):
        VOCDetection(root, on_bad_annotation="skip").setup()


def test_boxes_over_the_edge_are_cut_in_training_and_counted(root: Path) -> None:
    replace(root, r"<xmin>\d+", "<xmin>-4")
    with pytest.warns(UserWarning, match=r"pixel or more over their image cut: 1 \(object 1 of 2007_000001.xml\)$"):
        assert VOCDetection(root).found[1]["train"].boxes[0, 0] == 0


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("", "train.txt names 0 images; add some, or leave this split out$"),
        (f"{FIRST}\n{FIRST}\n", f"train.txt names the image {FIRST} twice; remove one$"),
        (
            f"../../{FIRST}\n",
            f"train.txt: names the file '../../{FIRST}', which is no path below .*JPEGImages; mend it",
        ),
        ("/etc/passwd\n", "train.txt: names the file '/etc/passwd', which is no path below .*JPEGImages; mend it"),
    ],
)
def test_a_list_of_images_that_is_wrong_is_refused(lines: str, problem: str, root: Path) -> None:
    (root / "ImageSets" / "Main" / "train.txt").write_text(lines)
    with pytest.raises(ValueError, match=problem):
        VOCDetection(root).setup()


def test_a_list_that_is_no_text_is_refused_by_name(root: Path) -> None:
    (root / "ImageSets" / "Main" / "train.txt").write_bytes(b"\xff\xd8\xe0 1\n")
    with pytest.raises(ValueError, match=r"train.txt: names the file '.+', which is not in .*JPEGImages; mend it or"):
        VOCDetection(root).setup()


@pytest.mark.parametrize("orientation", [1, 3, 6, 8, 9])
def test_the_size_of_an_image_is_that_which_it_shows(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (40, 30)).save(tmp_path / "it.jpg", exif=exif)

    assert upright_size(str(tmp_path / "it.jpg")) == read_fitted(tmp_path / "it.jpg").size


def test_a_link_out_of_the_data_is_refused(root: Path, tmp_path: Path) -> None:
    xml(root).rename(tmp_path / "secret.xml")
    xml(root).symlink_to(tmp_path / "secret.xml")
    with pytest.raises(
        ValueError, match=r"names the file '2007_000001.xml', a link that leads out of .*Annotations; mend"
    ):
        VOCDetection(root).setup()


@pytest.mark.parametrize(
    ("gone", "problem"),
    [
        (
            "ImageSets",
            "there is no folder .*VOC2012/ImageSets/Main; root must hold VOC2012, or JPEGImages, Annotations and",
        ),
        ("ImageSets/Main/val.txt", "there is no image set .*val.txt; the folder has train$"),
        ("Annotations", "there is no folder of annotations .*Annotations$"),
        ("JPEGImages", "there is no folder of images .*JPEGImages$"),
    ],
)
def test_a_missing_folder_is_named(gone: str, problem: str, root: Path) -> None:
    (root / gone).rename(root.parent / "away")
    with pytest.raises(FileNotFoundError, match=f"^{problem}"):
        VOCDetection(root.parent).setup()


def test_training_without_objects_is_refused(root: Path) -> None:
    for file in (root / "Annotations").iterdir():
        file.write_text(re.sub("<object>.*</object>", "", file.read_text()))
    with pytest.raises(
        ValueError, match=r"^none of the images of .*train.txt shows an object; there is nothing to train on$"
    ):
        VOCDetection(root).setup()


@pytest.mark.parametrize("classes", [[], ["a", "a"]])
def test_classes_must_differ(classes: list[str]) -> None:
    with pytest.raises(
        ValueError, match=r"^classes is .*; name each class once, or none to take those of the training"
    ):
        VOCDetection("x", classes=classes)


def test_a_root_is_needed() -> None:
    with pytest.raises(
        ValueError, match=r"^VOCDetection needs a root, the folder of images and annotations, or a predict_root$"
    ):
        VOCDetection()

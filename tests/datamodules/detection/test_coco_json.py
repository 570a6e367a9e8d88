"""What is wrong in COCO's JSON is told in one sentence with file and id, or left out, counted and told once."""

import json
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lightning_vision.datamodules import CocoDetection
from lightning_vision.images import fit_image
from support.box_files import coco_folder

NAN = float("nan")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve images to train on, ids 11 to 22; annotation 1 is of image 11."""
    folder = coco_folder(tmp_path / "data")
    (folder / "train" / "deep").mkdir()
    (folder / "train" / "dangling").symlink_to("dangling")
    return folder


def change(root: Path, edit: Callable[[dict[str, Any]], Any], split: str = "train") -> Path:
    file = root / "annotations" / f"instances_{split}.json"
    found = json.loads(file.read_text())
    edit(found)
    file.write_text(json.dumps(found))
    return file


def edited(kind: str, **values: Any) -> Callable[[dict[str, Any]], Any]:
    """The first entry of a list, with other values; one that is None is left out."""

    def edit(found: dict[str, Any]) -> None:
        entry = {**found[kind][0], **values}
        found[kind][0] = {name: value for name, value in entry.items() if value is not None}

    return edit


# Each is one object or image too few where it is skipped.
BAD = {
    "an image that is missing": (
        edited("images", file_name="x.png"),
        "image id 11 names the file 'x.png', which is not",
    ),
    "an image above": (
        edited("images", file_name="../val/0000.png"),
        "image id 11 names the file '../val/0000.png', which",
    ),
    "a folder": (edited("images", file_name="deep"), "image id 11 names the file 'deep', which is not in"),
    "a link to nowhere": (
        edited("images", file_name="dangling"),
        "image id 11 names the file 'dangling', which is not",
    ),
    "an absolute path": (
        edited("images", file_name="/etc/passwd"),
        "image id 11 names the file '/etc/passwd', which is no",
    ),
    "an image without a name": (edited("images", file_name=None), "image id 11 names the file 'None', which is not in"),
    "an image without an id": (edited("images", id=None), "entry 0 of its images has no whole number id"),
    "an image id twice": (edited("images", id=12), "image id 12 is there twice"),
    "an image without a height": (edited("images", height=None), "image id 11 has height None and width"),
    "an image of width 0": (edited("images", width=0), "image id 11 has height .* and width 0, no numbers of pixels"),
    "an annotation that is none": (lambda it: it["annotations"].__setitem__(0, 5), "entry 0 of its annotations has no"),
    "an annotation without an id": (
        edited("annotations", id=None),
        "entry 0 of its annotations has no whole number id",
    ),
    "an annotation id twice": (edited("annotations", id=2), "annotation id 2 is there twice"),
    "an unknown image": (edited("annotations", image_id=999), "annotation 1 is of image id 999, which is not in the"),
    "an image that is no number": (edited("annotations", image_id=[1]), r"annotation 1 is of image id \[1\], which is"),
    "an unknown category": (edited("annotations", category_id=4), "annotation 1 is of category id 4, which is not in"),
    "no box": (edited("annotations", bbox=None), "annotation 1 has no box of four numbers"),
    "a box of text": (edited("annotations", bbox="1234"), "annotation 1 has no box of four numbers"),
    "a box of three": (edited("annotations", bbox=[1, 2, 3]), "annotation 1 has no box of four numbers"),
    "a negative width": (
        edited("annotations", bbox=[9, 5, -3, 8]),
        "annotation 1 has a box of negative size, width -3",
    ),
    "a box that is not a number": (
        edited("annotations", bbox=[9, NAN, 3, 8]),
        "annotation 1 has a box with a number that",
    ),
    "an endless box": (
        edited("annotations", bbox=[9, 5, 1e999, 8]),
        "annotation 1 has a box with a number that is not",
    ),
    "a box outside": (
        edited("annotations", bbox=[900, 5, 9, 8]),
        r"annotation 1 has a box outside its image, \(900, 5,",
    ),
    "a negative area": (edited("annotations", area=-4), "annotation 1 has the area -4, which is no number of square"),
    "an area that is not a number": (edited("annotations", area=NAN), "annotation 1 has the area nan, which is no"),
    "an odd crowd": (edited("annotations", iscrowd="no"), "annotation 1 has iscrowd 'no'; give 0 or 1"),
    "a broken outline": (
        edited("annotations", segmentation=[[1, 2]]),
        "annotation 1 has a polygon that is no list of at",
    ),
    "an outline that is a number": (edited("annotations", segmentation=7), "annotation 1 has "),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_used_stops_with_file_and_id_or_is_left_out_and_told(what: str, root: Path) -> None:
    edit, problem = BAD[what]
    objects = len(CocoDetection(root, image_size=64).found[1]["train"].labels)
    file = change(root, edit)
    with pytest.raises(
        ValueError, match=rf"^{re.escape(str(file))}: {problem}.*; mend it or pass on_bad_annotation='skip'$"
    ):
        CocoDetection(root, image_size=64, masks=True).setup()
    with pytest.warns(UserWarning, match=rf"{re.escape(str(file))}: unusable and left out: \d+ \({problem}") as told:
        data = CocoDetection(root, image_size=64, masks=True, on_bad_annotation="skip")
        data.setup()
        data.setup("fit")
    train = data.found[1]["train"]

    assert len(told) == 1
    assert len(train.labels) < objects
    assert len(train) == (11 if "images" in problem or problem.startswith("image") else 12)
    assert bool(train.boxes.isfinite().all())


# No annotation can be left out to mend these.
BROKEN = {
    "broken JSON": (lambda file: file.write_text(file.read_text()[:-40]), "cannot be read as JSON: "),
    "no text": (lambda file: file.write_bytes(b"\xff\xfe\x00\xd8"), "cannot be read as JSON: "),
    "nested without end": (lambda file: file.write_text("[" * 10**5), "cannot be read as JSON: "),
    "a list": (lambda file: file.write_text("[]"), "holds no COCO annotations, but a list; export it as COCO JSON"),
    "nothing": (lambda file: file.write_text("{}"), "has no list of images; export it as COCO JSON"),
}
WRONG = {
    "0 images": (lambda it: it.update(images=[]), "has annotations of 0 images; add some, or leave this split out"),
    "0 categories": (lambda it: it.update(categories=[]), "has 0 categories; name the classes"),
    "no categories": (lambda it: it.pop("categories"), "has no list of categories; export it as COCO JSON"),
    "no annotations": (
        lambda it: it.pop("annotations"),
        "has no list of annotations; only images to predict need none",
    ),
    "a category without a name": (edited("categories", name=None), "entry 0 of its categories has no whole number id"),
    "a category id twice": (
        edited("categories", id=7),
        "category id 7 is there twice; give each category an id of its",
    ),
    "a category name twice": (edited("categories", name="square"), "two categories are called 'square', one is id 7"),
    "no image of all": (
        lambda it: [entry.update(file_name="x") for entry in it["images"]],
        "none of its 12 images can be used; look into ",
    ),
}


@pytest.mark.parametrize("what", [*BROKEN, *WRONG])
def test_a_file_that_is_wrong_as_a_whole_is_refused_whatever_the_setting(what: str, root: Path) -> None:
    file = root / "annotations" / "instances_train.json"
    if what in BROKEN:
        edit, problem = BROKEN[what]
        edit(file)
    else:
        changed, problem = WRONG[what]
        change(root, changed)
    with warnings.catch_warnings(), pytest.raises(ValueError, match=rf"^{re.escape(str(file))}:? {problem}"):
        warnings.simplefilter("ignore")
        CocoDetection(root, on_bad_annotation="skip").setup()


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (edited("categories", id=4), "category id 4 is 'disc', in .* it is not there"),
        (edited("categories", name="ball"), "category id 3 is 'ball', in .* it is 'disc'"),
    ],
)
def test_a_split_with_other_categories_is_refused(edit: Any, told: str, root: Path) -> None:
    file = change(root, edit, "val")
    with pytest.raises(ValueError, match=rf"^{re.escape(str(file))}: {told}; give all splits the same categories$"):
        CocoDetection(root, on_bad_annotation="skip").setup()


def test_a_split_that_lacks_a_category_keeps_the_labels(root: Path) -> None:
    plain = CocoDetection(root).found[1]["val"]

    def without_discs(found: dict[str, Any]) -> None:
        found["categories"] = found["categories"][1:]
        found["annotations"] = [entry for entry in found["annotations"] if entry["category_id"] != 3]

    change(root, without_discs, "val")
    assert CocoDetection(root).found[1]["val"].labels.tolist() == plain.labels[plain.labels != 1].tolist()


def test_boxes_over_the_edge_are_cut_and_those_without_area_dropped_and_both_are_counted(root: Path) -> None:
    def edit(found: dict[str, Any]) -> None:
        width, height = found["images"][0]["width"], found["images"][0]["height"]
        boxes = ([-5, -7, 20, 30], [width - 10, height - 9, 99, 99], [5, 5, 0, 8], [5, 5, 9, 0.5], [-0.2, 0, 9, 9])
        found["annotations"] = [
            {"id": number, "image_id": 11, "category_id": 3, "bbox": box} for number, box in enumerate(boxes, 50)
        ]
        found["size"] = [width, height]

    file = change(root, edit)
    width, height = json.loads(file.read_text())["size"]
    said = (
        f"{file}: boxes without area dropped: 1 (annotation 52), boxes that reach a pixel or more over their image "
        "cut: 2 (annotation 50; annotation 51), boxes with a side below 1 pixels dropped from training: 1 "
        "(annotation 53)"
    )
    with pytest.warns(UserWarning, match=rf"^{re.escape(said)}$"):
        train = CocoDetection(root).found[1]["train"]

    expected = [[0, 0, 15, 23], [width - 10, height - 9, width, height], [0, 0, 8.8, 9]]
    assert torch.allclose(torch.tensor(expected).float(), train.boxes)
    assert train.source.tolist() == [50, 51, 54]


def test_evaluation_judges_boxes_as_they_were_written_but_none_without_area(root: Path) -> None:
    def edit(found: dict[str, Any]) -> None:
        for entry, box in zip(found["annotations"], ([-5, -7, 20, 30], [5, 5, 0, 8], [5, 5, 9, 0.5]), strict=False):
            entry["bbox"] = box

    change(root, edit, "val")
    with pytest.warns(UserWarning, match=r"instances_val.json: boxes without area dropped: 1 \(annotation 2\)$"):
        boxes = CocoDetection(root).found[1]["val"].boxes

    assert boxes[:2].tolist() == [[-5, -7, 15, 23], [5, 5, 14, 5.5]]


def test_nothing_is_said_of_good_files(root: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CocoDetection(root, masks=True).setup()


def test_objects_of_an_image_that_is_left_out_are_left_out_without_a_word(root: Path) -> None:
    change(root, edited("images", file_name="x.png"))
    with pytest.warns(UserWarning, match=r"unusable and left out: 1 \(image id 11 names"):
        train = CocoDetection(root, on_bad_annotation="skip").found[1]["train"]

    assert train.image_id.tolist() == list(range(12, 23))
    assert train.source[0] > 1


def test_a_link_out_of_the_data_is_refused_and_one_within_is_followed(root: Path, tmp_path: Path) -> None:
    (root / "train" / "0001.png").rename(root / "moved.png")
    (root / "train" / "0001.png").symlink_to(root / "moved.png")
    CocoDetection(root).setup()
    (root / "moved.png").rename(tmp_path / "secret.png")
    (root / "train" / "0001.png").unlink()
    (root / "train" / "0001.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(
        ValueError, match=r"image id 12 names the file '0001.png', a link that leads out of .*train; mend"
    ):
        CocoDetection(root).setup()


def test_a_linked_folder_below_the_images_must_not_lead_out_but_their_own_may_be_one(
    root: Path, tmp_path: Path
) -> None:
    (root / "train").rename(tmp_path / "elsewhere")
    (root / "train").symlink_to(tmp_path / "elsewhere")
    CocoDetection(root).setup()
    (root / "train").unlink()
    (root / "train").mkdir()
    (root / "train" / "deep").symlink_to(tmp_path / "elsewhere")
    change(root, lambda it: [entry.update(file_name=f"deep/{entry['file_name']}") for entry in it["images"]])
    with pytest.raises(ValueError, match=r"image id 11 names the file 'deep/0000.png', a link that leads out of"):
        CocoDetection(root).setup()
    (root / "train" / "deep").unlink()
    os.rename(tmp_path / "elsewhere", root / "train" / "deep")

    assert len(CocoDetection(root).found[1]["train"]) == 12


@pytest.mark.parametrize("on_bad_image", ["error", "skip"])
def test_an_image_of_another_size_than_its_annotations_say_is_bad(on_bad_image: Any, root: Path) -> None:
    change(root, edited("images", height=47))
    data = CocoDetection(root, image_size=64, on_bad_image=on_bad_image, augment="none")
    data.setup()
    assert data.train_set is not None
    if on_bad_image == "error":
        with pytest.raises(
            ValueError, match=r"^the image .*0000.png has \d+ x \d+ pixels, but its annotations are for"
        ):
            data.train_set.fetch(torch.arange(4))
    else:
        assert data.train_set.fetch(torch.arange(4)).index.tolist() == [1, 2, 3]
        with pytest.raises(
            ValueError,
            match=r"^none of the 1 images of a batch can be used: the image .*0000.png has .* annotations are",
        ):
            data.train_set.fetch(torch.tensor([0]))


@pytest.mark.parametrize("stored", [False, True])
def test_an_image_is_turned_as_its_exif_says_and_annotations_are_of_what_it_shows(stored: bool, root: Path) -> None:
    """Orientation 6 shows the file's pixels after a quarter turn to the right."""
    file = root / "train" / "0000.png"
    with Image.open(file) as image:
        shown, size = image.copy(), image.size
    exif = Image.Exif()
    exif[0x0112] = 6
    shown.transpose(Image.Transpose.ROTATE_90).save(file, exif=exif)
    if stored:
        change(root, edited("images", width=size[1], height=size[0]))
    data = CocoDetection(root, image_size=64, min_size=0)
    data.setup()
    assert size[0] != size[1] and data.train_set is not None
    if stored:
        with pytest.raises(
            ValueError, match="pixels, turned as its EXIF orientation says, but its annotations are for"
        ):
            data.train_set.fetch(torch.tensor([0]))
    else:
        pixels = data.train_set.fetch(torch.tensor([0])).image[0]
        assert torch.equal(fit_image(shown, 3, (64, 64)).pixels, pixels)

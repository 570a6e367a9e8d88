"""Tables of images: every way to write labels, splits that nothing moves, and refusals that name the lines."""

import inspect
import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lightning_vision import main
from lightning_vision.datamodules.common._sets import FileImages
from lightning_vision.datamodules.csv_images import CSVImages
from lightning_vision.datamodules.image_folder import ImageFolder

ONE = {"image_size": 6, "channels": 1}


def table(folder: Path, text: str, images: int = 10, name: str = "table.csv", encoding: str = "utf-8") -> Path:
    """A table beside images `0.png`, `1.png`, ... whose brightness is their number."""
    folder.mkdir(exist_ok=True)
    for number in range(images):
        Image.new("L", (6, 6), number).save(folder / f"{number}.png")
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


def rows_of(data: CSVImages, split: str) -> dict[str, Any]:
    """File name and label of the images of a split."""
    data.setup()
    images = getattr(data, f"{split}_set")
    if images is None:
        return {}
    assert isinstance(images, FileImages)
    labels = [None] * len(images) if images.targets is None else images.targets.tolist()
    return {Path(path).name: label for path, label in zip(images.paths, labels, strict=True)}


def test_one_column_of_names_is_a_class_an_image(tmp_path: Path) -> None:
    text = "path,label,split\n0.png,dog,train\n1.png,cat,train\n2.png,dog,valid\n3.png,cat,test\n4.png,,predict\n"
    data = CSVImages(table(tmp_path, text), split_column="split", **ONE)

    assert (data.class_names, data.multilabel, data.num_classes) == (["cat", "dog"], False, 2)
    assert rows_of(data, "train") == {"0.png": 1, "1.png": 0}
    assert tuple(rows_of(data, split) for split in ("val", "test", "predict")) == (
        {"2.png": 1},
        {"3.png": 0},
        {"4.png": None},
    )
    assert data.predict_paths == [str(tmp_path / "4.png")]
    assert data.class_counts == {
        "train": {"cat": 1, "dog": 1},
        "val": {"cat": 0, "dog": 1},
        "test": {"cat": 1, "dog": 0},
    }
    image, target, index = next(iter(data.train_dataloader()))
    assert image[:, 0, 0, 0].tolist() == index.tolist() == (1 - target).tolist()


def test_names_joined_by_a_separator_are_several_labels(tmp_path: Path) -> None:
    text = "path,tags,split\n0.png,cat | dog,train\n1.png,|,train\n2.png,bird|cat,train\n3.png,dog,val\n"
    data = CSVImages(table(tmp_path, text), label_columns="tags", separator="|", split_column="split", **ONE)

    assert (data.class_names, data.multilabel) == (["bird", "cat", "dog"], True)
    assert rows_of(data, "train") == {"0.png": [0, 1, 1], "1.png": [0, 0, 0], "2.png": [1, 1, 0]}
    assert data.class_counts["train"] == {"bird": 1, "cat": 2, "dog": 1}
    assert next(iter(data.train_dataloader()))[1].dtype == torch.float32


def test_columns_of_zeros_and_ones_are_several_labels_in_the_columns_order(tmp_path: Path) -> None:
    text = "path,wet,cold,split\n0.png,1,0,train\n1.png,1.0,1,train\n2.png,0.0,1,val\n"
    data = CSVImages(table(tmp_path, text), label_columns=["wet", "cold"], split_column="split", **ONE)

    assert (data.class_names, data.multilabel) == (["wet", "cold"], True)
    assert rows_of(data, "train") == {"0.png": [1, 0], "1.png": [1, 1]}
    assert data.plot("train").axes[1].get_title() == "wet, cold"


def test_classes_that_are_numbers_are_sorted_by_number(tmp_path: Path) -> None:
    text = "path,label\n" + "".join(f"{number}.png,{number + 1}\n" for number in range(10))

    assert CSVImages(table(tmp_path, text)).class_names == [str(number) for number in range(1, 11)]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("path,label\n0.png,a b\n1.png,c\n", "utf-8-sig"),
        ("path;label\r\n0.png;a b\r\n1.png;c\r\n", "utf-8"),
        ('"path"\t"label"\n"0.png"\t"a b"\n\n1.png\tc', "utf-8"),
        ("id|path|label\n1,2|0.png|a b\n3,4| 1.png | c\n", "utf-8"),
    ],
    ids=["mark", "semicolons and CRLF", "quotes, tabs and a blank line", "bars and spaces"],
)
def test_tables_come_as_programs_write_them(text: str, encoding: str, tmp_path: Path) -> None:
    data = CSVImages(table(tmp_path, text, encoding=encoding), val_fraction=0, test_fraction=0)

    assert rows_of(data, "train") == {"0.png": 0, "1.png": 1}
    assert data.class_names == ["a b", "c"]


def test_quoted_cells_may_hold_delimiters_and_letters_of_any_language(tmp_path: Path) -> None:
    path = table(tmp_path, 'path,label\n"1, über.png","Katze, grau"\n0.png,ネコ\n')
    (tmp_path / "1.png").rename(tmp_path / "1, über.png")

    assert CSVImages(path).class_names == ["Katze, grau", "ネコ"]


def test_paths_start_from_the_tables_folder_or_the_root_or_are_absolute(tmp_path: Path) -> None:
    here = table(tmp_path / "here", f"path,label\n0.png,a\n{tmp_path / 'there' / '1.png'},a\n", 1)
    there = table(tmp_path / "there", "path,label\n0.png,a\n", 2)

    def paths(data: CSVImages) -> list[str]:
        return data.found[1]["train"][0]

    options = {"val_fraction": 0, "test_fraction": 0}
    assert {str(tmp_path / "here" / "0.png"), str(tmp_path / "there" / "1.png")} == {*paths(CSVImages(here, **options))}
    assert [str(tmp_path / "here" / "0.png")] == paths(CSVImages(there, root=tmp_path / "here", **options))


def many(folder: Path, text: str = "", order: int = 1) -> Path:
    """Sixty images, every third a cat, the others dogs, or labelled by `text`."""
    rows = [f"{number}.png,{text or ('cat' if number % 3 == 0 else 'dog')}\n" for number in range(60)]
    return table(folder, "path,label\n" + "".join(rows[::order]), 60)


def test_without_a_split_column_all_three_are_drawn_class_by_class(tmp_path: Path) -> None:
    data = CSVImages(many(tmp_path), val_fraction=0.2, test_fraction=0.1)

    assert data.class_counts == {
        "train": {"cat": 14, "dog": 28},
        "val": {"cat": 4, "dog": 8},
        "test": {"cat": 2, "dog": 4},
    }


def test_the_draw_does_not_depend_on_the_rows_order_nor_on_where_the_data_lie(tmp_path: Path) -> None:
    forth, back = CSVImages(many(tmp_path / "a")), CSVImages(many(tmp_path / "b", order=-1))

    assert rows_of(forth, "test") == rows_of(back, "test")
    assert rows_of(forth, "test") != rows_of(CSVImages(many(tmp_path / "a"), split_seed=1), "test")


def test_without_rows_to_validate_they_are_drawn_from_those_to_train(tmp_path: Path) -> None:
    rows = "".join(f"{number}.png,a,{'test' if number < 4 else 'train'}\n" for number in range(24))
    data = CSVImages(table(tmp_path, "path,label,split\n" + rows, 24), split_column="split", val_fraction=0.25)

    assert data.class_counts == {"train": {"a": 15}, "val": {"a": 5}, "test": {"a": 4}}
    assert {f"{number}.png" for number in range(4)} == rows_of(data, "test").keys()


def test_several_labels_are_divided_label_by_label(tmp_path: Path) -> None:
    pairs = [f"{a}|{b}" for a, b in combinations("abcde", 2)]
    rows = "".join(f"{number}.png,{pairs[number % 10]}\n" for number in range(100))
    data = CSVImages(table(tmp_path, "path,label\n" + rows, 100), separator="|", val_fraction=0.2, test_fraction=0.1)
    counts = {split: list(classes.values()) for split, classes in data.class_counts.items()}

    for split, expected in (("train", 28), ("val", 8), ("test", 4)):
        assert all(abs(count - expected) <= 2 for count in counts[split])


def test_without_label_columns_all_rows_are_predicted(tmp_path: Path) -> None:
    data = CSVImages(table(tmp_path, "path\n1.png\n0.png\n"), label_columns=None, **ONE)
    (batch,) = data.predict_dataloader()

    assert {"image", "index"} == batch.keys()
    assert batch["image"][:, 0, 0, 0].tolist() == [1, 0]
    assert ([], [str(tmp_path / "1.png"), str(tmp_path / "0.png")]) == (data.class_names, data.predict_paths)


def test_a_damaged_image_can_be_skipped(tmp_path: Path) -> None:
    path = table(tmp_path, "path,label\n0.png,a\n1.png,a\n2.png,a\n")
    (tmp_path / "1.png").write_bytes(b"cut short")
    data = CSVImages(path, val_fraction=0, test_fraction=0, on_bad_image="skip", **ONE)
    with pytest.warns(UserWarning, match=r"^left out 1 of 3 images in epoch 0, unusable: .*1\.png$"):
        batches = list(data.train_dataloader())

    assert sorted(batches[0][2].tolist()) == [0, 2]


def test_a_table_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    refused(
        CSVImages(tmp_path / "no.csv"),
        FileNotFoundError,
        f"there is no file {tmp_path / 'no.csv'}; csv must name a table of images",
    )


def refused(data: CSVImages, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        data.setup()


SPLIT = {"split_column": "split"}
NONE = ", or let a split_column say predict for images without labels"


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "{} holds no rows; its first line must name the columns, one row an image must follow"),
        ("path,label\n", {}, "{} holds no rows; its first line must name the columns, one row an image must follow"),
        (
            "path,lable\n0.png,a\n",
            {},
            "{} has no column 'label'; did you mean lable?; its first line names path, lable: pass label_columns",
        ),
        ("0.png,a\n1.png,b\n", {}, "{} has no column 'path'; its first line names 0.png, a: pass path_column"),
        (
            "path,label\n0.png,a\n",
            SPLIT,
            "{} has no column 'split'; its first line names path, label: pass split_column",
        ),
        ("path,label,label\n0.png,a,b\n", {}, "{} has two columns called 'label'; rename one of them"),
        (
            "path,label\n0.png,a\n1.png,b,c\n2.png\n",
            {},
            "{} has 2 columns but another number of cells in lines 3 and 4; quote cells that hold the "
            "delimiter, or pass delimiter",
        ),
        (
            "path,label\n0.png,a\n\n1.png,\n2.png,\n",
            {},
            "'label' of {} is empty in lines 4 and 5; fill in or take out" + NONE,
        ),
        (
            "path,label\n0.png,a\n1.png,\n",
            {"separator": "|"},
            "'label' of {} is empty in line 3; fill in or take out, write | where no label applies" + NONE,
        ),
        ("path,label\n,a\n1.png,a\n", {}, "'path' of {} is empty in line 2; fill in or take out"),
        ("path,label,split\n0.png,a,\n", SPLIT, "'split' of {} is empty in line 2; fill in or take out"),
        (
            "path,label,split\n0.png,a,train\n1.png,a,dev\n2.png,a,dev\n",
            SPLIT,
            "'split' of {} names no split: 'dev' in lines 3 and 4; write train, val, test or predict",
        ),
        ("path,label,split\n0.png,a,val\n", SPLIT, "{} has no row to train on; let some say train in 'split'"),
        (
            "path,label,split\n0.png,cat,train\n1.png,cap,val\n2.png,fox,test\n",
            SPLIT,
            "{} has labels that no row to train on has: 'cap' in line 3, 'fox' in line 4; did you mean cat?; "
            "train on such rows or take these out",
        ),
        ("path,label\n0.png,|\n", {"separator": "|"}, "no row to train on in {} has a label in 'label'; give some one"),
        (
            "path,wet,cold\n0.png,1,0\n1.png,yes,1\n2.png,2,1\n",
            {"label_columns": ["wet", "cold"]},
            "'wet' of {} holds 'yes' instead of 0 or 1 in lines 3 and 4; several label columns hold 0 or 1 each, "
            "names go into one column",
        ),
        (
            "path,wet,cold\n0.png,1,0\n1.png,,1\n",
            {"label_columns": ["wet", "cold"]},
            "'wet' of {} is empty in line 3; fill in or take out" + NONE,
        ),
        (
            "path,wet,cold,split\n0.png,1,0,train\n1.png,0,1,val\n",
            {"label_columns": ["wet", "cold"], **SPLIT},
            "'cold' of {} is 1 in no row to train on; train on such rows or leave the column out of label_columns",
        ),
        (
            "path,label\n0.png,cat\n1.png,cat\n0.png,dog\n",
            {},
            "lines 2 and 4 of {} both name 0.png; give each image one row, several labels go into one cell with a "
            "separator",
        ),
    ],
)
def test_what_is_wrong_in_a_table_is_named_by_its_lines(
    text: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = table(tmp_path, text)
    refused(CSVImages(path, **options), ValueError, message.format(path))


@pytest.mark.parametrize("spelling", ["./0.png", "sub/../0.png", "{}/0.png"])
def test_one_file_under_two_spellings_stands_in_two_rows(spelling: str, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    other = spelling.format(tmp_path)
    path = table(tmp_path, f"path,label\n0.png,a\n1.png,a\n{other},b\n")
    with pytest.raises(ValueError, match=f"^lines 2 and 4 of {re.escape(f'{path} both name {other}')}; give each"):
        CSVImages(path).setup()


def test_unlabelled_rows_do_not_size_a_model(tmp_path: Path) -> None:
    path = table(tmp_path, "path\n0.png\n1.png\n")
    data = CSVImages(path, label_columns=None)

    assert not hasattr(data, "num_classes")
    with pytest.raises(AttributeError, match=r"^CSVImages has no labels, so no num_classes; give the module its own$"):
        data.num_classes  # noqa: B018  # the access itself is what fails
    words = ["--model", "ImageClassifier", "--model.backbone", "resnet8_cifar", "--data", "CSVImages"]
    words += ["--data.csv", str(path), "--data.label_columns", "null", "--data.image_size", "8"]
    words += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    with pytest.raises(ValueError, match=r"^CSVImages has no attribute `num_classes` to .*; pass --model.num_classes$"):
        main(["predict", *words])
    main(["predict", *words, "--model.num_classes", "3", "--output", str(tmp_path)])
    found = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]

    assert [(Path(it["path"]).name, len(it["probabilities"])) for it in found] == [("0.png", 3), ("1.png", 3)]


def test_missing_files_are_named_all_at_once(tmp_path: Path) -> None:
    path = table(tmp_path, "path,label\n" + "".join(f"{number}.png,a\n" for number in range(9)), 2)
    refused(
        CSVImages(path, root=tmp_path),
        FileNotFoundError,
        f"7 of 9 images in {path} are not there: 2.png (line 4), 3.png (line 5), 4.png (line 6), 5.png (line 7), 6.png "
        f"(line 8), ...; relative paths start from {tmp_path}, pass root or mend the rows",
    )


def test_a_line_number_counts_lines_of_the_file_also_behind_cells_of_several_lines(tmp_path: Path) -> None:
    path = table(tmp_path, 'path,label,note\n0.png,a,"two\nlines"\n1.png,,"two\nlines"\n2.png,,x\n')
    refused(CSVImages(path), ValueError, f"'label' of {path} is empty in lines 4 and 6; fill in or take out{NONE}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,label\n0.png,café\n".encode("latin-1"), "is not UTF-8 text"),
        (
            b'path,label\n0.png,a\n"1.png,b\n2.png,c\n',
            "cannot be read as a table from line 3 on: unexpected end of data",
        ),
    ],
    ids=["Latin-1", "an open quote"],
)
def test_a_file_that_is_no_table_is_one_sentence(content: bytes, message: str, tmp_path: Path) -> None:
    path = table(tmp_path, "")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(f'{path} {message}')}"):
        CSVImages(path).setup()


def test_rows_to_predict_beside_a_predict_root_are_refused(tmp_path: Path) -> None:
    path = table(tmp_path, "path,label,split\n0.png,a,train\n1.png,,predict\n")
    refused(
        CSVImages(path, split_column="split", predict_root=tmp_path),
        ValueError,
        f"{path} has 1 rows to predict and predict_root is {tmp_path}; drop one",
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_columns": []}, "label_columns is an empty list"),
        ({"label_columns": ["a", "a"]}, "the column 'a' has two meanings"),
        ({"label_columns": "path"}, "the column 'path' has two meanings"),
        ({"split_column": "label"}, "the column 'label' has two meanings"),
        ({"label_columns": None, "split_column": "split"}, "split_column 'split' has nothing to split"),
        ({"label_columns": ["a", "b"], "separator": "|"}, "label_columns names 2"),
        ({"separator": ""}, "separator '' must be some text other than spaces and the delimiter"),
        ({"separator": " "}, "separator ' ' must be some text other than spaces and the delimiter"),
        ({"separator": ";", "delimiter": ";"}, "separator ';' must be some text other than spaces and the delimiter"),
        ({"delimiter": ", "}, "delimiter ', ' must be one character"),
        ({"val_fraction": 0.6, "test_fraction": 0.4}, "leave nothing to train on"),
        ({"train_size": 100}, "train_size 100x100 is smaller than image_size 224x224"),
    ],
)
def test_impossible_arguments_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CSVImages("t.csv", **options)


@pytest.mark.parametrize("labels", [{"separator": "|"}, {}], ids=["several", "one"])
def test_a_balanced_epoch_needs_one_label_an_image(labels: dict[str, str], tmp_path: Path) -> None:
    data = CSVImages(
        many(tmp_path), sampler="balanced", val_fraction=0, test_fraction=0, batch_size=60, **ONE, **labels
    )
    if labels:
        with pytest.raises(
            ValueError, match=r"^sampler='balanced' draws .* but CSVImages has several labels an image; use"
        ):
            data.setup()
    else:
        assert next(iter(data.train_dataloader()))[1].bincount().tolist() == [30, 30]


def test_arguments_that_folders_and_tables_share_have_equal_defaults() -> None:
    folder, table = (inspect.signature(source).parameters for source in (ImageFolder, CSVImages))
    shared = folder.keys() & table.keys()

    assert folder.keys() - shared == set()
    assert {name: folder[name].default for name in shared} == {name: table[name].default for name in shared}

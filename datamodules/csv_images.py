"""Image files and their labels from a table."""

import os
from pathlib import Path
from typing import Literal

from torch import Tensor

from lightning_vision.images import Resize

from .augmentation.policies import Augment
from .common._file_source import SPLIT_NAMES, FileSource, Found
from .common._loader import Sampler
from .common._sets import OnBadImage
from .common._table import Table, at_lines, read_table
from .common._table_labels import name_targets, refuse_empty, truth_targets

__all__ = ["CSVImages"]

SPLITS = {name: split for split, names in SPLIT_NAMES.items() for name in names} | {"predict": "predict"}


class CSVImages(FileSource):
    """Image files that a CSV lists, with one label each or several, split by a column or by a seeded stratified draw.

    One row an image; the first line names the columns. One column of names is a class an image. Several labels an image
    stand in one column, joined by `separator` (`cat|dog`; the separator alone says that none applies), or in one column
    a class, of 0 and 1. Classes are sorted, by number where all names are whole numbers; columns keep their order. A
    draw depends on `split_seed` and the rows' paths and labels alone: single labels are divided class by class, several
    by iterative stratification. Everything is checked at set-up, and what is wrong is named by its lines.

    Args:
        csv: The table, UTF-8, cells parted by comma, semicolon, tab or bar.
        root: Folder that relative paths start from; by default that of `csv`.
        path_column: Column of the image files.
        label_columns: Column of the labels, or a list of columns of 0 and 1; None where nothing is labelled: all rows
            are there to predict.
        separator: What joins several labels in a cell; None where each image has one.
        split_column: Column that says `train`, `val` (or `valid`, `validation`), `test` or `predict`, whose labels are
            not read; None draws all three, and without `val` it is drawn from the training rows.
        delimiter: What stands between cells; None finds out.
        image_size: Height and width, pixels, or one number for both.
        train_size: Height and width at which training images are decoded, as in `ImageFolder`.
        eval_size: Likewise for validation, test and prediction, and so in `preprocessing`.
        channels: 3 for colour, 1 for grey; every image is converted.
        resize: `crop` keeps the aspect ratio and cuts the middle out, `squash` does not keep it.
        on_bad_image: At a file that cannot be decoded, `error` stops and names it, `skip` leaves it out of its batch
            and reports count and names at the epoch's end.
        val_fraction: Share drawn for validation where no row says `val`.
        test_fraction: Share drawn for testing where there is no `split_column`.
        predict_root: Folder of images without labels for prediction, or one file; by default the rows that say
            `predict`, or else the test set.
        augment: What training images go through on the device, drawn anew each epoch: the name of a policy, a policy's
            YAML file, an `Augmentation`, or a list of these; "none" is neutral.
        sampler: `all` visits every training image once an epoch; `balanced` as many of every class, where an image has
            one.
        mean: Per channel, of pixels in 0..1; by default ImageNet's, as pretrained networks expect.
        std: Standard deviation, likewise.
        batch_size: Samples in a batch of one process.
        num_workers: Processes that decode.
        seed: Fixes the order and the augmentation of every epoch.
        split_seed: Fixes what is drawn for validation and testing.
        drop_last: Leave out of an epoch of training what does not fill a batch.
        multiprocessing_context: How workers start; None is the system's default.
        labels_per_class: Train on so many images of every class, chosen by `split_seed`, the same in every epoch;
            validation and test stay whole. None takes all.

    Shape:
        uint8 `(B, channels, H, W)`; targets int64 `(B,)`, with several labels float32 `(B, K)` of 0 and 1.

    Raises:
        FileNotFoundError: at set-up, the table or images that it names are missing.
        ValueError: at set-up, the table cannot be read, lacks a column or has it twice; a cell is empty, is none of 0
            and 1 or names no split; an image stands in two rows; a label is not trained; an argument is out of its
            range.
        BadImageError: at a damaged file, with `on_bad_image="error"`.
    """

    def __init__(
        self,
        csv: str | Path,
        root: str | Path | None = None,
        path_column: str = "path",
        label_columns: str | list[str] | None = "label",
        separator: str | None = None,
        split_column: str | None = None,
        delimiter: str | None = None,
        image_size: int | tuple[int, int] = 224,
        train_size: int | tuple[int, int] | None = None,
        eval_size: int | tuple[int, int] | None = None,
        channels: int = 3,
        resize: Resize = "crop",
        on_bad_image: OnBadImage = "error",
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        predict_root: str | Path | None = None,
        augment: Augment = "light",
        sampler: Sampler = "all",
        mean: list[float] | None = None,
        std: list[float] | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
        split_seed: int = 0,
        drop_last: bool = False,
        multiprocessing_context: Literal["fork", "spawn", "forkserver"] | None = None,
        labels_per_class: int | None = None,
    ) -> None:
        super().__init__(
            image_size=image_size,
            train_size=train_size,
            eval_size=eval_size,
            channels=channels,
            resize=resize,
            on_bad_image=on_bad_image,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            split_seed=split_seed,
            predict_root=predict_root,
            mean=mean,
            std=std,
            augment=augment,
            sampler=sampler,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            drop_last=drop_last,
            multiprocessing_context=multiprocessing_context,
            labels_per_class=labels_per_class,
        )
        labels = [label_columns] if isinstance(label_columns, str) else list(label_columns or ())
        columns = [path_column, *labels, *([] if split_column is None else [split_column])]
        if label_columns is not None and not labels:
            raise ValueError("label_columns is an empty list; name the columns, or pass None where nothing is labelled")
        if twice := [name for name in columns if columns.count(name) > 1]:
            raise ValueError(f"the column {twice[0]!r} has two meanings in path_column, label_columns and split_column")
        if label_columns is None and split_column is not None:
            raise ValueError(
                f"split_column {split_column!r} has nothing to split: without label_columns all is predicted"
            )
        if separator is not None and len(labels) != 1:
            raise ValueError(
                f"separator {separator!r} joins labels in one column, but label_columns names {len(labels)}"
            )
        if separator is not None and (not separator.strip() or separator == delimiter):
            raise ValueError(f"separator {separator!r} must be some text other than spaces and the delimiter: give '|'")
        if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
            raise ValueError(f"delimiter {delimiter!r} must be one character, such as ',' or ';'")
        self.csv, self.path_column, self.label_columns, self.separator = Path(csv), path_column, labels, separator
        self.root = self.csv.parent if root is None else Path(root)
        self.split_column, self.delimiter = split_column, delimiter
        self.multilabel = separator is not None or len(labels) > 1

    def find(self) -> Found:
        needed = {self.path_column: "path_column"} | dict.fromkeys(self.label_columns, "label_columns")
        if self.split_column is not None:
            needed[self.split_column] = "split_column"
        table = read_table(self.csv, needed, self.delimiter)
        cells = table.columns[self.path_column]
        paths = self._paths(table)
        rows = self._rows(table)
        splits: dict[str, tuple[list[str], Tensor | None]] = {}
        if predicted := rows.pop("predict"):
            if self.predict_root is not None:
                raise ValueError(
                    f"{self.csv} has {len(predicted)} rows to predict and predict_root is {self.predict_root}; drop one"
                )
            splits["predict"] = [paths[row] for row in predicted], None
        if not self.label_columns:
            return [], splits
        if not rows["train"]:
            raise ValueError(f"{self.csv} has no row to train on; let some say train in {self.split_column!r}")
        if len(self.label_columns) > 1:
            names, targets = truth_targets(table, self.label_columns, rows)
        else:
            names, targets = name_targets(table, self.label_columns[0], self.separator, rows)
        for split, chosen in rows.items():
            if chosen:
                splits[split] = [paths[row] for row in chosen], targets[chosen]
        if not rows["val"]:
            train = rows["train"]
            test = self.split_column is None
            splits |= self.draw([paths[row] for row in train], targets[train], [cells[row] for row in train], test)
        return names, splits

    def _paths(self, table: Table) -> list[str]:
        """The file of each row; each exists and stands in one row only."""
        cells = table.columns[self.path_column]
        refuse_empty(table, self.path_column, range(len(cells)))
        paths = [os.path.join(self.root, cell) for cell in cells]
        if missing := [row for row, path in enumerate(paths) if not os.path.isfile(path)]:
            named = ", ".join(f"{cells[row]} (line {table.lines[row]})" for row in missing[:5])
            raise FileNotFoundError(
                f"{len(missing)} of {len(paths)} images in {table.file} are not there: {named}"
                f"{', ...' if len(missing) > 5 else ''}; relative paths start from {self.root}, pass root or "
                "mend the rows"
            )
        first: dict[str, int] = {}
        for row, file in enumerate(map(os.path.abspath, paths)):
            if first.setdefault(file, row) != row:
                raise ValueError(
                    f"{at_lines([table.lines[first[file]], table.lines[row]])} of {table.file} both name {cells[row]}; "
                    "give each image one row, several labels go into one cell with a separator"
                )
        return paths

    def _rows(self, table: Table) -> dict[str, list[int]]:
        """Numbers of the rows of each split; without a split column of labelled rows all train until they are drawn."""
        rows: dict[str, list[int]] = {"train": [], "val": [], "test": [], "predict": []}
        if self.split_column is None:
            rows["train" if self.label_columns else "predict"] = list(range(len(table.lines)))
            return rows
        refuse_empty(table, self.split_column, range(len(table.lines)))
        wrong: dict[str, list[int]] = {}
        for row, name in enumerate(table.columns[self.split_column]):
            if name in SPLITS:
                rows[SPLITS[name]].append(row)
            else:
                wrong.setdefault(name, []).append(table.lines[row])
        if wrong:
            named = ", ".join(f"{name!r} in {at_lines(lines)}" for name, lines in list(wrong.items())[:5])
            raise ValueError(
                f"{self.split_column!r} of {table.file} names no split: {named}; write "
                f"{', '.join(SPLIT_NAMES)} or predict"
            )
        return rows

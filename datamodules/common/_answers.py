"""Teachers' answers in a folder: `answers.npy`, a table that is mapped, and `store.json`, what it belongs to.

Entry n of sample i stands in row `i + n * samples`, which is also the position by which sets and augmentations know
the n-th copy of a sample. Which command made a store says what its rows are: probabilities of augmented images, or
scores of every cell of images as they are. Neither file holds code.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["AnswerStore"]

ANSWERS, INDEX = "answers.npy", "store.json"
FORMAT = 1
CHUNK = 2**24
# By the command that makes them: how the number beside a class is called and kept.
VALUES = {"reinforce": ("probability", "<f4"), "relabel": ("score", "<f2")}


class AnswerStore:
    """The classes that teachers found most probable in every entry, with a number for each.

    A probability takes 4 bytes, as it was computed, a score 2, a class 2 (4 where there are more than 65,536).

    Args:
        folder: Holds both files.
        index: What `store.json` says.

    Attributes:
        index: `num_samples` entries of each of `samples` images, `top_k` classes of `num_classes`, `done` rows, where
            entries have cells `map_size`, the `command` that makes the store, and more that readers compare.
    """

    def __init__(self, folder: str | Path, index: dict[str, Any]) -> None:
        self.folder, self.index = Path(folder), index
        self._rows: np.memmap[Any, Any] | None = None

    @classmethod
    def create(cls, folder: str | Path, index: dict[str, Any]) -> "AnswerStore":
        """An empty store; `index` lacks what is counted here."""
        store = cls(folder, {"format": FORMAT, **index, "done": 0, "checksum": None})
        shape, kind = store._form()
        np.lib.format.open_memmap(store.folder / ANSWERS, "w+", kind, shape).flush()
        store.save(0)
        return store

    @classmethod
    def read(cls, folder: str | Path, command: str = "reinforce") -> "AnswerStore":
        """The store in a folder, complete or not.

        Args:
            folder: Holds both files.
            command: What it should have been made by.

        Raises:
            ValueError: there is none, another command made it, or one of its files is damaged.
        """
        folder = Path(folder)
        if not (folder / INDEX).is_file():
            raise ValueError(f"there is no store in {folder}; make one with `lightning_vision {command} --output`")
        try:
            store = cls(folder, json.loads((folder / INDEX).read_text(encoding="utf-8")))
            shape, kind = store._form()
            table = np.load(folder / ANSWERS, mmap_mode="r", allow_pickle=False)
            whole = store.index["format"] == FORMAT and (table.shape, table.dtype) == (shape, kind)
            if whole and store.complete:
                whole = store.checksum() == store.index["checksum"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(store_damaged(folder, command)) from error
        if not whole:
            raise ValueError(store_damaged(folder, command))
        if store.command != command:
            raise ValueError(
                f"the store in {folder} was made by `lightning_vision {store.command}`, not by `lightning_vision "
                f"{command}`; give the store of that"
            )
        return store

    @property
    def command(self) -> str:
        """What makes it."""
        return str(self.index.get("command", "reinforce"))

    @property
    def rows(self) -> int:
        """How many entries there are of all samples together."""
        count: int = self.index["num_samples"] * self.index["samples"]
        return count

    @property
    def complete(self) -> bool:
        """Whether all entries have been answered."""
        return self.index["checksum"] is not None

    def write(self, row: Tensor, classes: Tensor, values: Tensor) -> None:
        """Keep what was answered.

        Args:
            row: int64 `(B,)`.
            classes: int64 `(B, top_k)` or `(B, h, w, top_k)`, the most probable first.
            values: Theirs, float32 of the same shape.
        """
        table = self._table("r+")
        record = np.empty(classes.shape, table.dtype)
        record["class"], record[self._value] = classes.numpy(), values.numpy()
        table[row.numpy()] = record

    def leave_out(self, row: Tensor) -> None:
        """Keep that there is no answer in the rows `row`, int64 `(B,)`, for their image cannot be read."""
        table = self._table("r+")
        record = np.zeros((len(row), *table.shape[1:]), table.dtype)
        record[self._value] = np.nan
        table[row.numpy()] = record

    def save(self, done: int, **more: Any) -> None:
        """Put on disk what was written; the first `done` rows count, and `more` joins the index.

        The last of all rows closes the store.
        """
        self._table("r+").flush()
        self.index |= {"done": done, **more}
        if done == self.rows:
            self.index["checksum"] = self.checksum()
        part = self.folder / f".{INDEX}.part"
        part.write_text(json.dumps(self.index, indent=1), encoding="utf-8")
        part.replace(self.folder / INDEX)

    def packed(self, row: Tensor) -> Tensor:
        """Classes and, as their bits, float32 values of entries: int32 `(B, 2, top_k)` or `(B, 2, h, w, top_k)`.

        Whole numbers, because a Trainer in half precision would round the classes, too.

        Raises:
            IndexError: an entry was never answered; names its row.
        """
        record = self._table("r")[row.numpy()]
        values = np.ascontiguousarray(record[self._value], np.float32)
        first = values.reshape(len(values), -1)[:, 0]
        # The most probable class has at least 1 / num_classes, so nothing but an empty row begins with zero.
        empty = np.isnan(first) | ((first == 0) & (self.command == "reinforce"))
        if (at := np.flatnonzero(empty)).size:
            raise IndexError(int(row[at[0]]))
        return torch.from_numpy(np.stack([record["class"].astype(np.int32), values.view(np.int32)], 1))

    def checksum(self) -> int:
        """CRC-32 of the table's file."""
        found = 0
        with (self.folder / ANSWERS).open("rb") as file:
            while chunk := file.read(CHUNK):
                found = zlib.crc32(chunk, found)
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": None}

    def _table(self, mode: str) -> "np.memmap[Any, Any]":
        if self._rows is None or (mode == "r+" and self._rows.mode == "r"):
            self._rows = np.lib.format.open_memmap(self.folder / ANSWERS, mode)
        return self._rows

    @property
    def _value(self) -> str:
        return VALUES[self.command][0]

    def _form(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and kind of the table."""
        shape = (self.rows, *self.index.get("map_size", ()), self.index["top_k"])
        number = "<u2" if self.index["num_classes"] <= 2**16 else "<u4"
        return shape, np.dtype([("class", number), VALUES[self.command]])


def store_damaged(folder: Path, command: str) -> str:
    """What is said of files that are not what `create` and `save` made."""
    return f"the store in {folder} is damaged; make it again with `lightning_vision {command} --overwrite`"

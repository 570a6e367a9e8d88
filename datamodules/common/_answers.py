"""Teachers' answers in a folder: `answers.npy`, a table that is mapped, and `store.json`, what it belongs to.

Entry n of sample i stands in row `i + n * samples`, which is also the position by which sets and augmentations know
the n-th copy of a sample. Neither file holds code.
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


class AnswerStore:
    """The classes that teachers found most probable in every entry, with their probabilities.

    A probability takes 4 bytes, as it was computed, a class 2 (4 where there are more than 65,536).

    Args:
        folder: Holds both files.
        index: What `store.json` says.

    Attributes:
        index: `num_samples` entries of each of `samples` images, `top_k` classes of `num_classes`, `seed` of the draws,
            `done` rows, and more that readers compare.
    """

    def __init__(self, folder: str | Path, index: dict[str, Any]) -> None:
        self.folder, self.index = Path(folder), index
        self._rows: np.memmap[Any, Any] | None = None

    @classmethod
    def create(cls, folder: str | Path, index: dict[str, Any]) -> "AnswerStore":
        """An empty store; `index` lacks what is counted here."""
        store = cls(folder, {"format": FORMAT, **index, "done": 0, "checksum": None})
        shape = (store.rows, index["top_k"])
        np.lib.format.open_memmap(store.folder / ANSWERS, "w+", _kind(index["num_classes"]), shape).flush()
        store.save(0)
        return store

    @classmethod
    def read(cls, folder: str | Path) -> "AnswerStore":
        """The store in a folder, complete or not.

        Raises:
            ValueError: there is none, or one of its files is damaged.
        """
        folder = Path(folder)
        if not (folder / INDEX).is_file():
            raise ValueError(f"there is no store in {folder}; make one with `lightning_vision reinforce --output`")
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            store = cls(folder, index)
            wanted = (store.rows, index["top_k"]), _kind(index["num_classes"])
            table = np.load(folder / ANSWERS, mmap_mode="r", allow_pickle=False)
            whole = index["format"] == FORMAT and (table.shape, table.dtype) == wanted
            if whole and index["checksum"] is not None:
                whole = store.checksum() == index["checksum"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(store_damaged(folder)) from error
        if not whole:
            raise ValueError(store_damaged(folder))
        return store

    @property
    def rows(self) -> int:
        """How many entries there are of all samples together."""
        count: int = self.index["num_samples"] * self.index["samples"]
        return count

    @property
    def complete(self) -> bool:
        """Whether all entries have been answered."""
        return self.index["checksum"] is not None

    def write(self, row: Tensor, classes: Tensor, probabilities: Tensor) -> None:
        """Keep what was answered.

        Args:
            row: int64 `(B,)`.
            classes: int64 `(B, top_k)`, the most probable first.
            probabilities: Theirs, float32 `(B, top_k)`.
        """
        table = self._table("r+")
        record = np.empty(classes.shape, table.dtype)
        record["class"], record["probability"] = classes.numpy(), probabilities.numpy()
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
        """Classes and, as their bits, float32 probabilities of entries: int32 `(B, 2, top_k)`.

        Whole numbers, because a Trainer in half precision would round the classes, too.

        Raises:
            IndexError: an entry was never answered; names its row.
        """
        record = self._table("r")[row.numpy()]
        # The most probable class has at least 1 / num_classes, so nothing but an empty row begins with zero.
        if (empty := np.flatnonzero(record["probability"][:, 0] == 0)).size:
            raise IndexError(int(row[empty[0]]))
        both = record["class"].astype(np.int32), np.ascontiguousarray(record["probability"]).view(np.int32)
        return torch.from_numpy(np.stack(both, 1))

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


def store_damaged(folder: Path) -> str:
    """What is said of files that are not what `create` and `save` made."""
    return f"the store in {folder} is damaged; make it again with `lightning_vision reinforce --overwrite`"


def _kind(num_classes: int) -> np.dtype[Any]:
    return np.dtype([("class", "<u2" if num_classes <= 2**16 else "<u4"), ("probability", "<f4")])

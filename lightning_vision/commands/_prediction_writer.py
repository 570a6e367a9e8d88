"""Writing predictions while they are made, whatever they say: parts of each rank, which rank 0 merges."""

import heapq
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only

__all__ = ["JSONL", "PNG", "PredictionFiles", "PredictionWriter", "merged"]

JSONL, PNG = "predictions.jsonl", "predictions.png"


class PredictionFiles(ABC):
    """What is written of a kind of prediction: the records of a batch, and the files made of all records."""

    names: Mapping[str, str]
    """The files by what a caller knows them as; `jsonl` is among them."""

    @abstractmethod
    def count(self, module: LightningModule, outputs: Any) -> int:
        """How many images the output of a `predict_step` is about.

        Raises:
            ValueError: it is not of this kind.
        """

    @abstractmethod
    def records(
        self,
        module: LightningModule,
        datamodule: Any,
        outputs: Mapping[str, Any],
        index: list[int],
        paths: Sequence[str | None],
    ) -> list[dict[str, Any]]:
        """One record an image, with its `index`."""

    @abstractmethod
    def write(self, parts: Sequence[Path], folder: Path) -> None:
        """Make the files of the records in all parts; one record a part is held."""

    @abstractmethod
    def draw(self, datamodule: Any, jsonl: Path, count: int, png: Path) -> None:
        """Draw a sheet of `count` images with what was predicted."""


class PredictionWriter(Callback):
    """Writes predictions while they are made: each rank a part, which rank 0 merges in dataset order at the end.

    Memory holds one batch. The parts lie in a hidden folder; the final files appear when they are complete.

    Args:
        folder: Gets the files; all ranks must see it, rank 0's choice counts.
        files: What is written.
    """

    def __init__(self, folder: Path, files: PredictionFiles) -> None:
        self.folder, self.files = folder, files
        self._part: IO[str] | None = None
        self._last = -1

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Ranks that start later find a folder for a new run of their own.
        self.folder = trainer.strategy.broadcast(self.folder)
        self._scratch.mkdir(exist_ok=True)
        self._part = self._part_of(trainer.global_rank).open("w", encoding="utf-8")

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        index = self._index(trainer, outputs, self.files.count(pl_module, outputs))
        datamodule = getattr(trainer, "datamodule", None)
        paths = getattr(datamodule, "predict_paths", None)
        files = [paths[i] for i in index] if paths else [None] * len(index)
        assert self._part is not None
        for record in self.files.records(pl_module, datamodule, outputs, index, files):
            self._part.write(json.dumps(record) + "\n")

    def on_predict_end(self, trainer: Trainer, pl_module: Any) -> None:
        assert self._part is not None
        self._part.close()
        trainer.strategy.barrier("every part is written")
        if trainer.is_global_zero:
            self.files.write([self._part_of(rank) for rank in range(trainer.world_size)], self._scratch)
            for name in self.files.names.values():
                made, place = self._scratch / name, self.folder / name
                # A folder of an earlier prediction keeps what has another name.
                pairs = [(it, place / it.name) for it in made.iterdir()] if place.is_dir() else [(made, place)]
                for source, target in pairs:
                    source.replace(target)
        trainer.strategy.barrier("the parts are merged")

    @rank_zero_only
    def clean_up(self) -> None:
        """Remove the parts."""
        shutil.rmtree(self._scratch, ignore_errors=True)

    @property
    def _scratch(self) -> Path:
        return self.folder / ".predictions"

    def _part_of(self, rank: int) -> Path:
        return self._scratch / f"rank_{rank}.jsonl"

    def _index(self, trainer: Trainer, outputs: Mapping[str, Any], count: int) -> list[int]:
        start = self._last + 1
        source = type(getattr(trainer, "datamodule", None)).__name__
        if "index" in outputs:
            index: list[int] = outputs["index"].tolist()
        elif trainer.world_size == 1:
            index = list(range(start, start + count))
        else:
            raise ValueError(f"batches of {source} have no `index` to merge the processes by; use --trainer.devices 1")
        if any(later <= earlier for earlier, later in pairwise([self._last, *index])):
            raise ValueError(f"{source} predicts samples twice or out of order; give it one loader, without shuffling")
        self._last = index[-1]
        return index


@contextmanager
def merged(parts: Sequence[Path]) -> Iterator[Iterator[dict[str, Any]]]:
    """The records of all parts in the order of their index, one of each part in memory.

    Args:
        parts: JSON Lines, the indices of each ascending.

    Raises:
        FileNotFoundError: a part is missing, so the folder is not the same for all ranks.
        ValueError: while they are read, two parts hold the same index.
    """
    if missing := [part for part in parts if not part.exists()]:
        raise FileNotFoundError(f"{missing[0]} is missing; set --output to a folder that all ranks see")
    with ExitStack() as stack:
        lines = (map(json.loads, stack.enter_context(part.open(encoding="utf-8"))) for part in parts)
        yield _each_once(heapq.merge(*lines, key=lambda record: record["index"]))


def _each_once(records: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    last = None
    for record in records:
        if record["index"] == last:
            raise ValueError(f"sample {last} was predicted by two processes; let the datamodule shard by rank")
        last = record["index"]
        yield record

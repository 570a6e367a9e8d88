"""Digits, the entries of a store that replay them, and what the teacher said of each."""

import tempfile
from pathlib import Path

import torch
from matplotlib.figure import Figure

from lightning_vision.datamodules import Digits, Reinforced
from lightning_vision.datamodules.augmentation import RandomErasing
from lightning_vision.datamodules.common._answers import AnswerStore
from lightning_vision.datamodules.common._fingerprint import fingerprint

from ._trained_digits import digits, rows_of, trained

__all__ = ["draw"]

ENTRIES, KNOWN, TEMPERATURE = 4, 3, 2.0
SHOWN = (1, 31, 69)


def draw() -> Figure:
    """A row a digit: as it is, and the entries of a store, each with the teacher's three most probable classes."""
    teacher = trained(digits()[1], 10)
    data = Digits(shift=1, augment=[RandomErasing(0.7, scale=(0.1, 0.3))])
    data.setup()
    images = data.train_set
    assert images is not None
    with tempfile.TemporaryDirectory() as folder:
        settings = {"samples": len(images), "num_samples": ENTRIES, "num_classes": 10, "top_k": KNOWN, "seed": 0}
        store = AnswerStore.create(folder, {**settings, "data": fingerprint(data, 0)})
        row = torch.arange(store.rows)
        seen = data.augment(images.fetch(row).image, row, 0)
        with torch.no_grad():
            top = (teacher(seen.float() / 255) / TEMPERATURE).softmax(1).topk(KNOWN)
        store.write(row, top.indices, top.values)
        store.save(store.rows)
        reinforced = Reinforced(data, Path(folder))
        reinforced.setup("fit")
        rows = []
        for sample in SHOWN:
            row = sample + len(images) * torch.arange(ENTRIES)
            fetched = images.fetch(torch.cat([row[:1], row]))
            replayed = reinforced.augment(fetched.image[1:], row, 0)
            pairs = zip(top.indices[row].tolist(), top.values[row].tolist(), strict=True)
            said = ["\n".join(f"{k}: {share:.2f}" for k, share in zip(*pair, strict=True)) for pair in pairs]
            pixels = torch.cat([fetched.image[:1], replayed]).float() / 255
            rows.append(("", pixels, [f"labelled {int(fetched.target[0])}", *said]))  # type: ignore[index]  # digits
        return rows_of(rows)

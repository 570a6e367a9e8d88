"""What reading and comparing images costs, beside scikit-learn's search for neighbours and a difference hash."""

import torch
import torch.nn.functional as F
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from lightning_vision.callbacks.verification.data_leak_check import digest, nearest, thumbnails

from .side_by_side import Row, take_turns, unprepared

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Hash 50,000 images of 3x32x32 and compare 10,000 others with them.

    Args:
        quick: One repetition of 500 and 100 images.
    """
    count, others = (500, 100) if quick else (50_000, 10_000)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    # Coarse as pictures are, not as noise is.
    coarse = torch.rand(count + others, 1, 4, 4, generator=generator)
    bank, queries = thumbnails(F.interpolate(coarse, 8, mode="bicubic")).split([count, others])
    bits = torch.rand(count + others, 128, generator=generator) > 0.5
    times = take_turns(
        {
            "digests": unprepared(lambda: [digest(it) for it in images]),
            "thumbnails": unprepared(lambda: [thumbnails(it) for it in images.split(512)]),
            "difference hash": unprepared(lambda: [difference_hash(it) for it in images.split(512)]),
            "ours": unprepared(lambda: nearest(queries, bank)),
            "scikit-learn": unprepared(lambda: neighbours(bank, queries)),
            "hamming": unprepared(lambda: hamming(bits[count:], bits[:count])),
        },
        *(1, 0) if quick else (5, 1),
    )
    cpu = {name: clocks["cpu"] for name, clocks in times.items()}
    hashed, compared = f"{count:,} images of 3x32x32", f"{others:,} images with {count:,}"
    small = f"thumbnails of {hashed}"
    return [
        Row(f"digests of {hashed}", "", cpu["digests"], "cpu"),
        Row.slowdown(small, "a difference hash of 128 bits, by hand", cpu["thumbnails"], cpu["difference hash"], "cpu"),
        Row.slowdown(compared, "scikit-learn's `NearestNeighbors`", cpu["ours"], cpu["scikit-learn"], "cpu", "<= 1.00"),
        Row.slowdown(compared, "Hamming distances of 128 bits, by hand", cpu["ours"], cpu["hamming"], "cpu"),
    ]


def difference_hash(images: Tensor) -> Tensor:
    """128 bits an image: whether a pixel of a small grey copy is brighter than that to its left, and above it."""
    grey = images.float().mean(1, keepdim=True)
    wide, high = (F.adaptive_avg_pool2d(grey, size)[:, 0] for size in ((8, 9), (9, 8)))
    return torch.cat([(wide.diff(dim=2) > 0).flatten(1), (high.diff(dim=1) > 0).flatten(1)], 1)


def neighbours(bank: Tensor, queries: Tensor) -> object:
    search = NearestNeighbors(n_neighbors=1, metric="cosine", algorithm="brute").fit(bank.numpy())
    return search.kneighbors(queries.numpy())


def hamming(queries: Tensor, bank: Tensor) -> list[Tensor]:
    signs = bank.float() * 2 - 1
    return [((it.float() * 2 - 1) @ signs.T).max(1).values for it in queries.split(512)]

"""What a vote of neighbours costs at a thousand classes, beside lightly's and beside its matrix product."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from lightly.utils.benchmarking import knn_predict as lightly_knn_predict

from lightning_vision.callbacks import knn_predict

from .side_by_side import Row, Side, take_turns, unprepared

__all__ = ["rows"]

CLASSES = 1000
DINOV2 = [10, 20, 100, 200]


def rows(quick: bool) -> list[Row]:
    """Vote on 512 queries against 50,000 images of 128 features and 20,000 of 512, k 200.

    Args:
        quick: One repetition of 128 queries against 50,000 images.
    """
    found = []
    sizes = [(50_000, 128, 128)] if quick else [(50_000, 128, 512), (20_000, 512, 512)]
    for bank, width, queries in sizes:
        generator = torch.Generator().manual_seed(0)
        features = F.normalize(torch.randn(bank + queries, width, generator=generator), dim=1)
        found += _compared(features[queries:], features[:queries], generator, (1, 0) if quick else (7, 1))
    return found


def _compared(bank: torch.Tensor, asked: torch.Tensor, generator: torch.Generator, turns: tuple[int, int]) -> list[Row]:
    labels = torch.randint(CLASSES, (len(bank),), generator=generator)
    turned = bank.T.contiguous()

    def theirs() -> torch.Tensor:
        predicted: torch.Tensor = lightly_knn_predict(asked, turned, labels, CLASSES, 200, 0.1)[:, 0]
        return predicted

    if (share := float((knn_predict(asked, bank, labels) == theirs()).double().mean())) < 0.999:
        raise AssertionError(f"lightly and we agree on {share:.2%} of the queries")
    chunks = list(pairwise([*range(0, len(asked), 256), len(asked)]))
    sides: dict[str, Side] = {
        "ours": unprepared(lambda: knn_predict(asked, bank, labels)),
        "several": unprepared(lambda: knn_predict(asked, bank, labels, DINOV2)),
        "lightly": unprepared(theirs),
        "product": unprepared(lambda: [asked[start:stop] @ bank.T for start, stop in chunks]),
    }
    times = {name: clocks["cpu"] for name, clocks in take_turns(sides, *turns).items()}
    what = f"{len(asked)} queries, {len(bank):,} x {bank.shape[1]}, {CLASSES:,} classes, k 200"
    return [
        Row.slowdown(what, "lightly's `knn_predict`", times["ours"], times["lightly"], "cpu", "<= 0.25"),
        Row.slowdown(what, "its matrix product alone", times["ours"], times["product"], "cpu", "<= 1.60"),
        Row.slowdown(f"{what}; and 10, 20, 100", "k 200 alone", times["several"], times["ours"], "cpu", "<= 1.20"),
    ]

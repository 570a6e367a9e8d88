"""What numbers about features cost: rank, spread and uniformity beside others' ways to find them."""

from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from lightly.utils.debug import std_of_l2_normalized

from lightning_vision.callbacks import Representation, feature_spread, rank_me, uniformity

from .probed import Featured, split
from .side_by_side import Row, Side, take_turns, unprepared
from .validations import validating

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Measure 5,000 images of 512 features, and validate `resnet20_cifar` on ten batches of 64.

    Args:
        quick: One repetition of 300 images and two batches.
    """
    features = torch.randn(300 if quick else 5000, 512, generator=torch.Generator().manual_seed(0))
    batches = split(quick)
    with TemporaryDirectory() as folder:
        sides: dict[str, Side] = {
            "rank": unprepared(lambda: rank_me(features)),
            "values": unprepared(lambda: torch.linalg.svdvals(features.double())),
            "spread": unprepared(lambda: [feature_spread(features) for _ in range(10)]),
            "lightly": unprepared(lambda: [std_of_l2_normalized(features) for _ in range(10)]),
            "uniformity": unprepared(lambda: uniformity(features)),
            "pairs": unprepared(lambda: torch.pdist(F.normalize(features, dim=1)).pow(2).mul(-2).exp().mean().log()),
            "plain": validating(batches, folder, kind=Featured),
            "probed": validating(batches, folder, Representation(), kind=Featured),
        }
        times = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (7, 1)).items()}
    what = f"of {len(features):,} images, 512 features"
    return [
        Row.slowdown(f"the rank {what}", "torch's singular values", times["rank"], times["values"], "cpu", "<= 1.00"),
        Row.slowdown(
            f"ten spreads {what}",
            "lightly's `std_of_l2_normalized`",
            times["spread"],
            times["lightly"],
            "cpu",
            "<= 1.20",
        ),
        Row.slowdown(
            f"the uniformity {what}", "torch's `pdist`", times["uniformity"], times["pairs"], "cpu", "<= 1.00"
        ),
        Row.slowdown("a validation", "without it", times["probed"], times["plain"], "cpu"),
    ]

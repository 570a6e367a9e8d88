"""What a linear classifier that trains along costs: its own step beside lightly's, and a training with and without."""

import torch
from lightly.utils.benchmarking import OnlineLinearClassifier

from lightning_vision.callbacks import OnlineProbe

from .fits import fitting
from .probed import Featured, split
from .side_by_side import Row, Side, take_turns, unprepared

__all__ = ["rows"]

BATCH, WIDTH, CLASSES = 256, 512, 100


def rows(quick: bool) -> list[Row]:
    """Step a classifier of 512 features, and train `resnet20_cifar` on ten batches of 64.

    Args:
        quick: One repetition of two batches.
    """
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(BATCH, WIDTH, generator=generator)
    targets = torch.randint(CLASSES, (BATCH,), generator=generator)
    probe = OnlineProbe(num_classes=CLASSES)
    probe.begin(features)
    theirs = OnlineLinearClassifier(WIDTH, CLASSES)
    optimizer = torch.optim.Adam(theirs.parameters())

    def lightly_step() -> None:
        loss, _ = theirs.training_step((features, targets), 0)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch declares no types there
        optimizer.step()

    by_hand = torch.nn.Linear(WIDTH, CLASSES)
    adam = torch.optim.Adam(by_hand.parameters())

    def hand_step() -> None:
        adam.zero_grad()
        torch.nn.functional.cross_entropy(by_hand(features), targets).backward()
        adam.step()

    batches = split(quick)
    sides: dict[str, Side] = {
        "ours": unprepared(lambda: [probe.step(probe.gradient(features, targets)) for _ in range(20)]),
        "lightly": unprepared(lambda: [lightly_step() for _ in range(20)]),
        "hand": unprepared(lambda: [hand_step() for _ in range(20)]),
        "plain": fitting(Featured, batches, 1),
        "probed": fitting(Featured, batches, 1, OnlineProbe),
    }
    times = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (7, 1)).items()}
    what = f"20 steps of the classifier, {BATCH} x {WIDTH}, {CLASSES} classes"
    return [
        Row.slowdown(what, "lightly's `OnlineLinearClassifier`", times["ours"], times["lightly"], "cpu", "<= 1.00"),
        Row.slowdown(what, "a linear layer by hand", times["ours"], times["hand"], "cpu"),
        Row.slowdown("an epoch of `resnet20_cifar`", "without it", times["probed"], times["plain"], "cpu", "<= 1.50"),
    ]

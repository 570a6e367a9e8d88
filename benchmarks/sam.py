"""A SAM step in the Trainer against two plain steps there, and against another SAM in a loop written by hand."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytorch_optimizer
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

from lightning_vision.backbones import create
from lightning_vision.callbacks import SAM

from .fits import Batches, Plain, batches_of, fitting
from .logging_tax import cnn
from .side_by_side import Row, take_turns

__all__ = ["rows"]

RHO = 0.05


def rows(quick: bool) -> list[Row]:
    """Train a ResNet-20, whose arithmetic outweighs any loop, and a small network, where the loop shows.

    Args:
        quick: One repetition of one or two steps on small batches.
    """
    resnet = partial(create, "resnet20_cifar", num_classes=10, in_channels=3)
    turns = (1, 0) if quick else (7, 1)
    # Enough steps that what a fit costs before its first does not show.
    images, few = batches_of(*(4, 2) if quick else (64, 15)), batches_of(32, 1 if quick else 200)
    return [
        *_rows("`resnet20_cifar`, batch 64", resnet, images, *turns, ("<= 1.05", "<= 1.00")),
        *_rows("CNN-16, batch 32", cnn, few, *turns, ("", "")),
        _memory(resnet, images[:2]),
    ]


def _rows(
    what: str, network: Callable[[], nn.Module], batches: Batches, repetitions: int, warmup: int, bars: tuple[str, str]
) -> list[Row]:
    ends: dict[str, nn.Module] = {}

    def by_hand() -> Callable[[], None]:
        fresh = _started(network)
        return lambda: ends.update(peer=_by_hand(fresh, batches))

    def ours() -> Callable[[], None]:
        run = fitting(lambda: Plain(_started(network)), batches, 1, partial(SAM, rho=RHO))()
        return lambda: ends.update(ours=run().network)

    # One training of twice the steps, so that what a fit costs before its first step counts once on each side.
    two_plain = fitting(lambda: Plain(_started(network)), batches, 2)
    times = take_turns({"two plain": two_plain, "peer": by_hand, "ours": ours}, repetitions, warmup)
    # Roundings of different sums grow from step to step.
    weights = (dict(ends[side].named_parameters()) for side in ("ours", "peer"))
    torch.testing.assert_close(*weights, rtol=1e-2, atol=1e-3)
    plain, peer, own = (times[side]["cpu"] for side in times)
    return [
        Row.slowdown(f"`SAM`, {what}", "two plain steps in the Trainer", own, plain, "cpu", bars[0]),
        Row.slowdown(f"`SAM`, {what}", "pytorch-optimizer's, by hand", own, peer, "cpu", bars[1]),
    ]


def _started(network: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return network()


def _memory(network: Callable[[], nn.Module], batches: Batches) -> Row:
    """What SAM adds to the peak of a fit; the window is a batch that is there anyway."""
    plain, ours = (
        _peak(fitting(lambda: Plain(_started(network)), batches, 1, *callbacks)())
        for callbacks in ((), (partial(SAM, rho=RHO),))
    )
    copy = sum(tensor.nbytes for tensor in network().state_dict().values())
    added, peer = [float(ours - plain)], [float(copy)]
    return Row.slowdown(
        "what `SAM` adds to the peak", "a copy of weights and buffers", added, peer, "memory", "<= 1.05"
    )


def _peak(run: Callable[[], object]) -> int:
    """The most bytes of tensors that were allocated at once while it ran."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    with TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"])
    totals = [change["args"]["Total Allocated"] for change in changes]
    # The count goes on from that of an earlier profile.
    return int(max(totals) - totals[0] + changes[0]["args"]["Bytes"])


def _by_hand(network: nn.Module, batches: Batches) -> nn.Module:
    optimizer = pytorch_optimizer.SAM(network.parameters(), torch.optim.SGD, rho=RHO, lr=0.01, momentum=0.9)
    for images, targets in batches:
        optimizer.zero_grad()
        F.cross_entropy(network(images), targets).backward()
        optimizer.first_step(zero_grad=True)
        F.cross_entropy(network(images), targets).backward()
        optimizer.second_step()
    return network

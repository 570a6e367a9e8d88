"""What fusing channels costs beside dropping them, and optimal plans beside those of POT."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import ot
import timm
import torch
import torch_pruning
from torch import Tensor, nn

from lightning_vision.callbacks.pruning import intra_fusion, merge_features, transport_plan

from .side_by_side import Row, Side, take_turns, unprepared

__all__ = ["rows"]

SPARSITY = 0.5


def rows(quick: bool) -> list[Row]:
    """Narrow a residual network, and carry mass from channels to half as many.

    Args:
        quick: One repetition at few channels.
    """
    repetitions, warmup = (1, 0) if quick else (7, 1)
    channels = (8, 16, 16, 16) if quick else (64, 128, 128, 128)
    network = timm.create_model("resnet18", num_classes=10, channels=channels).eval()
    images = torch.randn(2, 3, 32, 32)
    sides: dict[str, Side] = {
        "ours": partial(_narrowing, network, partial(intra_fusion, images=images, sparsity=SPARSITY)),
        "merged": partial(_narrowing, network, partial(merge_features, images=images, beta=0.1)),
        "theirs": partial(_narrowing, network, partial(_dropped, images=images)),
    }
    times = take_turns(sides, repetitions, warmup)
    against = "torch-pruning's `BasePruner`, L1, one step"
    found = [
        Row.slowdown(what, against, times[side]["wall"], times["theirs"]["wall"], "wall")
        for side, what in (
            ("ours", f"`intra_fusion` of a ResNet-18 of up to {channels[-1]} channels"),
            ("merged", "`merge_features` of the same, beta = 0.1"),
        )
    ]
    return [*found, *(_plan(size, repetitions, warmup) for size in ((16, 32) if quick else (64, 256, 512)))]


def _plan(size: int, repetitions: int, warmup: int) -> Row:
    rows = torch.randn(size, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cost = torch.cdist(rows, rows[: size // 2], p=1.0)
    source, target = (torch.full((it,), 1 / it, dtype=torch.float64) for it in cost.shape)
    sides = {
        "ours": unprepared(lambda: transport_plan(cost, source, target)),
        "theirs": unprepared(lambda: ot.emd(source.numpy(), target.numpy(), cost.numpy())),
    }
    times = take_turns(sides, repetitions, warmup)
    what = f"`transport_plan` from {size} channels to {size // 2}"
    return Row.slowdown(what, "ot's `emd`", times["ours"]["wall"], times["theirs"]["wall"], "wall")


def _narrowing(network: nn.Module, narrow: Callable[[nn.Module], Any]) -> Callable[[], Any]:
    # Each turn has a copy, made outside of the time that counts.
    return partial(narrow, copy.deepcopy(network))


def _dropped(network: nn.Module, images: Tensor) -> None:
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=1)
    head = network.get_submodule("fc")
    torch_pruning.pruner.BasePruner(network, images, importance, pruning_ratio=SPARSITY, ignored_layers=[head]).step()

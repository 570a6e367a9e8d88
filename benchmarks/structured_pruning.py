"""What cut networks save on this machine, and what planning a cut costs beside torch-pruning's own pruner."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
import torch_pruning
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import lightning_vision.backbones  # noqa: F401  (registers the networks)
from lightning_vision.callbacks.pruning._channels import ChannelGroup, Cut
from lightning_vision.callbacks.pruning._choice import channel_importance, channels_to_cut
from lightning_vision.callbacks.pruning._costs import flop_costs
from lightning_vision.callbacks.pruning._groups import channel_groups

from .side_by_side import Row, Side, take_turns

__all__ = ["rows"]

BUDGET = 0.5
NETWORKS = {"resnet20_cifar": (64, 32), "resnet18": (8, 128)}  # images, pixels


def rows(quick: bool) -> list[Row]:
    """Evaluate dense and cut networks, then plan cuts.

    Args:
        quick: One repetition on few images.
    """
    repetitions, warmup = (1, 0) if quick else (15, 2)
    networks = {}
    for name, (count, side) in NETWORKS.items():
        images = torch.randn(2, 3, 32, 32) if quick else torch.randn(count, 3, side, side)
        networks[name] = _trained(name, images), images
    found = [_evaluation(name, *it, repetitions, warmup) for name, it in networks.items()]
    planned = list(networks)[:1] if quick else list(networks)
    return [*found, *(_planning(name, *networks[name], repetitions, warmup) for name in planned)]


def _evaluation(name: str, dense: nn.Module, images: Tensor, repetitions: int, warmup: int) -> Row:
    cut = copy.deepcopy(dense)
    Cut(cut, _planned(cut, images))
    assert _flops(cut, images) <= BUDGET * _flops(dense, images)
    times = take_turns({"dense": _asked(dense, images), "cut": _asked(cut, images)}, repetitions, warmup)
    what = f"{name} cut to {BUDGET:.0%} of its FLOPs, {len(images)} images of {images.shape[-1]} pixels"
    return Row.slowdown(what, "the same, dense", times["cut"]["wall"], times["dense"]["wall"], "wall", "<= 0.80")


def _planning(name: str, network: nn.Module, images: Tensor, repetitions: int, warmup: int) -> Row:
    # Theirs cuts as it plans, so each turn has a copy, made outside of the time that counts.
    sides = {"theirs": partial(_their_plan, network, images), "ours": partial(_our_plan, network, images)}
    times = take_turns(sides, repetitions, warmup)
    what, against = f"planning a cut of {name}", "torch-pruning's `BasePruner`, one step"
    return Row.slowdown(what, against, times["ours"]["wall"], times["theirs"]["wall"], "wall")


def _trained(name: str, images: Tensor) -> nn.Module:
    """A network with gradients, whose branches are not scaled by zero."""
    torch.manual_seed(0)
    network: nn.Module = timm.create_model(name, num_classes=10)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
    F.cross_entropy(network(images), torch.arange(len(images)) % 10).backward()
    return network.eval()


def _planned(network: nn.Module, images: Tensor) -> dict[ChannelGroup, list[int]]:
    groups = channel_groups(network, images[:2])
    weights = dict(network.named_parameters())
    gradients = {name: it.grad for name, it in weights.items() if it.grad is not None}
    importance = [channel_importance(group, weights, gradients) for group in groups]
    return channels_to_cut(groups, importance, flop_costs(network, groups, images[:1]), BUDGET, floor=0.1)


def _our_plan(network: nn.Module, images: Tensor) -> Callable[[], Any]:
    return partial(_planned, network, images)


def _their_plan(network: nn.Module, images: Tensor) -> Callable[[], Any]:
    own = copy.deepcopy(network)
    for copied, parameter in zip(own.parameters(), network.parameters(), strict=True):
        copied.grad = parameter.grad
    # Shortcuts padded to a fixed width are nothing that it could know of: only what may go is named.
    inner = {group.name for group in channel_groups(network, images[:2])}
    ignored = [
        part for name, part in own.named_modules() if isinstance(part, (nn.Conv2d, nn.Linear)) and name not in inner
    ]

    def plan() -> Any:
        pruner = torch_pruning.pruner.BasePruner(
            own,
            images[:2],
            torch_pruning.importance.GroupTaylorImportance(),
            global_pruning=True,
            pruning_ratio=0.3,
            ignored_layers=ignored,
        )
        pruner.step()
        return pruner

    return plan


def _asked(network: nn.Module, images: Tensor) -> Side:
    def ask() -> Any:
        with torch.no_grad():
            return network(images)

    return lambda: ask


def _flops(network: nn.Module, images: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images[:1])
    return counter.get_total_flops()

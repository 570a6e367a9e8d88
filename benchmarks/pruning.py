"""What masks cost in a step: against a dense step, and against torch's pruning, which computes each weight anew."""

import time
from collections.abc import Callable
from contextlib import chdir, redirect_stdout
from functools import partial
from io import StringIO
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.nn.utils.prune import L1Unstructured, global_unstructured

from lightning_vision.backbones import create
from lightning_vision.callbacks import Pruning
from lightning_vision.callbacks.pruning.magnitude import magnitude_masks

from .fits import Batches, Plain, batches_of, fitting
from .logging_tax import cnn
from .side_by_side import Clock, Row, take_turns, unprepared

__all__ = ["rows"]

SPARSITY = 0.9
REPEATED = 20


def rows(quick: bool) -> list[Row]:
    """Train networks of three sizes at 90% zeros, then only choose the weights that go.

    Args:
        quick: One repetition of two steps on small batches of the smaller networks.
    """
    turns = (1, 0) if quick else (11, 1)
    resnet20 = partial(create, "resnet20_cifar", num_classes=10, in_channels=3)
    resnet18 = partial(timm.create_model, "resnet18", num_classes=10)
    few, images = (batches_of(size, 2 if quick else steps) for size, steps in ((32, 200), (4 if quick else 64, 16)))
    # A report ends each fit, in the working folder and on the screen.
    with TemporaryDirectory() as folder, chdir(folder), redirect_stdout(StringIO()):
        return [
            *_rows("CNN-16, batch 32", cnn, few, *turns),
            *_rows("`resnet20_cifar`, batch 64", resnet20, images, *turns),
            *([] if quick else _rows("ResNet-18, 32 x 32, batch 64", resnet18, images[:6], *turns)),
            _masking("CNN-16", cnn, *turns),
            _masking("`resnet20_cifar`", resnet20, *turns),
            *([] if quick else [_masking("ResNet-18", resnet18, *turns)]),
            _choice(resnet20 if quick else resnet18, *turns),
        ]


class Stopwatch(Callback):
    """Processor seconds from the second batch on: what is done once, before or in the first, is no step's."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            self.seconds = -time.process_time()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds += time.process_time()


class Probe(Callback):
    """Calls `look` after the first batch of a fit, when masks are in place."""

    def __init__(self, look: Callable[[], None]) -> None:
        self.look = look

    def on_train_batch_end(self, *_: Any) -> None:
        self.look()


def _module(network: Callable[[], nn.Module], pruned: bool) -> Plain:
    torch.manual_seed(0)
    made = Plain(network())
    if pruned:
        global_unstructured(_weights(made), pruning_method=L1Unstructured, amount=SPARSITY)
    return made


def _rows(what: str, network: Callable[[], nn.Module], batches: Batches, repetitions: int, warmup: int) -> list[Row]:
    sides: dict[str, tuple[bool, list[Callable[[], Callback]]]] = {
        "dense": (False, []),
        "torch": (True, []),
        "ours": (False, [partial(Pruning, sparsity=SPARSITY)]),
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    ends: dict[str, Plain] = {}
    for turn in range(warmup + repetitions):
        for side, (pruned, callbacks) in sides.items():
            watch = Stopwatch()
            ends[side] = fitting(
                partial(_module, network, pruned), batches, 1, lambda watch=watch: watch, *callbacks
            )()()
            if turn >= warmup:
                seconds[side].append(watch.seconds / (len(batches) - 1))
    for (theirs, _), (ours, name) in zip(_weights(ends["torch"]), _weights(ends["ours"]), strict=True):
        torch.testing.assert_close(ours.get_parameter(name) == 0, theirs.get_buffer("weight_mask") == 0)
    dense, peer, own = seconds.values()
    return [
        Row.slowdown(f"a step with `Pruning`, {what}", "a dense step", own, dense, "cpu", "<= 1.03"),
        Row.slowdown(f"a step with `Pruning`, {what}", "with `global_unstructured`", own, peer, "cpu"),
    ]


def _masking(what: str, network: Callable[[], nn.Module], repetitions: int, warmup: int) -> Row:
    """Masking alone, without the step: of gradients and weights here, both ways through a product there."""
    pruning, module = Pruning(sparsity=SPARSITY), _module(network, True)
    layers = [layer for layer, _ in _weights(module)]
    gradients = [torch.ones_like(layer.weight) for layer in layers]
    times: dict[str, dict[Clock, list[float]]] = {}

    def ours() -> None:
        pruning.mask_gradients()
        pruning.mask_weights()

    def theirs() -> None:
        for layer in layers:
            layer.weight_orig.grad = None
            for hook in layer._forward_pre_hooks.values():
                hook(layer, ())
        torch.autograd.backward([layer.weight for layer in layers], gradients)

    def look() -> None:
        sides = {"torch": unprepared(_often(theirs)), "ours": unprepared(_often(ours))}
        with torch.enable_grad():
            times.update(take_turns(sides, repetitions, warmup))

    fitting(partial(_module, network, False), batches_of(2, 1), 1, lambda: pruning, partial(Probe, look))()()
    torchs, own = ([seconds / REPEATED for seconds in times[side]["cpu"]] for side in ("torch", "ours"))
    return Row.slowdown(f"masking in a step, {what}", "masking of `global_unstructured`", own, torchs, "cpu", "<= 0.90")


def _often(run: Callable[[], None]) -> Callable[[], None]:
    def repeated() -> None:
        for _ in range(REPEATED):
            run()

    return repeated


def _choice(network: Callable[[], nn.Module], repetitions: int, warmup: int) -> Row:
    torch.manual_seed(0)
    made = network()
    weights = {f"{number}": layer.get_parameter(name).detach() for number, (layer, name) in enumerate(_weights(made))}
    kept = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    total = sum(weight.numel() for weight in weights.values())
    count = total - round(SPARSITY * total)

    def torchs() -> Callable[[], None]:
        torch.manual_seed(0)
        parameters = _weights(network())
        return lambda: global_unstructured(parameters, pruning_method=L1Unstructured, amount=SPARSITY)

    ours = unprepared(lambda: magnitude_masks(weights, kept, count))
    times = take_turns({"torch": torchs, "ours": ours}, repetitions, warmup)
    what, against = f"choosing among {total:,} weights", "`global_unstructured`"
    return Row.slowdown(what, against, times["ours"]["cpu"], times["torch"]["cpu"], "cpu")


def _weights(network: nn.Module) -> list[tuple[nn.Module, str]]:
    return [(layer, "weight") for layer in network.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]

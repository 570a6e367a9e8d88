"""What an average of the weights costs: a step under the Trainer against Lightning's, one update against others'."""

import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import timm
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lightning_vision.callbacks import EMA

from .fits import Plain, batches_of, fitting
from .logging_tax import cnn
from .side_by_side import Row, Side, take_turns

__all__ = ["rows"]

DECAY = 0.999


def rows(quick: bool) -> list[Row]:
    """Train a small network with ours and with Lightning's average, then only update averages.

    Args:
        quick: One repetition of few steps and updates.
    """
    networks: dict[str, Callable[[], nn.Module]] = {
        "ResNet-18": partial(timm.create_model, "resnet18"),
        "ViT-Ti": partial(timm.create_model, "vit_tiny_patch16_224"),
        "80 small tensors": _small_tensors,
    }
    updates, repetitions, warmup = (2, 1, 0) if quick else (50, 15, 1)
    return [
        *_training_rows(*(4, 1, 0) if quick else (100, 21, 1)),
        *(row for name, make in networks.items() for row in _update_rows(name, make, updates, repetitions, warmup)),
    ]


def _small_tensors() -> nn.Module:
    return nn.ParameterList(torch.randn(64) for _ in range(80))


def _training_rows(steps: int, repetitions: int, warmup: int) -> list[Row]:
    """What the callbacks' own hooks take in a step, timed inside them: the step around them would drown it."""
    batches = batches_of(32, steps)
    # As Lightning's: from the weights after the first step on, with one decay.
    makers = {
        "stock": partial(EMAWeightAveraging, decay=DECAY),
        "ours": partial(EMA, decay=DECAY, warmup=1.0, start_step=1),
    }
    seconds: dict[str, list[float]] = {side: [] for side in makers}
    ends: dict[str, dict[str, Tensor]] = {}
    for turn in range(warmup + repetitions):
        for side, make in makers.items():
            callback = make()
            spent = _stopwatch(callback)
            trained = fitting(_module, batches, 1, lambda callback=callback: callback)()()
            ends[side] = _floats(trained)
            if turn >= warmup:
                seconds[side].append(sum(spent) / steps)
    torch.testing.assert_close(ends["ours"], ends["stock"], rtol=1e-4, atol=1e-6)
    what, against = "what `EMA` adds to a step", "what `EMAWeightAveraging` adds"
    return [Row.slowdown(what, against, seconds["ours"], seconds["stock"], "cpu", "<= 0.10")]


def _module() -> Plain:
    torch.manual_seed(0)
    return Plain(cnn())


def _stopwatch(callback: Callback) -> list[float]:
    """Seconds of processor time of each call of the callback's hooks around a batch, filled while it is used."""
    spent: list[float] = []
    for name in ("on_train_batch_start", "on_train_batch_end"):
        hook: Callable[..., None] = getattr(callback, name)

        def timed(*args: Any, hook: Callable[..., None] = hook) -> None:
            begin = time.process_time()
            hook(*args)
            spent.append(time.process_time() - begin)

        setattr(callback, name, timed)
    return spent


class Steps:
    """All that an update asks of a Trainer: how many steps were done, who steps, and who else is there."""

    global_step = 0
    callbacks = ()
    optimizers = ()

    def __init__(self) -> None:
        self.strategy = SimpleNamespace(optimizer_step=None)


def _update_rows(what: str, make: Callable[[], nn.Module], updates: int, repetitions: int, warmup: int) -> list[Row]:
    torch.manual_seed(0)
    network = make()
    trainer: Any = Steps()
    ours = EMA(decay=DECAY, warmup=1.0)
    ours.on_fit_start(trainer, network)
    ours.on_train_start(trainer, network)
    theirs = ModelEmaV3(network, decay=DECAY)
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(DECAY), use_buffers=True)
    # Its first update copies.
    averaged.update_parameters(network)

    def update() -> None:
        trainer.global_step += 1
        ours.on_train_batch_end(trainer, network, None, None, 0)

    with torch.no_grad():
        for tensor in _floats(network).values():
            tensor.add_(1.0)
    sides = {
        "timm": lambda: theirs.update(network),
        "torch": lambda: averaged.update_parameters(network),
        "ours": update,
    }
    times = take_turns({side: _repeated(run, updates) for side, run in sides.items()}, repetitions, warmup)
    for peer in (theirs.module, averaged.module):
        torch.testing.assert_close(ours.average, _floats(peer), rtol=1e-4, atol=1e-5)
    timm_time, torch_time, own = ([seconds / updates for seconds in times[side]["cpu"]] for side in sides)
    return [
        Row.slowdown(f"one update, {what}", "timm's `ModelEmaV3`", own, timm_time, "cpu", "<= 1.00"),
        Row.slowdown(f"one update, {what}", "torch's `AveragedModel`, foreach", own, torch_time, "cpu"),
    ]


def _repeated(update: Callable[[], None], updates: int) -> Side:
    def run() -> None:
        for _ in range(updates):
            update()

    return lambda: run


def _floats(module: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in module.state_dict().items() if value.is_floating_point()}

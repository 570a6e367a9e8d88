"""What generations cost beside training: a taught step against its parts, and a fit against a loop by hand."""

from contextlib import chdir, redirect_stdout
from copy import deepcopy
from functools import partial
from io import StringIO
from tempfile import TemporaryDirectory

import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div

from lightning_vision.backbones import create
from lightning_vision.callbacks import BornAgain

from .fits import Batches, Plain, batches_of, fitting
from .side_by_side import Row, Side, take_turns

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Train `resnet20_cifar` on batches of 64 in two generations of as many steps.

    Args:
        quick: One repetition of two steps a generation.
    """
    batches = batches_of(8 if quick else 64, 2 if quick else 8)
    born = partial(BornAgain, 2, alpha=0.5, network="network")
    sides: dict[str, Side] = {
        "plain": fitting(_module, batches, 2),
        "by hand": partial(partial, _by_hand, batches),
        "ours": fitting(_module, batches, 2, born),
        "cwtm": fitting(_module, batches, 2, partial(born, mode="cwtm")),
        "dkpp": fitting(_module, batches, 2, partial(born, mode="dkpp")),
    }
    # A report ends each fit, in the working folder and on the screen.
    with TemporaryDirectory() as folder, chdir(folder), redirect_stdout(StringIO()):
        times = {name: it["cpu"] for name, it in take_turns(sides, *(1, 0) if quick else (9, 1)).items()}
    what = "two generations"
    return [
        Row.slowdown(what, "by hand, in a loop around `kl_div`", times["ours"], times["by hand"], "cpu", "<= 1.10"),
        Row.slowdown(what, "as many plain steps", times["ours"], times["plain"], "cpu"),
        Row.slowdown("the same, `cwtm`", what, times["cwtm"], times["ours"], "cpu"),
        Row.slowdown("the same, `dkpp`", what, times["dkpp"], times["ours"], "cpu"),
    ]


def _module() -> Plain:
    torch.manual_seed(0)
    return Plain(create("resnet20_cifar", num_classes=10, in_channels=3))


def _by_hand(batches: Batches) -> nn.Module:
    module, teacher = _module(), None
    for generation in range(2):
        if generation:
            teacher, module = deepcopy(module).eval(), _module()
        optimizer = module.configure_optimizers()
        for image, target in batches:
            logits = module.network(image)
            loss = cross_entropy(logits, target)
            if teacher is not None:
                with torch.no_grad():
                    answer = teacher.network(image).log_softmax(dim=1)
                taught = kl_div(logits.log_softmax(dim=1), answer, reduction="batchmean", log_target=True)
                loss = 0.5 * loss + 0.5 * taught
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return module

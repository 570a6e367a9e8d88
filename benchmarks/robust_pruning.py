"""What the terms of robust pruning cost a step, beside adversarial training, which they are to replace."""

from contextlib import chdir, redirect_stdout
from functools import partial
from io import StringIO
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.preprocessing import KernelCenterer
from torch import Tensor

from lightning_vision.backbones import create
from lightning_vision.callbacks import Pruning, RobustPruning
from lightning_vision.callbacks.pruning.robust_pruning import gaussian_kernel, hsic

from .fits import Plain, batches_of, fitting
from .side_by_side import Row, Side, take_turns, unprepared

__all__ = ["rows"]

# Of adversarial training (Madry et al. 2017) on CIFAR-10.
ATTACKS = 7


class Attacked(Plain):
    """Trains on images that projected gradient ascent has moved."""

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        image, target = batch
        moved = image
        for _ in range(ATTACKS):
            moved = moved.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(F.cross_entropy(self.network(moved), target), moved)
            moved = image + (moved.detach() + 2 / 255 * gradient.sign() - image).clamp(-8 / 255, 8 / 255)
        return super().training_step((moved, target))


def rows(quick: bool) -> list[Row]:
    """Train `resnet20_cifar` on batches of 64, pruned by 75%.

    Args:
        quick: One repetition of two steps.
    """
    batches = batches_of(8 if quick else 64, 2 if quick else 8)
    pruning = partial(Pruning, 0.75)
    # `Plain` calls its network and not itself.
    taught = partial(RobustPruning, network="network", lambda_x=0.0, lambda_y=0.0)
    sides: dict[str, Side] = {
        "pruned": fitting(partial(_module, Plain), batches, 1, pruning),
        "attacked": fitting(partial(_module, Attacked), batches, 1, pruning),
        "taught": fitting(partial(_module, Plain), batches, 1, pruning, taught),
        "ours": fitting(partial(_module, Plain), batches, 1, pruning, partial(RobustPruning, network="network")),
    }
    # A report ends each fit, in the working folder and on the screen.
    with TemporaryDirectory() as folder, chdir(folder), redirect_stdout(StringIO()):
        times = {name: it["cpu"] for name, it in take_turns(sides, *(1, 0) if quick else (7, 1)).items()}
    plain, attacked = times["pruned"], times["attacked"]
    adversarial = f"adversarial training, {ATTACKS} steps of PGD, pruned alike"
    return [
        Row.slowdown("self-distillation", "`Pruning` alone", times["taught"], plain, "cpu", "<= 1.50"),
        Row.slowdown("self-distillation and HSIC of all layers", "`Pruning` alone", times["ours"], plain, "cpu"),
        Row.slowdown(
            "self-distillation and HSIC of all layers", adversarial, times["ours"], attacked, "cpu", "<= 0.50"
        ),
        _dependence(*(1, 0) if quick else (21, 1)),
    ]


def _dependence(repetitions: int, warmup: int) -> Row:
    """HSIC of two layers of a batch of 128, without gradients."""
    x, y = torch.randn(2, 128, 1024, generator=torch.Generator().manual_seed(0))

    def ours() -> float:
        return float(hsic(gaussian_kernel(x), gaussian_kernel(y)))

    def theirs() -> float:
        first, second = (rbf_kernel(it.numpy(), gamma=1 / (2 * 5.0**2 * it.shape[1])) for it in (x, y))
        return float((first * KernelCenterer().fit_transform(second)).sum() / 127**2)

    torch.testing.assert_close(ours(), theirs(), rtol=1e-2, atol=1e-7)
    times = take_turns({"theirs": unprepared(theirs), "ours": unprepared(ours)}, repetitions, warmup)
    against = "sklearn's `rbf_kernel` and `KernelCenterer`"
    return Row.slowdown(
        "`hsic` of 128 samples", against, times["ours"]["cpu"], times["theirs"]["cpu"], "cpu", "<= 1.00"
    )


def _module(kind: type[Plain]) -> Plain:
    torch.manual_seed(0)
    return kind(create("resnet20_cifar", num_classes=10, in_channels=3))

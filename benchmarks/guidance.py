"""What a guide costs a step beside its bare forward pass, after it has stopped, and what one alignment costs."""

from functools import partial

import torch
from sklearn.metrics.pairwise import linear_kernel
from sklearn.preprocessing import KernelCenterer
from torch import Tensor, nn

from lightning_vision.backbones import create
from lightning_vision.callbacks import Guidance
from lightning_vision.callbacks.distillation.guidance import linear_cka

from .fits import Plain, batches_of, fitting
from .side_by_side import Row, take_turns, unprepared

__all__ = ["rows"]


class Looking(Plain):
    """Asks another network, too, and does nothing with its answer."""

    def __init__(self, network: nn.Module, other: nn.Module) -> None:
        super().__init__(network)
        # In a list, so that it is no part of this one.
        self.others = [other.eval()]

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        with torch.no_grad():
            self.others[0](batch[0])
        return super().training_step(batch)


def rows(quick: bool) -> list[Row]:
    """Train `resnet8_cifar` on batches of 64, guided by `resnet20_cifar`.

    Args:
        quick: One repetition of two steps.
    """
    batches = batches_of(8 if quick else 64, 2 if quick else 8)
    guided = partial(_guided, stop_step=None)
    sides = {
        "plain": fitting(_module, batches, 1),
        "looking": fitting(_looking, batches, 1),
        "ours": fitting(_module, batches, 1, guided),
        "stopped": fitting(_module, batches, 2, partial(_guided, stop_step=1)),
        "plain, twice": fitting(_module, batches, 2),
    }
    times = {name: it["cpu"] for name, it in take_turns(sides, *(1, 0) if quick else (7, 1)).items()}
    against = "a step that also asks the guide"
    return [
        Row.slowdown("a guided step, 7 pairs of layers", against, times["ours"], times["looking"], "cpu"),
        Row.slowdown("a guided step, 7 pairs of layers", "a plain step", times["ours"], times["plain"], "cpu"),
        Row.slowdown(
            "two epochs, guided for one step", "two plain epochs", times["stopped"], times["plain, twice"], "cpu"
        ),
        _alignment(*(1, 0) if quick else (21, 1)),
    ]


def _alignment(repetitions: int, warmup: int) -> Row:
    """CKA of two layers of a batch of 128, without gradients."""
    x, y = torch.randn(2, 128, 1024, generator=torch.Generator().manual_seed(0))

    def ours() -> float:
        return float(linear_cka(x, y))

    def theirs() -> float:
        first, second = (KernelCenterer().fit_transform(linear_kernel(it.numpy())) for it in (x, y))
        norms = ((first**2).sum() * (second**2).sum()) ** 0.5
        return float((first * second).sum() / norms)

    torch.testing.assert_close(ours(), theirs(), rtol=1e-4, atol=1e-6)
    times = take_turns({"theirs": unprepared(theirs), "ours": unprepared(ours)}, repetitions, warmup)
    against = "sklearn's `linear_kernel` and `KernelCenterer`"
    return Row.slowdown("`linear_cka` of 128 samples", against, times["ours"]["cpu"], times["theirs"]["cpu"], "cpu")


def _network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return create(name, num_classes=10, in_channels=3)


def _module() -> Plain:
    return Plain(_network("resnet8_cifar"))


def _looking() -> Plain:
    return Looking(_network("resnet8_cifar"), _network("resnet20_cifar"))


def _guided(stop_step: int | None) -> Guidance:
    # `Plain` calls its network and not itself.
    return Guidance(_network("resnet20_cifar"), network="network", stop_step=stop_step)

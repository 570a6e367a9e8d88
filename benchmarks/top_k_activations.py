"""What top-k activations cost: one cut beside other ways to it, and a step of a vision transformer."""

from collections.abc import Callable
from functools import partial

import timm
import torch
from torch import Tensor, kthvalue, nn, sort

from lightning_vision.callbacks import TopKActivations, keep_top_k

from .fits import Batches, Plain, fitting
from .side_by_side import Row, Side, take_turns, unprepared

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Cut 32 images' tokens of ViT-Ti from 768 to 77 features, with gradient; train a ViT-Ti on 64 pixels.

    Args:
        quick: One repetition of few.
    """
    activation = torch.randn(1 if quick else 32, 197, 768).relu().requires_grad_()
    steps = 1 if quick else 3
    batches: Batches = [(torch.randn(4, 3, 64, 64), torch.randint(10, (4,))) for _ in range(steps)]
    sides: dict[str, Side] = {
        "ours": unprepared(_cutting(partial(keep_top_k, k=77), activation)),
        "kthvalue": unprepared(_cutting(_by_kthvalue, activation)),
        "sort": unprepared(_cutting(_by_sort, activation)),
        "plain": fitting(_vit, batches, 1),
        "trained": fitting(_vit, batches, 1, partial(TopKActivations, fraction=0.1)),
    }
    times = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (7, 1)).items()}
    what = "keeping 77 of 768, with gradient"
    return [
        Row.slowdown(what, "torch's `kthvalue` and `where`", times["ours"], times["kthvalue"], "cpu", "<= 1.00"),
        Row.slowdown(what, "torch's `sort` and `where`", times["ours"], times["sort"], "cpu", "<= 1.00"),
        Row.slowdown("training ViT-Ti, a tenth kept", "timm's ViT-Ti", times["trained"], times["plain"], "cpu"),
    ]


def _vit() -> Plain:
    network: nn.Module = timm.create_model("vit_tiny_patch16_224", img_size=64, patch_size=8, num_classes=10)
    return Plain(network)


def _cutting(cut: Callable[[Tensor], Tensor], activation: Tensor) -> Callable[[], None]:
    def run() -> None:
        cut(activation).sum().backward()

    return run


def _by_kthvalue(activation: Tensor) -> Tensor:
    limit = kthvalue(activation.detach(), activation.shape[-1] - 76, dim=-1, keepdim=True).values
    return torch.where(activation >= limit, activation, 0)


def _by_sort(activation: Tensor) -> Tensor:
    limit = sort(activation.detach(), dim=-1, descending=True).values[..., 76:77]
    return torch.where(activation >= limit, activation, 0)

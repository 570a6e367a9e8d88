"""What low-rank updates cost: a training with them against full fine-tuning, a parametrisation, and layers by hand."""

from functools import partial

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization
from torch.optim import SGD, Optimizer

from lightning_vision.callbacks import LoRA

from .fits import Plain, batches_of, fitting
from .side_by_side import Row, Side, take_turns

__all__ = ["rows"]

RANK, SCALE = 8, 2.0


class ViT(Plain):
    """Four blocks of ViT-Ti on 64 tokens; its optimizer gets what is not frozen."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        small = {"img_size": 32, "patch_size": 4, "depth": 4, "num_classes": 10}
        super().__init__(timm.create_model("vit_tiny_patch16_224", **small))

    def configure_optimizers(self) -> Optimizer:
        return SGD([it for it in self.parameters() if it.requires_grad], lr=0.01, momentum=0.9)

    def queries(self) -> list[tuple[nn.Module, nn.Linear]]:
        """Each layer that is updated, with the part that holds it; the network is frozen but for its head."""
        parts = [part for part in self.network.modules() if hasattr(part, "qkv")]
        for name, it in self.network.named_parameters():
            it.requires_grad_(name.startswith("head."))
        return [(part, part.qkv) for part in parts]


class Update(nn.Module):
    """As a parametrisation: the weight with the update in it, made anew in every step."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(RANK, weight.shape[1]) / weight.shape[1] ** 0.5)
        self.up = nn.Parameter(torch.zeros(len(weight), RANK))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + SCALE * self.up @ self.down


class Beside(nn.Module):
    """As a layer by hand: the update's output beside the layer's."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer, self.update = layer, Update(layer.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        added: Tensor = self.layer(tokens)
        return added + SCALE * F.linear(F.linear(tokens, self.update.down), self.update.up)


def parametrised() -> ViT:
    """The network with its weights parametrised."""
    module = ViT()
    for _, layer in module.queries():
        register_parametrization(layer, "weight", Update(layer.weight))
    return module


def by_hand() -> ViT:
    """The network with its layers replaced."""
    module = ViT()
    for part, layer in module.queries():
        part.qkv = Beside(layer)
    return module


def rows(quick: bool) -> list[Row]:
    """Train on batches of 32 images; the updates are of the query, key and value projections.

    Args:
        quick: One repetition of two steps.
    """
    batches = batches_of(32, 2 if quick else 10)
    ours = partial(LoRA, "*.qkv", rank=RANK, alpha=SCALE * RANK)
    sides: dict[str, Side] = {
        "full": fitting(ViT, batches, 1),
        "parametrised": fitting(parametrised, batches, 1),
        "hand": fitting(by_hand, batches, 1),
        "ours": fitting(ViT, batches, 1, ours),
    }
    times = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (9, 1)).items()}
    what = "an epoch with `LoRA` on `*.qkv`"
    return [
        Row.slowdown(what, "full fine-tuning", times["ours"], times["full"], "cpu", "<= 1.00"),
        Row.slowdown(what, "`register_parametrization`", times["ours"], times["parametrised"], "cpu", "<= 1.05"),
        Row.slowdown(what, "layers replaced by hand", times["ours"], times["hand"], "cpu", "<= 1.05"),
    ]

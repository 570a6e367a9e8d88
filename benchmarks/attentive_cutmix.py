"""AttentiveCutMix of a batch: the pasting against a loop over cells, and all of it against torchvision's CutMix."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
from timm import create_model
from torch import Tensor
from torchvision.transforms import v2

from lightning_vision.callbacks import AttentiveCutMix
from lightning_vision.callbacks.hooks._attention_maps import AttentionMaps
from lightning_vision.callbacks.mixing.attentive_cutmix import AttentiveCutMixDraw

from .side_by_side import Row, Side, take_turns

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Mix (128, 3, 224, 224), float32, with 6 of 7x7 cells; the extractor is timm's ResNet-18, untrained.

    Args:
        quick: One repetition with (4, 3, 224, 224).
    """
    size = 4 if quick else 128
    torch.manual_seed(0)
    images, attention = torch.rand(size, 3, 224, 224), torch.rand(size, 7, 7)
    labels = torch.randint(1000, (size,))
    method = AttentiveCutMix(top_n=6)
    partner = method.draw(images.shape, np.random.default_rng(0)).partner
    network = create_model("resnet18").eval()
    maps = AttentionMaps("the benchmark", network, 224, None, None, nullcontext)
    torchvisions = v2.CutMix(num_classes=1000)

    def ours(given: Callable[[], Tensor]) -> Tensor:
        return method.mix(images, AttentiveCutMixDraw(partner, given())).images

    def cell_by_cell(given: Callable[[], Tensor]) -> Tensor:
        looked, mixed = given(), images.clone()
        for sample, other in enumerate(partner.tolist()):
            for cell in looked[other].flatten().topk(6).indices.tolist():
                top, left = (32 * it for it in divmod(cell, 7))
                mixed[sample, :, top : top + 32, left : left + 32] = images[other, :, top : top + 32, left : left + 32]
        return mixed

    def timms() -> Tensor:
        with torch.no_grad():
            features: Tensor = network.forward_features(images)  # type: ignore[operator]  # timm declares it nowhere
        return features.mean(1)

    assert torch.equal(ours(lambda: attention), cell_by_cell(lambda: attention))
    assert torch.equal(ours(lambda: maps(images)), cell_by_cell(timms))
    sides: dict[str, Side] = {
        "pasting": lambda: partial(ours, lambda: attention),
        "loop": lambda: partial(cell_by_cell, lambda: attention),
        "ours": lambda: partial(ours, lambda: maps(images)),
        "timm": lambda: partial(cell_by_cell, timms),
        "CutMix": lambda: partial(torchvisions, images, labels),
    }
    cpu = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (11, 1)).items()}
    return [
        Row.slowdown("pasting", "a loop over cells", cpu["pasting"], cpu["loop"], "cpu", "<= 0.70"),
        Row.slowdown("`AttentiveCutMix`", "timm, then the loop", cpu["ours"], cpu["timm"], "cpu", "<= 1.05"),
        Row.slowdown("`AttentiveCutMix`", "torchvision, `CutMix`", cpu["ours"], cpu["CutMix"], "cpu"),
        Row.slowdown("pasting", "torchvision, `CutMix`", cpu["pasting"], cpu["CutMix"], "cpu"),
    ]

"""What the benchmarks of class activation maps share: ours beside the grad-cam package's, on one network."""

from collections.abc import Callable
from typing import Any

import numpy as np
import timm
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from .side_by_side import Row, Side, take_turns, unprepared

__all__ = ["beside_a_forward", "beside_the_package"]


def beside_the_package(
    what: str,
    ours: Callable[[nn.Module, Tensor, str, Tensor], Tensor],
    kind: type,
    quick: bool,
    count: int = 64,
    size: int = 128,
    layer: str = "layer4",
    repetitions: int = 9,
    certainty: float = 1.0,
    bar: str = "<= 0.60",
) -> Row:
    """Maps of a `resnet18` by us and by the package, in turns.

    Args:
        what: Name of our function and what is said of it.
        ours: Called with the model, images, the layer's name and the classes.
        kind: Class of the package.
        quick: One repetition of two images.
        count: Images.
        size: Their side, pixels.
        layer: Of the network.
        repetitions: Of each side.
        certainty: What the classifier's weights are multiplied with; fresh ones give tiny gradients.
        bar: For the ratio.

    Raises:
        ValueError: the maps are not the same, to a correlation of 0.999.
    """
    count = 2 if quick else count
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, size, size, generator=generator)
    classes = torch.arange(count) % 10
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=10).eval()
    with torch.no_grad():
        model.fc.weight.mul_(certainty)
    targets = [ClassifierOutputTarget(int(it)) for it in classes]
    package: Any = kind(model, [getattr(model, layer)])
    runs = {
        "ours": lambda: ours(model, images, layer, classes).numpy(),
        "package": lambda: package(images, targets),
    }
    for left, right in zip(*(run() for run in runs.values()), strict=True):
        if (left.any() or right.any()) and not np.corrcoef(left.ravel(), right.ravel())[0, 1] >= 0.999:
            raise ValueError(f"{what}: the maps are not those of the grad-cam package, so times say nothing")
    sides: dict[str, Side] = {name: unprepared(run) for name, run in runs.items()}
    times = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (repetitions, 1)).items()}
    told = f"{what}, {count} images of {size} pixels, `{layer}` of resnet18"
    peer = f"the grad-cam package's `{kind.__name__}`"
    return Row.slowdown(told, peer, times["ours"], times["package"], "cpu", bar)


def beside_a_forward(
    what: str, ours: Callable[[nn.Module, Tensor], Any], quick: bool, count: int = 64, size: int = 128
) -> Row:
    """Maps of a `resnet18` in turns with what is asked of it anyway, one forward pass of the same images."""
    count = 2 if quick else count
    images = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=10).eval()
    sides: dict[str, Side] = {
        "ours": unprepared(lambda: ours(model, images)),
        "forward": unprepared(torch.no_grad()(lambda: model(images))),
    }
    times = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (9, 1)).items()}
    told = f"{what}, {count} images of {size} pixels, resnet18"
    return Row.slowdown(told, "a forward pass without gradients", times["ours"], times["forward"], "cpu")

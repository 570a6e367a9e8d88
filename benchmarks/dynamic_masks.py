"""What dynamic masks cost in training and save afterwards: one image at a time, a share of the filters kept."""

from functools import partial

import timm
import torch
from torch import nn
from torch.nn import Conv2d

from lightning_vision.callbacks import DynamicMasks, FilterPredictor, with_predictors

from .fits import Plain, batches_of, fitting
from .side_by_side import Row, Side, take_turns, unprepared

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Train ResNet-18 under masks; ask a VGG-like stack of convolutions for one image, a half and a quarter kept.

    Args:
        quick: One repetition of one batch.
    """
    batches, width, side = batches_of(4 if quick else 16, 1 if quick else 3), 128, 16 if quick else 32
    stack = nn.Sequential(*(it for _ in range(3) for it in (Conv2d(width, width, 3, padding=1), nn.ReLU()))).eval()
    image = torch.rand(1, width, side, side)
    sides: dict[str, Side] = {
        "plain": fitting(_resnet, batches, 1),
        "masked": fitting(_resnet, batches, 1, partial(DynamicMasks, ratio=0.9)),
        "dense": unprepared(partial(_asked, stack, image)),
    }
    for share in (1.0, 0.5, 0.25):
        sides[f"{share}"] = unprepared(partial(_asked, _gathering(stack, width, share), image))
    times = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (9, 1)).items()}
    dense = "torch's dense `Conv2d`"
    return [
        Row.slowdown("training ResNet-18 under masks", "timm's ResNet-18", times["masked"], times["plain"], "cpu"),
        Row.slowdown("one image, all filters kept", dense, times["1.0"], times["dense"], "cpu"),
        Row.slowdown("one image, half the filters kept", dense, times["0.5"], times["dense"], "cpu", "<= 0.75"),
        Row.slowdown("one image, a quarter kept", dense, times["0.25"], times["dense"], "cpu", "<= 0.50"),
    ]


def _resnet() -> Plain:
    network: nn.Module = timm.create_model("resnet18", num_classes=10)
    return Plain(network)


def _gathering(stack: nn.Module, width: int, share: float) -> nn.Module:
    """The stack with predictors that always keep the first filters."""
    predictors = {}
    for name in ("0", "2", "4"):
        predictor = FilterPredictor(width, width)
        predictor.bias.data[int(share * width) :] = -1.0
        predictors[name] = predictor.state_dict()
    return with_predictors(stack, {"predictors": predictors})


@torch.inference_mode()
def _asked(network: nn.Module, image: torch.Tensor) -> None:
    for _ in range(5):
        network(image)

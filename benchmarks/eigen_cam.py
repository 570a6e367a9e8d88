"""What Eigen-CAM costs beside the grad-cam package's, and its decomposition beside torch's of the maps themselves."""

from collections.abc import Callable
from typing import Any

import torch
from pytorch_grad_cam import EigenCAM
from torch import Tensor, nn

from lightning_vision.callbacks import eigen_cam
from lightning_vision.callbacks.explain.eigen_cam import eigen_cam_maps

from .maps import beside_the_package
from .side_by_side import Row, Side, take_turns, unprepared

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Maps of 64 images; the decomposition alone for maps of three shapes.

    Args:
        quick: One repetition of two images.
    """
    found = [beside_the_package("`eigen_cam`, centred", _centred, EigenCAM, quick)]
    for shape in ((8, 2048, 7, 7), (8, 768, 14, 14), (8, 64, 56, 56)):
        maps = torch.randn(shape, generator=torch.Generator().manual_seed(0)).relu()
        sides: dict[str, Side] = {
            "ours": unprepared(lambda maps=maps: eigen_cam_maps(maps)),
            "svd": unprepared(_thin(maps)),
        }
        times = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (9, 1)).items()}
        what = f"`eigen_cam_maps`, {shape}"
        found.append(Row.slowdown(what, "`torch.linalg.svd`, thin", times["ours"], times["svd"], "cpu"))
    return found


def _centred(model: nn.Module, images: Tensor, layer: str, classes: Tensor) -> Tensor:
    return eigen_cam(model, images, layer, centre=True)


def _thin(maps: Tensor) -> Callable[[], Any]:
    return lambda: torch.linalg.svd(maps.flatten(2).mT, full_matrices=False)

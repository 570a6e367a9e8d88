"""What ScaleKD's terms cost a step beside the teacher's bare forward pass, and what the second view costs."""

from functools import partial

import timm
import torch
from scipy.fft import dctn, idctn
from torch import Tensor, nn

from lightning_vision.backbones import create
from lightning_vision.callbacks import ScaleKD
from lightning_vision.callbacks.distillation.dual_view import split_dc

from .fits import Plain, batches_of, fitting
from .guidance import Looking
from .side_by_side import Row, take_turns, unprepared

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Train `resnet8_cifar` on batches of 64, taught by a ViT of width 192 and depth 4 on 16 patches.

    Args:
        quick: One repetition of two steps.
    """
    batches = batches_of(8 if quick else 64, 2 if quick else 8)
    sides = {
        "looking": fitting(_looking, batches, 1),
        "answers": fitting(_module, batches, 1, partial(_taught, alpha=0.0, beta=0.0, perception_weight=0.0)),
        "features": fitting(_module, batches, 1, partial(_taught, perception_weight=0.0)),
        "ours": fitting(_module, batches, 1, _taught),
    }
    times = {name: it["cpu"] for name, it in take_turns(sides, *(1, 0) if quick else (7, 1)).items()}
    against = "a step that also asks the teacher"
    return [
        Row.slowdown("answers alone", against, times["answers"], times["looking"], "cpu"),
        Row.slowdown("answers and features in two views", against, times["features"], times["looking"], "cpu"),
        Row.slowdown("all of it, with the teacher's last stage", against, times["ours"], times["looking"], "cpu"),
        _view(*(1, 0) if quick else (21, 1)),
    ]


def _view(repetitions: int, warmup: int) -> Row:
    """Maps of 64 images without their DC component, as tokens and by way of the cosine transform."""
    maps = torch.randn(64, 384, 7, 7, generator=torch.Generator().manual_seed(0))

    def ours() -> Tensor:
        return split_dc(maps.flatten(2).transpose(1, 2))[1].transpose(1, 2).reshape(maps.shape)

    def theirs() -> Tensor:
        coefficients = dctn(maps.numpy(), axes=(2, 3))
        coefficients[:, :, 0, 0] = 0
        return torch.from_numpy(idctn(coefficients, axes=(2, 3)))

    torch.testing.assert_close(ours(), theirs(), rtol=1e-4, atol=1e-5)
    times = take_turns({"theirs": unprepared(theirs), "ours": unprepared(ours)}, repetitions, warmup)
    against = "scipy's `dctn` and `idctn`"
    return Row.slowdown("the second view of 64 maps", against, times["ours"]["cpu"], times["theirs"]["cpu"], "cpu")


def _student() -> nn.Module:
    torch.manual_seed(0)
    return create("resnet8_cifar", num_classes=10, in_channels=3)


def _teacher() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=4, num_classes=10)


def _module() -> Plain:
    return Plain(_student())


def _looking() -> Plain:
    return Looking(_student(), _teacher())


def _taught(**settings: float) -> ScaleKD:
    # `Plain` calls its network and not itself.
    return ScaleKD(_teacher(), network="network", **settings)

"""What a training step of MAE and SimMIM costs beside lightly's parts and a loop by hand, and what hiding saves."""

import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from lightly.models import utils
from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM
from torch import Tensor, nn

from lightning_vision.self_supervised.mae import MAE, encode_visible
from lightning_vision.self_supervised.simmim import SimMIM

from .side_by_side import Row, Side, take_turns

__all__ = ["rows"]

SIDE, PATCH, WIDTH, DEPTH, PATCHES = 96, 8, 192, 6, 144
NETWORK: dict[str, Any] = {
    "backbone": "vit_tiny_patch16_224",
    "image_size": SIDE,
    "backbone_settings": {"patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH},
}
DECODER: dict[str, Any] = {"decoder_dim": 96, "decoder_depth": 2, "decoder_heads": 3, "norm_targets": False}


def rows(quick: bool) -> list[Row]:
    """Forward, backward and optimizer of one batch of 96 pixels in patches of 8.

    Args:
        quick: One repetition on two images.
    """
    images, repetitions, warmup = (2, 1, 0) if quick else (16, 11, 2)
    torch.manual_seed(0)
    image = torch.randn(images, 3, SIDE, SIDE)
    mae, simmim = MAE(**NETWORK, **DECODER), SimMIM(mask_patch_size=PATCH, **NETWORK)
    lightly = _Lightly(mae)
    sides = {
        "mae": _step(mae, lambda: mae.losses(image, torch.rand(images, mae.draws))["loss"]),
        "lightly": _step(lightly, lambda: lightly(image)),
        "simmim": _step(simmim, lambda: simmim.losses(image, torch.rand(images, simmim.draws))["loss"]),
        "by hand": _step(simmim, lambda: _by_hand(simmim, image)),
        "quarter": _encoder(mae, image, PATCHES // 4),
        "whole": _encoder(mae, image, PATCHES),
    }
    times = {name: clocks["cpu"] for name, clocks in take_turns(sides, repetitions, warmup).items()}
    slower = Row.slowdown
    return [
        slower("step of MAE", "lightly's parts of MAE", times["mae"], times["lightly"], "cpu", "<= 1.05"),
        slower("step of SimMIM", "a loop by hand", times["simmim"], times["by hand"], "cpu", "<= 1.05"),
        slower("MAE's encoder, a quarter visible", "all visible", times["quarter"], times["whole"], "cpu"),
    ]


class _Lightly(nn.Module):
    """MAE's loss of lightly's parts, with the weights of ours."""

    def __init__(self, mae: MAE) -> None:
        super().__init__()
        self.encoder = MaskedVisionTransformerTIMM(
            deepcopy(mae.backbone),  # type: ignore[arg-type]  # a VisionTransformer, as MAE demands
            weight_initialization="skip",
            pos_embed_initialization="skip",
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # to be removed in lightly 1.7
            self.decoder = MAEDecoderTIMM(PATCHES, PATCH, 3, WIDTH, 96, 2, 3)

    def forward(self, image: Tensor) -> Tensor:
        size = (len(image), PATCHES + 1)
        kept, hidden = utils.random_token_mask(size=size, mask_ratio=0.75)
        tokens = utils.repeat_token(self.decoder.mask_token, size)
        tokens = utils.set_at_index(
            tokens, kept, self.decoder.embed(self.encoder.encode(images=image, idx_keep=kept)).type_as(tokens)
        )
        prediction = self.decoder.predict(utils.get_at_index(self.decoder.decode(tokens), hidden))
        return F.mse_loss(prediction, utils.get_at_index(utils.patchify(image, PATCH), hidden - 1))


def _by_hand(simmim: SimMIM, image: Tensor) -> Tensor:
    """SimMIM's loss, straight from equation 1."""
    vit: Any = simmim.backbone
    head: Any = simmim.network.get_submodule("head")
    mask = torch.rand(len(image), PATCHES).argsort(1).argsort(1) < simmim.hidden
    tokens = torch.where(mask[:, :, None], head.mask_token, vit.patch_embed(image))
    features = vit.norm(vit.blocks(vit._pos_embed(tokens)))[:, 1:]
    rows = SIDE // PATCH
    prediction = F.pixel_shuffle(head.layers[0](features.mT.unflatten(2, (rows, rows))), PATCH)
    hidden = F.interpolate(mask.view(-1, 1, rows, rows).float(), scale_factor=PATCH)
    return ((prediction - image).abs() * hidden).sum() / hidden.sum() / 3


def _step(module: nn.Module, loss: Callable[[], Tensor]) -> Side:
    optimizer = torch.optim.AdamW([it for it in module.parameters() if it.requires_grad], 1e-4)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]  # torch's, without types
        optimizer.step()

    return lambda: step


def _encoder(mae: MAE, image: Tensor, visible: int) -> Side:
    vit: Any = mae.backbone
    kept = torch.arange(visible).expand(len(image), -1)
    return lambda: lambda: encode_visible(vit, image, kept).sum().backward()  # type: ignore[no-untyped-call]  # torch's

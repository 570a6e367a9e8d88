"""The picture of LowRank: what is lost of a layer by its rank, and the terms while a network is taught."""

from collections.abc import Callable
from typing import Any

import timm
import torch
from matplotlib.figure import Figure
from torch import nn

from lightning_vision.callbacks import factorise, feature_distillation_loss, low_rank_factors
from lightning_vision.datamodules import Digits

__all__ = ["draw"]

RATIOS = {1.5: "C0", 2.0: "C1", 3.0: "C3"}


def draw() -> Figure:
    """The error of a trained layer by its rank, and the features' distance over steps of distillation on digits."""
    data = Digits()
    data.setup()
    images = data.train_set.images[:512].float() / 255
    labels = data.train_set.targets[:512].long()
    network = _vit()
    _train(network, lambda batch: nn.functional.cross_entropy(network(images[batch]), labels[batch]), 40, 2e-3)
    weight = network.blocks[1].mlp.fc1.weight.detach()
    values = torch.linalg.svdvals(weight)
    ranks = range(1, min(weight.shape) + 1)
    errors = [float((weight - torch.matmul(*low_rank_factors(weight, rank))).norm() / weight.norm()) for rank in ranks]
    figure = Figure(figsize=(10, 3.4))
    layer, taught = figure.subplots(1, 2)
    tails = [float(values[rank:].norm() / values.norm()) for rank in ranks]
    layer.plot(ranks, tails, color="0.75", linewidth=5, label="singular values left out")
    layer.plot(ranks, errors, "k", linewidth=1, label="|W - A B| / |W|")
    for ratio, colour in RATIOS.items():
        rank = int(weight.numel() // (ratio * sum(weight.shape)))
        layer.plot([rank], [errors[rank - 1]], "o", color=colour, label=f"ratio {ratio:g}, rank {rank}")
    layer.set(xlabel=f"rank of a layer {weight.shape[1]} to {weight.shape[0]}", ylabel="error", ylim=(0, None))
    for ratio, colour in RATIOS.items():
        student = _vit()
        student.load_state_dict(network.state_dict())
        factorise(student, ratio)

        def distance(batch: torch.Tensor, student: nn.Module = student) -> torch.Tensor:
            with torch.no_grad():
                theirs = _features(network, images[batch])
            return feature_distillation_loss(_features(student, images[batch]), theirs)

        taught.plot(_train(student, distance, 40, 3e-4), color=colour, label=f"ratio {ratio:g}")
    taught.set(yscale="log", xlabel="optimizer steps", ylabel="distance of the blocks' features")
    for axes in (layer, taught):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


def _vit() -> Any:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "img_size": 8,
        "patch_size": 2,
        "in_chans": 1,
        "embed_dim": 48,
        "depth": 2,
        "num_heads": 3,
    }
    return timm.create_model("vit_tiny_patch16_224", num_classes=10, **settings)


def _features(network: Any, images: torch.Tensor) -> list[torch.Tensor]:
    found: list[torch.Tensor] = network.forward_intermediates(images, intermediates_only=True)
    return found


def _train(network: nn.Module, loss_of: Callable[[torch.Tensor], torch.Tensor], steps: int, rate: float) -> list[float]:
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
    losses = []
    for step in range(steps):
        batch = torch.arange(32) + 32 * (step % 16)
        loss = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses

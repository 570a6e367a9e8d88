"""The picture of DataLeakCheck: how alike the most alike training image is, of other digits and of changed copies."""

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from lightning_vision.callbacks import DataLeakCheck
from lightning_vision.callbacks.verification.data_leak_check import nearest, thumbnails

from ..data_leak_check import difference_hash
from ._trained_digits import digits

__all__ = ["draw"]


def draw() -> Figure:
    """Shares of 600 digits by likeness, and by bits in common of a difference hash, which tells them less apart."""
    pixels, _ = digits()
    images = (pixels * 255).round().to(torch.uint8)
    bank, others = images[:1197], images[1197:]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(others.shape, generator=generator) * 8
    changed = {
        "another digit": None,
        "a copy, noisy": (images[:600] + noise).round().clamp(0, 255).to(torch.uint8),
        "a copy, blurred a little": _blurred(images[:600]),
        "a copy, dimmed": (images[:600] * 0.6 + 20).round().to(torch.uint8),
    }
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, copies in changed.items():
        asked = others if copies is None else copies
        left.hist(nearest(thumbnails(asked), thumbnails(bank))[0].numpy(), 60, (0.85, 1.0), alpha=0.6, label=name)
        right.hist(_bits(asked, bank).numpy(), 41, (0, 40), alpha=0.6, label=name)
    left.axvline(DataLeakCheck().similarity, color="C3", linestyle=":", label="similarity")
    left.set(xlabel="cosine with the most alike training image", ylabel="digits")
    right.set(xlabel="bits of 128 that differ, a difference hash, not used")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(0, 130)
    left.legend(frameon=False, loc="upper left", fontsize=8)
    return figure


def _blurred(images: Tensor) -> Tensor:
    wide = F.avg_pool2d(F.pad(images.float(), (1, 1, 1, 1), mode="replicate"), 3, 1)
    return (0.8 * images + 0.2 * wide).round().to(torch.uint8)


def _bits(queries: Tensor, bank: Tensor) -> Tensor:
    left, right = (difference_hash(it).float() * 2 - 1 for it in (queries, bank))
    return ((128 - left @ right.T) / 2).min(1).values

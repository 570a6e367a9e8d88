"""What the benchmarks of MixUp and CutMix share: the batch, the turns and the rows."""

from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np
import torch
from torch import Tensor

from lightning_vision.callbacks.hooks.targets import Targets

from .side_by_side import Row, Side, take_turns

__all__ = ["CLASSES", "mixing_rows"]

CLASSES = 1000
# Mixes a batch of images, float32 (B, 3, H, W), and labels, int64 (B,).
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def mixing_rows(kind: type[Targets], peers: dict[str, Mix], quick: bool) -> list[Row]:
    """Time all that a callback does to a batch, labels included, against `peers`.

    Args:
        kind: The callback's class, used with alpha = 1, with a share a batch and with a share a sample.
        peers: By name; "torchvision" among them.
        quick: One repetition of a small batch.
    """
    size, pixels = (8, 32) if quick else (256, 224)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(size, 3, pixels, pixels, generator=generator)
    # No class twice, so that a label tells whose it is.
    labels = torch.randperm(CLASSES, generator=generator)[:size]
    random = np.random.default_rng(0)

    def ours(per_sample: bool) -> Mix:
        callback = kind(alpha=1.0, per_sample=per_sample)
        return lambda image, label: callback.change((image, label), random)

    mixes = peers | {"batch": ours(per_sample=False), "sample": ours(per_sample=True)}
    for name, mix in mixes.items():
        mixed, target = mix(images.clone(), labels)
        kornias_mixup = name == "kornia" and target.ndim == 2
        _assert_mixed(mixed, *_partners_and_shares(target, labels, kornias_mixup), images)
    # A peer may work in place; mixing what is mixed takes as long.
    sides: dict[str, Side] = {side: lambda mix=mix: partial(mix, images, labels) for side, mix in mixes.items()}
    cpu = {side: clocks["cpu"] for side, clocks in take_turns(sides, *(1, 0) if quick else (21, 2)).items()}
    one, many = f"`{kind.__name__}`, a share a batch", f"`{kind.__name__}`, a share a sample"
    fastest, *others = sorted(peers, key=lambda peer: median(cpu[peer]))
    return [
        Row.slowdown(one, f"{fastest}, the fastest", cpu["batch"], cpu[fastest], "cpu", "<= 0.70"),
        *(Row.slowdown(one, peer, cpu["batch"], cpu[peer], "cpu") for peer in others),
        Row.slowdown(many, "torchvision, a share a batch", cpu["sample"], cpu["torchvision"], "cpu", "<= 1.00"),
    ]


def _partners_and_shares(target: Tensor, labels: Tensor, kornias_mixup: bool) -> tuple[Tensor, Tensor]:
    """Whom each sample was mixed with, int64 `(B,)`, and what share of it is its own, `(B,)`, as its label says.

    Args:
        target: Probabilities `(B, CLASSES)`; or kornia's own label, partner's and share, `(B, 3)` or `(1, B, 3)`; or
            our labels.
        labels: Those before, `(B,)`, all different.
        kornias_mixup: The share is the partner's.
    """
    count = torch.arange(len(labels))
    if (twin := getattr(target, "twin", None)) is not None:
        share = torch.as_tensor(getattr(target, "share", None)).expand(len(labels))
    elif target.shape[-1] == 3:
        _, twin, share = target.view(-1, 3).unbind(1)
        share = 1 - share if kornias_mixup else share
    else:
        torch.testing.assert_close(target.sum(1), torch.ones(len(labels)))
        share, others = target[count, labels], target.clone()
        others[count, labels] = 0
        # Nothing is left for another where an image met itself.
        twin = torch.where(others.amax(1) > 0, others.argmax(1), labels)
    return (twin.long()[:, None] == labels).long().argmax(1), share


def _assert_mixed(mixed: Tensor, partner: Tensor, share: Tensor, images: Tensor) -> None:
    """The images have changed and kept their form, and hold as much of their own as their labels say."""
    assert mixed.shape == images.shape and mixed.dtype == images.dtype and not torch.equal(mixed, images)
    others = partner != torch.arange(len(images))
    apart = images - images[partner]
    # The way from the partner's image to the own: exact for sums; for boxes noisy, as their pixels differ more or less.
    gone = ((mixed - images[partner]) * apart).flatten(1).sum(1) / apart.square().flatten(1).sum(1)
    torch.testing.assert_close(gone[others], share[others].to(gone.dtype), rtol=0, atol=0.05)

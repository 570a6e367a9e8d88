"""Neon: a generative model is improved by moving away from where training on its own samples leads it.

Alemohammad et al. 2025, Algorithm 1: with theta_r the base model and theta_s the same model after a short fine-tuning
on samples of its own,

    theta_neon = theta_r - w (theta_s - theta_r) = (1 + w) theta_r - w theta_s.

Samplers prefer what is probable (temperature below 1, top-k, guidance, few solver steps), so self-training shrinks the
model's diversity; the merge goes the other way. It costs nothing but the fine-tuning and needs no new data.
"""

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from lightning_vision.catalogue import nearest

from ._states import refuse_other_architectures

__all__ = ["neon_merge"]


def neon_merge(
    base: Mapping[str, Tensor],
    self_trained: Mapping[str, Tensor],
    w: float,
    kept: Sequence[str] = (),
    labels: Sequence[str] = ("base", "self_trained"),
) -> dict[str, Tensor]:
    """Weights extrapolated away from those of the same model after training on its own samples.

    (1 + w) base - w self_trained in float64, rounded once to the base's type. `w = 0` is the base and `w = -1` the
    self-trained weights bit for bit; values in which both agree stay as they are. Integer and boolean buffers are the
    base's. Floating buffers are merged as weights are, unless `kept` names them: a batch norm's variance cannot be
    extrapolated below zero and is refused there.

    Args:
        base: Of the model theta_r. Where a file holds an average of the weights, the average is merged.
        self_trained: Of the model theta_s, with the same names and shapes.
        w: Merge weight, finite. Above 0 it extrapolates; the paper searches it with the fine-tuning's length.
        kept: Shell patterns of names that are the base's whatever `w` is, such as `*running_*`.
        labels: What errors call the two, such as their files.

    Raises:
        ValueError: names or shapes differ, `w` is not finite, a pattern matches no name, or a merged variance is
            negative.

    Example:
        >>> import torch
        >>> from lightning_vision.merging import neon_merge
        >>> neon_merge({"scale": torch.tensor([2.0])}, {"scale": torch.tensor([1.0])}, w=0.5)
        {'scale': tensor([2.5000])}

    Reference: Alemohammad et al. 2025, arXiv:2510.03597

    BibTeX:
        @article{alemohammad2025neon,
          title = {Neon: Negative Extrapolation From Self-Training Improves Image Generation},
          author = {Alemohammad, Sina and Wang, Zhangyang and Baraniuk, Richard G.},
          journal = {arXiv preprint arXiv:2510.03597},
          year = {2025},
          eprint = {2510.03597},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        It says nothing of buffers.

    See also:
        `uniform_soup`, which goes between weights instead of away from them.
    """
    if isinstance(w, bool) or not isinstance(w, int | float) or not math.isfinite(w):
        raise ValueError(f"neon_merge: w is {w!r}; give a finite number, 0 for the base alone.")
    refuse_other_architectures([base, self_trained], labels)
    for pattern in kept:
        if not any(fnmatchcase(name, pattern) for name in base):
            raise ValueError(f"neon_merge: kept={pattern!r} matches no name of the state dict{nearest(pattern, base)}.")
    merged = {}
    for name, value in base.items():
        theirs = self_trained[name]
        trained = isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
        if not trained or any(fnmatchcase(name, pattern) for pattern in kept):
            merged[name] = value.clone() if isinstance(value, Tensor) else value
            continue
        merged[name] = _extrapolated(value.detach(), theirs.detach(), w)
        if name.endswith("running_var") and bool((merged[name] < 0).any()):
            raise ValueError(
                f"neon_merge: {name} is below zero at w={w}, and a variance cannot be; lower w, or keep the base's "
                "with kept=['*running_*'] and measure it again."
            )
    return merged


def _extrapolated(base: Tensor, theirs: Tensor, w: float) -> Tensor:
    if w in (0, -1):
        return base.clone() if w == 0 else theirs.to(base.dtype, copy=True)
    wide = torch.complex128 if base.is_complex() else torch.float64
    moved = (1 + w) * base.to(wide) - w * theirs.to(wide)
    return torch.where(base == theirs, base, moved.to(base.dtype))

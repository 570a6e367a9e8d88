"""MixUp: train on the line between two images and between their labels.

Zhang, Cisse, Dauphin and Lopez-Paz 2017, arXiv:1710.09412, Eq. 1 and the algorithm of its Figure 1. Symbols: lambda
`lam`, the share of the own image; alpha `alpha`; x_j `images[partner]`; B samples of the micro-batch.
"""

from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from ..hooks._checks import flag, number
from ..hooks._memory import Blocks, dense
from ..hooks.targets import Mix, Targets

__all__ = ["MixUp", "MixUpDraw", "mixup_images"]

# Bytes mixed at a time on the CPU, so that the partners' pixels are still in the cache when they are mixed.
_CHUNK = 2**21


def mixup_images(
    images: Tensor, partner: Tensor, lam: float | Tensor, blocks: Blocks | None = None, owner: str = "MixUp"
) -> Tensor:
    """MixUp images: each interpolated with its partner.

    `lam * images + (1 - lam) * images[partner]`, Eq. 1, as one linear interpolation. So an image mixed with
    itself, and a share of 0 or 1, give the image itself, bit for bit.

    Args:
        images: `(B, ...)`, floating point; left unchanged.
        partner: int64 `(B,)`, which sample each is mixed with.
        lam: Share of the own image in [0, 1]: one number, or `(B,)` of the images' dtype.
        blocks: Where memory for the result is taken from on the CPU; None takes fresh memory.
        owner: Who mixes; the subject of the error.

    Returns:
        New tensor with shape, dtype and memory format of `images`.

    Raises:
        ValueError: the images are not floating point.
    """
    if not images.is_floating_point():
        raise ValueError(
            f"{owner}: the images are {images.dtype}, which cannot hold a mixture; convert them to floats before (in "
            "the dataset or in `on_after_batch_transfer`), or use CutMix."
        )
    partner = partner.to(images.device, non_blocking=True)
    if isinstance(lam, Tensor):
        lam = lam.to(images.device, non_blocking=True)
    if images.device.type != "cpu" or images.requires_grad:
        share = lam.view(-1, *[1] * (images.ndim - 1)) if isinstance(lam, Tensor) else lam
        return torch.lerp(images[partner], images, share)
    images = dense(images)
    mixed = (blocks or Blocks()).like(images)
    size = images[0].numel()
    source, result = (it.as_strided((len(it), size), (size, 1)) for it in (images, mixed))
    rows = max(1, _CHUNK // (size * images.element_size()))
    theirs = torch.empty_like(source[:rows])
    for start in range(0, len(source), rows):
        part = slice(start, start + rows)
        own = source[part]
        other = torch.index_select(source, 0, partner[part], out=theirs[: len(own)])
        torch.lerp(other, own, lam[part, None] if isinstance(lam, Tensor) else lam, out=result[part])
    return mixed


@dataclass(frozen=True)
class MixUpDraw:
    """All random choices that MixUp makes for a batch.

    Args:
        partner: int64 `(B,)`, a permutation.
        lam: float64 `(N,)`, share of the own image in [0, 1]; N is 1 (one share for the batch) or B.
    """

    partner: Tensor
    lam: Tensor


@final
class MixUp(Targets):
    """Trains on convex combinations of two images and of their labels.

    Each training micro-batch is mixed once, on the device, before `training_step` and all that replays it; each image
    is mixed with another of the same batch. Integer labels stay integers, so metrics count the own label; the loss
    computed from them becomes `lam L(own) + (1 - lam) L(partner's)`. The loader's images, validation, test and
    prediction stay untouched. A batch of one sample is left alone.

    Args:
        alpha: Both parameters of the Beta distribution of lambda, >= 0. The paper's 0.1 to 0.4 on ImageNet (0.2, the
            default, for 90 epochs of ResNet-50) and 1 on CIFAR. Neutral: 0.
        prob: Probability that a batch is mixed, 0 to 1; the paper's is 1. Neutral: 0.
        per_sample: Draw a lambda for each sample; the paper's code draws one for the batch.
        targets: "loss" mixes the loss; "soft" puts probabilities `(B, num_classes)` in the place of the labels,
            also where a batch is not mixed; "sampled" keeps a label with probability lambda and takes the partner's
            otherwise.
        num_classes: Classes of `targets="soft"`; None asks the module, then the datamodule.
        seed: Seed of the callback's own random stream, >= 0.
        image_key: Key of the images where batches are mappings; elsewhere they come first.
        target_key: Key of the labels where batches are mappings; elsewhere they come second.
        name: Part of the state key.

    Shape:
        images `(B, C, H, W)`, floating point; labels int64 `(B,)`, or any whose loss torch computes.

    Raises:
        ValueError: a setting outside its range; another callback mixes the loss; the number of classes is unknown; at
            the first step, images that are not floating point or a loss that cannot be seen.

    Example:
        >>> import numpy as np, torch
        >>> mixup = MixUp(alpha=1.0)
        >>> images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
        >>> mixup.mix(images, MixUpDraw(torch.tensor([1, 0]), torch.tensor([0.75]))).images.flatten()
        tensor([0.2500, 0.7500])

    Reference: Zhang et al. 2017, arXiv:1710.09412

    BibTeX:
        @inproceedings{zhang2018mixup,
          title = {mixup: Beyond Empirical Risk Minimization},
          author = {Zhang, Hongyi and Cisse, Moustapha and Dauphin, Yann N. and Lopez-Paz, David},
          booktitle = {International Conference on Learning Representations},
          year = {2018},
        }

    Differs from the paper:
        Nothing with the defaults. Where the loss is linear in the label, as cross entropy is, the mixed loss is the
        loss on the mixed label of Eq. 1. `per_sample`, "soft" and "sampled" are additions.

    See also:
        `CutMix`, which keeps pixels as they are; `torchvision.transforms.v2.MixUp`; `timm.data.Mixup`.
    """

    neutral = ({"alpha": 0.0}, {"prob": 0.0})

    def __init__(
        self,
        alpha: float = 0.2,
        prob: float = 1.0,
        per_sample: bool = False,
        targets: Literal["loss", "soft", "sampled"] = "loss",
        num_classes: int | None = None,
        seed: int = 0,
        image_key: str = "image",
        target_key: str = "target",
        name: str | None = None,
    ) -> None:
        super().__init__(
            prob=prob,
            targets=targets,
            num_classes=num_classes,
            seed=seed,
            image_key=image_key,
            target_key=target_key,
            name=name,
        )
        number("MixUp", "alpha", alpha, 0)
        flag("MixUp", "per_sample", per_sample)
        self.alpha, self.per_sample = alpha, per_sample

    def draw(self, shape: torch.Size, random: np.random.Generator) -> MixUpDraw:
        # A permutation: a flip or a roll pairs neighbours only, and a flip needs an even batch.
        partner = torch.from_numpy(random.permutation(shape[0]))
        lam = random.beta(self.alpha, self.alpha, shape[0] if self.per_sample else 1)
        return MixUpDraw(partner, torch.from_numpy(lam))

    def mix(self, images: Tensor, draw: MixUpDraw) -> Mix:
        partner = draw.partner.to(images.device, non_blocking=True)
        if len(draw.lam) == 1:
            lam = float(draw.lam)
            return Mix(mixup_images(images, partner, lam, self.blocks), partner, lam)
        # Rounded to the images' dtype first, so that images and labels are mixed in the same shares.
        shares = draw.lam.to(images.dtype).to(images.device, non_blocking=True)
        return Mix(mixup_images(images, partner, shares, self.blocks), partner, shares.float())

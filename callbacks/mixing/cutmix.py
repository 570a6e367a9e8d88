"""CutMix: cut a box out of one image, paste it into another, and share the label by area.

Yun, Han, Oh, Chun, Choe and Yoo 2019, arXiv:1905.04899, Eq. 1 and 2. Symbols: lambda `lam`, the share of the own image;
alpha `alpha`; B `box` (top, bottom, left, right; pixels; half open); x_B `images[partner]`; letters: B samples of the
micro-batch, C channels, H height, W width, N boxes (1 for all samples, or B).
"""

from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from ..hooks._checks import flag, number
from ..hooks._memory import Blocks, dense, elements
from ..hooks.targets import Mix, Targets

__all__ = ["CutMix", "CutMixDraw", "cutmix_box", "cutmix_images", "cutmix_lam"]


def cutmix_box(lam: Tensor, centre: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes of CutMix, whose sides are sqrt(1 - lam) of the image's, clipped at its borders.

    Eq. 2. Half a side is floored, as in the authors' code, so a side is even before clipping.

    Args:
        lam: float64 `(N,)` in [0, 1]; 1 makes an empty box, 0 one as large as the image (of even sides).
        centre: int64 `(N, 2)`, row and column in pixels.
        size: (H, W) in pixels.

    Returns:
        int64 `(N, 4)`: top, bottom, left, right in pixels, half open.
    """
    limit = torch.tensor(size)
    half = (0.5 * torch.sqrt(1 - lam)[:, None] * limit).long()
    corners = torch.stack([centre - half, centre + half], dim=2)
    return corners.clamp(min=0).minimum(limit[:, None]).flatten(1)


def cutmix_lam(box: Tensor, size: tuple[int, int]) -> Tensor:
    """CutMix's lambda as realised: the share of the own pixels.

    lam = 1 - (bottom - top) (right - left) / (H W), float64 `(N,)`.

    Args:
        box: int64 `(N, 4)`: top, bottom, left, right in pixels, half open.
        size: (H, W) in pixels.
    """
    top, bottom, left, right = box.unbind(1)
    pixels = size[0] * size[1]
    return (pixels - (bottom - top) * (right - left)).double() / pixels


def cutmix_images(images: Tensor, partner: Tensor, box: Tensor, blocks: Blocks | None = None) -> Tensor:
    """CutMix images: inside the box the partner's pixels, outside the own.

    Eq. 1 for the images: M x + (1 - M) x[partner] with M = 0 in the box.

    Args:
        images: `(B, C, H, W)`, any dtype; left unchanged.
        partner: int64 `(B,)` on the CPU or on the images' device, whose pixels each sample is given.
        box: int64 `(N, 4)` on the CPU: top, bottom, left, right in pixels, half open; N is 1 or B.
        blocks: Where memory for the result is taken from on the CPU; None takes fresh memory.

    Returns:
        New tensor with shape, dtype and memory format of `images`.
    """
    if images.device.type != "cpu" or images.requires_grad:
        # On an accelerator one mask for the batch: B slices would be B kernels, each started by the host.
        partner, box = (it.to(images.device, non_blocking=True) for it in (partner, box))
        top, bottom, left, right = box[:, :, None].unbind(1)
        row, column = (torch.arange(side, device=images.device) for side in images.shape[2:])
        rows, columns = (row >= top) & (row < bottom), (column >= left) & (column < right)
        return torch.where(rows[:, None, :, None] & columns[:, None, None, :], images[partner], images)
    images = dense(images)
    mixed = (blocks or Blocks()).like(images).copy_(images)
    source, result = elements(images), elements(mixed)
    boxes = box.expand(len(images), 4).tolist()
    for own, other, (top, bottom, left, right) in zip(result, partner.tolist(), boxes, strict=True):
        own[:, top:bottom, left:right] = source[other, :, top:bottom, left:right]
    return mixed


@dataclass(frozen=True)
class CutMixDraw:
    """All random choices that CutMix makes for a batch.

    Args:
        partner: int64 `(B,)`, a permutation.
        box: int64 `(N, 4)`: top, bottom, left, right in pixels, half open; N is 1 (one box for the batch) or B.
        lam: float64 `(N,)`, share of the own pixels.
    """

    partner: Tensor
    box: Tensor
    lam: Tensor


@final
class CutMix(Targets):
    """Pastes a box of another image into each image and shares the label by area.

    Each training micro-batch is mixed once, on the device, before `training_step` and all that replays it; boxes come
    from images of the same batch and stay where they were. Integer labels stay integers, so metrics count the own
    label; the loss computed from them becomes `lam L(own) + (1 - lam) L(partner's)`. The loader's images, validation,
    test and prediction stay untouched. A batch of one sample is left alone.

    Args:
        alpha: Both parameters of the Beta distribution of lambda, >= 0; the paper's is 1, so that lambda is uniform.
            Neutral: 0.
        prob: Probability that a batch is mixed, 0 to 1; the authors' 0.5 on CIFAR, 1 on ImageNet. Neutral: 0.
        per_sample: Draw a box for each sample; the authors' code draws one for the batch.
        targets: "loss" mixes the loss; "soft" puts probabilities `(B, num_classes)` in the place of the labels,
            also where a batch is not mixed; "sampled" keeps a label with probability lambda and takes the partner's
            otherwise.
        num_classes: Classes of `targets="soft"`; None asks the module, then the datamodule.
        seed: Seed of the callback's own random stream, >= 0.
        image_key: Key of the images where batches are mappings; elsewhere they come first.
        target_key: Key of the labels where batches are mappings; elsewhere they come second.
        name: Part of the state key.

    Shape:
        images `(B, C, H, W)`, floating point or uint8; labels int64 `(B,)`, or any whose loss torch computes.

    Raises:
        ValueError: a setting outside its range; another callback mixes the loss; the number of classes is unknown; at
            the first step, images that are not `(B, C, H, W)` or a loss that cannot be seen.

    Example:
        >>> import torch
        >>> box = cutmix_box(torch.tensor([0.75]).double(), torch.tensor([[0, 0]]), (8, 8))
        >>> box, cutmix_lam(box, (8, 8))
        (tensor([[0, 2, 0, 2]]), tensor([0.9375], dtype=torch.float64))

    Reference: Yun et al. 2019, arXiv:1905.04899

    BibTeX:
        @inproceedings{yun2019cutmix,
          title = {{CutMix}: Regularization Strategy to Train Strong Classifiers with Localizable Features},
          author = {Yun, Sangdoo and Han, Dongyoon and Oh, Seong Joon and Chun, Sanghyuk and Choe, Junsuk and
            Yoo, Youngjoon},
          booktitle = {International Conference on Computer Vision},
          year = {2019},
        }

    Differs from the paper:
        Lambda is the share of own pixels outside the clipped box, as in the authors' code since they corrected it, and
        not the one that was drawn. `per_sample`, "soft" and "sampled" are additions.

    See also:
        `MixUp`, which interpolates; `torchvision.transforms.v2.CutMix`; `timm.data.Mixup`.
    """

    neutral = ({"alpha": 0.0}, {"prob": 0.0})

    def __init__(
        self,
        alpha: float = 1.0,
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
        number("CutMix", "alpha", alpha, 0)
        flag("CutMix", "per_sample", per_sample)
        self.alpha, self.per_sample = alpha, per_sample

    def draw(self, shape: torch.Size, random: np.random.Generator) -> CutMixDraw:
        size = (shape[2], shape[3])
        count = shape[0] if self.per_sample else 1
        # A permutation: a flip or a roll pairs neighbours only, and a flip needs an even batch.
        partner = torch.from_numpy(random.permutation(shape[0]))
        drawn = torch.from_numpy(random.beta(self.alpha, self.alpha, count))
        box = cutmix_box(drawn, torch.from_numpy(random.integers(size, size=(count, 2))), size)
        # As realised: a box is rounded to pixels and clipped, so it is smaller than the drawn lambda says.
        return CutMixDraw(partner, box, cutmix_lam(box, size))

    def mix(self, images: Tensor, draw: CutMixDraw) -> Mix:
        partner = draw.partner.to(images.device, non_blocking=True)
        lam = float(draw.lam) if len(draw.lam) == 1 else draw.lam.float().to(images.device, non_blocking=True)
        return Mix(cutmix_images(images, partner, draw.box, self.blocks), partner, lam)

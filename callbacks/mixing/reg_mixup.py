"""RegMixup: train on images as they are, and on mixtures of them as a regulariser beside.

Pinto, Yang, Lim, Torr and Dokania 2022, arXiv:2206.14502. Symbols: lambda `lam`, the share of the own image in a
mixture; alpha `alpha`; eta `eta`, the weight of the mixtures; x_j `images[partner]`; B samples of the micro-batch, K
classes.
"""

from typing import final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..hooks._checks import above_zero, flag, number
from ..hooks.targets import Mix, Targets
from .mixup import MixUpDraw, mixup_images

__all__ = ["RegMixup", "regmixup_loss"]


def regmixup_loss(logits: Tensor, target: Tensor, partner: Tensor, lam: float | Tensor, eta: float) -> Tensor:
    """RegMixup's loss with cross entropy, of plain images and their mixtures.

    mean l(z, y) + eta mean [lam l(z~, y) + (1 - lam) l(z~, y[partner])]

    Args:
        logits: `(2B, K)`, z of the images and below them z~ of the mixtures.
        target: int64 `(B,)`.
        partner: int64 `(B,)`, which sample each is mixed with.
        lam: Share of the own image: one number, or `(B,)`.
        eta: Weight of the mixtures' loss.
    """
    plain, mixed = logits.chunk(2)
    own, other = (F.cross_entropy(mixed, it, reduction="none") for it in (target, target[partner]))
    return F.cross_entropy(plain, target) + eta * (lam * own + (1 - lam) * other).mean()


@final
class RegMixup(Targets):
    """Adds the loss of mixtures of two images, weighted, to the loss of the images as they are.

    Each training micro-batch is made twice as large once, on the device, before `training_step` and all that replays
    it: the images as they were, and below them mixtures of each with another of the batch, in one forward pass. The
    loss L that `training_step` computes from the labels is computed of either half and becomes
    `L(plain) + eta [lam L(own) + (1 - lam) L(partner's)]`, where L is the mean or sum over samples and what multiplies
    it: what else is done with that, as a root or flooding, is done once, with this sum, and not with each half's loss.
    A term without labels counts once. Metrics of the step are those of the plain images: the module's torchmetrics
    objects, and means over samples, as `(pred == y).float().mean()`. Counts that nobody has divided are of all 2B
    images, by own labels, which is warned about where they are logged or leave torch. Validation, test and prediction
    stay untouched. A batch of one sample is left alone.

    Args:
        alpha: Both parameters of the Beta distribution of lambda, > 0. The paper's 10 to 20: mixtures near one half.
        eta: Weight of the mixtures' loss, >= 0; the paper's is 1. Neutral: 0.
        per_sample: Draw a lambda for each sample; the paper's code draws one for the batch.
        seed: Seed of the callback's own random stream, >= 0.
        image_key: Key of the images where batches are mappings; elsewhere they come first.
        target_key: Key of the labels where batches are mappings; elsewhere they come second.
        name: Part of the state key.

    Shape:
        images `(B, C, H, W)`, floating point; labels int64 `(B,)`, or any whose loss torch computes.

    Raises:
        ValueError: a setting outside its range; another callback mixes the loss; at the first step, images that are not
            floating point, a batch with more than images and labels for each sample, a loss that cannot be seen, that
            compares samples, or that scales what they cost by what may be of plain and mixed images together.

    Example:
        >>> import torch
        >>> z = torch.tensor([[2.0, 0.0], [0.0, 2.0], [1.0, 1.0], [1.0, 1.0]])  # sure of images, not of mixtures
        >>> regmixup_loss(z, torch.tensor([0, 1]), torch.tensor([1, 0]), lam=0.5, eta=1.0)
        tensor(0.8201)

    Reference: Pinto et al. 2022, arXiv:2206.14502

    BibTeX:
        @inproceedings{pinto2022regmixup,
          title = {{RegMixup}: Mixup as a Regularizer Can Surprisingly Improve Accuracy and Out Distribution
            Robustness},
          author = {Pinto, Francesco and Yang, Harry and Lim, Ser-Nam and Torr, Philip H. S. and Dokania, Puneet K.},
          booktitle = {Advances in Neural Information Processing Systems},
          year = {2022},
        }

    Differs from the paper:
        Nothing with the defaults. `per_sample` is an addition.

    See also:
        `MixUp`, which trains on mixtures alone, at the cost of one forward pass of B images and not of 2B.
    """

    neutral = ({"eta": 0.0},)
    rests = "dropout draws for twice as many images, plain and mixed ones"
    stands_alone = "it trains on plain images beside the mixed ones"

    def __init__(
        self,
        alpha: float = 10.0,
        eta: float = 1.0,
        per_sample: bool = False,
        seed: int = 0,
        image_key: str = "image",
        target_key: str = "target",
        name: str | None = None,
    ) -> None:
        super().__init__(
            prob=1.0,
            targets="loss",
            num_classes=None,
            seed=seed,
            image_key=image_key,
            target_key=target_key,
            name=name,
        )
        above_zero("RegMixup", "alpha", alpha)
        number("RegMixup", "eta", eta, 0)
        flag("RegMixup", "per_sample", per_sample)
        self.alpha, self.eta, self.per_sample = alpha, eta, per_sample

    def draw(self, shape: torch.Size, random: np.random.Generator) -> MixUpDraw:
        partner = torch.from_numpy(random.permutation(shape[0]))
        lam = random.beta(self.alpha, self.alpha, shape[0] if self.per_sample else 1)
        return MixUpDraw(partner, torch.from_numpy(lam))

    def mix(self, images: Tensor, draw: MixUpDraw) -> Mix:
        partner = draw.partner.to(images.device, non_blocking=True)
        if len(draw.lam) == 1:
            lam = float(draw.lam)
            return Mix(mixup_images(images, partner, lam, self.blocks, "RegMixup"), partner, lam, beside=self.eta)
        # Rounded to the images' dtype first, so that images and labels are mixed in the same shares.
        shares = draw.lam.to(images.dtype).to(images.device, non_blocking=True)
        return Mix(
            mixup_images(images, partner, shares, self.blocks, "RegMixup"), partner, shares.float(), beside=self.eta
        )

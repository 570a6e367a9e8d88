"""Two images laid over one another, with the boxes of both."""

from typing import final

import torch
from torch import Tensor

from ._partners import of_partners, partners
from ._placing import fraction, joined
from .annotations import Annotations
from .box_augmentation import BoxAugmentation

__all__ = ["BoxMixUp"]


@final
class BoxMixUp(BoxAugmentation):
    """Blends each image with another of its batch, pixel on pixel, and keeps the boxes of both.

    The image's share is drawn from Beta(alpha, alpha). Nothing is resized or moved, so that shapes stay what they were.
    All objects that stay count in full: the result has the plain union of both images' boxes, as YOLOX trains on it.
    Its `image_id`, `size` and `placement` are those of the image itself.

    Args:
        prob: Fraction of the images that are blended; 0 leaves all as they are.
        alpha: Of the beta distribution, above 0.5; the larger, the nearer shares are to one half. The paper's is 1.5.
        min_visible: Least share of an image whose objects stay; what is fainter has pixels in the result, but no box.

    Shape:
        uint8 `(B, C, H, W)` to the same.

    Raises:
        ValueError: `prob` or `min_visible` is no fraction, `alpha` not above 0.5; images are not uint8
            `(B, 1 or 3, H, W)`.

    Example:
        >>> from lightning_vision.datamodules.detection import pack_boxes
        >>> annotations = pack_boxes([torch.tensor([[8, 8, 16, 24]])] * 2, [torch.tensor([1])] * 2, size=(32, 32))
        >>> images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
        >>> BoxMixUp(min_visible=0.0)(images, annotations)[1].sample.tolist()
        [0, 0, 1, 1]

    Reference: Zhang et al. 2019, arXiv:1902.04103

    BibTeX:
        @article{zhang2019bag,
          title = {Bag of Freebies for Training Object Detection Neural Networks},
          author = {Zhang, Zhi and He, Tong and Zhang, Hang and Zhang, Zhongyue and Xie, Junyuan and Li, Mu},
          journal = {arXiv preprint arXiv:1902.04103},
          year = {2019},
        }

    Differs from the paper:
        It weighs the loss of each object by its image's share; here each counts in full, because no detector of
        torchvision has a place for such weights. So that no network is asked for what cannot be seen, objects of an
        image with a share below `min_visible` are dropped.

    See also:
        `MixUp`, for classes; `Mosaic`, which lays images side by side.
    """

    draws = 4

    def __init__(self, prob: float = 1.0, alpha: float = 1.5, min_visible: float = 0.1) -> None:
        if not alpha > 0.5:
            raise ValueError(f"BoxMixUp: alpha is {alpha}; give more than 0.5, where two numbers make one share.")
        self.prob, self.alpha = fraction("BoxMixUp", "prob", prob), alpha
        self.min_visible = fraction("BoxMixUp", "min_visible", min_visible)

    def apply(self, images: Tensor, annotations: Annotations, uniform: Tensor) -> tuple[Tensor, Annotations]:
        self.check(images, annotations, uniform)
        if self.prob == 0:
            return images, annotations
        own, partner = partners(uniform[:, 3], 2)
        # A batch of one image has no other, and no object should be there twice.
        share = torch.where(own == partner, 1.0, self.shares(uniform))
        blended = blend(images, images[partner], share)
        others = of_partners(annotations, partner)
        stay, come = share >= self.min_visible, (1 - share >= self.min_visible) & (share < 1)
        return blended, joined(annotations.keep(stay[annotations.sample]), [others.keep(come[others.sample])])

    def shares(self, uniform: Tensor) -> Tensor:
        """The part that each image has in its own result, float64 `(B,)`, 1 for those that are not blended.

        A symmetric beta variate of two uniform numbers u and v, for alpha above one half: the cosine of a turn by v
        times the root of 1 - u^(2 / (2 alpha - 1)), brought from -1..1 to 0..1 (Devroye 1986, chapter IX).

        Args:
            uniform: What `apply` takes, `(B, 4)`.
        """
        draws = uniform.double()
        radius = (1 - draws[:, 0] ** (2 / (2 * self.alpha - 1))).sqrt()
        share = (1 + radius * (2 * torch.pi * draws[:, 1]).cos()) / 2
        return torch.where(draws[:, 2] < self.prob, share, 1.0)


def blend(images: Tensor, others: Tensor, share: Tensor) -> Tensor:
    """`share * images + (1 - share) * others`, rounded to bytes.

    Args:
        images: uint8 `(B, C, H, W)`.
        others: Likewise.
        share: From 0 to 1, `(B,)`.
    """
    weight = share.float().view(-1, 1, 1, 1)
    return torch.lerp(others.float(), images.float(), weight).add_(0.5).to(torch.uint8)

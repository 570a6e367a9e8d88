"""RotNet: whoever sees how far an image was turned has understood what is on it."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .gather import mean_of_all
from .learner import SelfSupervisedLearner
from .views import View, Views

__all__ = ["RotNet", "rotations_of"]


def rotations_of(image: Tensor, count: int = 4) -> Tensor:
    """Each image turned counter-clockwise by 0, 90, 180 and 270 degrees, or by 0 and 180.

    Args:
        image: `(B, C, H, W)`, with H = W for four.
        count: 4 or 2.

    Returns:
        `(count, B, C, H, W)`, where entry k is turned by k 360 / count degrees.

    Reference: Gidaris et al. 2018, arXiv:1803.07728, section 3.2
    """
    return torch.stack([torch.rot90(image, turn * 4 // count, (2, 3)) for turn in range(count)])


class RotNet(SelfSupervisedLearner):
    """Learns by telling how far an image was turned.

    Logs `loss`, the cross-entropy of a linear layer on the features, and `acc`, how often it is right, 0..1. Nothing is
    to be learned where images have no upright, such as satellite pictures and textures.

    Args:
        rotations: 4 (0, 90, 180 and 270 degrees) or 2 (0 and 180).
        all_four: Turn each image in all ways, so that a batch grows by as much; otherwise in one, drawn at random.
        crop: Smallest and largest area of a box that is cut out first, fractions of the image's; None cuts nothing.
        size: Pixels of the side of what is turned, to which the image, or the box that `crop` cuts out, is squashed;
            None is the image's own size.
        flip: Probability that left and right are exchanged first.
        **common: As `SelfSupervisedLearner`.

    Raises:
        ValueError: as `SelfSupervisedLearner`; `rotations` is neither, or four are asked of images that are not square.

    Example:
        >>> learner = RotNet(backbone="resnet8_cifar", in_channels=1)
        >>> learner.features(torch.zeros(2, 1, 24, 24)).shape
        torch.Size([2, 64])

    Reference: Gidaris et al. 2018, arXiv:1803.07728

    BibTeX:
        @inproceedings{gidaris2018rotnet,
          title = {Unsupervised Representation Learning by Predicting Image Rotations},
          author = {Gidaris, Spyros and Singh, Praveer and Komodakis, Nikos},
          booktitle = {International Conference on Learning Representations},
          year = {2018},
        }
    """

    def __init__(
        self,
        rotations: int = 4,
        all_four: bool = True,
        crop: tuple[float, float] | None = None,
        size: int | None = None,
        flip: float = 0.0,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if rotations not in (2, 4):
            raise ValueError(f"rotations is {rotations}; give 4 (0, 90, 180, 270 degrees) or 2 (0, 180)")
        self.rotations, self.all_four = rotations, all_four
        changed = crop is not None or size is not None or flip > 0
        view = View(size, crop=crop, flip=flip, jitter=0.0, grey=0.0)
        self.views = Views([view]) if changed else None
        self.network.add_module("classifier", nn.Linear(self.feature_dim, rotations))

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and (size := self.data_size()):
            self._check_square(*size)

    @property
    def draws(self) -> int:
        return (self.views.draws if self.views else 0) + int(not self.all_four)

    def losses(self, image: Tensor, uniform: Tensor) -> dict[str, Tensor]:
        self._check_square(*image.shape[2:])
        if self.views:
            (image,) = self.views(image, uniform[:, : self.views.draws], *self.statistics())
        turned = rotations_of(image, self.rotations)
        if self.all_four:
            label = torch.arange(self.rotations, device=image.device).repeat_interleave(len(image))
            turned = turned.flatten(0, 1)
        else:
            label = (uniform[:, -1] * self.rotations).long().to(image.device)
            turned = turned[label, torch.arange(len(image), device=image.device)]
        logits = self.network(turned)
        loss = mean_of_all(F.cross_entropy(logits, label, reduction="none"))
        return {"loss": loss, "acc": (logits.argmax(dim=1) == label).float().mean()}

    def _check_square(self, height: int, width: int) -> None:
        if self.views is not None:
            height, width = self.views.views[0].sides(height, width)
        if self.rotations == 4 and height != width:
            raise ValueError(
                f"images are {height} x {width} pixels and a quarter turn would change that; give `size`, which "
                "squashes them to squares, or rotations=2"
            )

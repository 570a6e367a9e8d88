"""Test-time augmentation: an answer for an image is the mean of the answers for several views of it.

Krizhevsky et al. 2012 average the softmax of the four corners, the centre and the mirror images of these. Letters: V
views, B batch, C channels, H and W sides, K classes, z logits, p probabilities.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, final, get_args

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor
from torchvision.transforms.functional import five_crop, hflip, resize, ten_crop

from ..hooks._checks import flag
from ..hooks.ensemble import log_mean_probability
from ..hooks.views import Views

__all__ = ["TestTimeAugmentation", "evaluation_views", "logit_mean_probability"]

Kind = Literal["none", "flip", "five_crop", "ten_crop"]
Probabilities = Literal["auto", "softmax", "sigmoid"]


def evaluation_views(image: Tensor, views: Kind, crop: tuple[int, int], scale_back: bool = False) -> Sequence[Tensor]:
    """The views of images that test-time augmentation averages over, in torchvision's order.

    Args:
        image: `(B, C, H, W)`.
        views: `none`, the images alone; `flip`, they and their mirror images; `five_crop`, the corners (top left, top
            right, bottom left, bottom right) and the centre; `ten_crop`, these and those of the mirror images.
        crop: Height and width of the crops, pixels.
        scale_back: Bring crops to the images' own size, bilinearly.
    """
    if views == "none":
        return [image]
    if views == "flip":
        return [image, hflip(image)]
    found = (five_crop if views == "five_crop" else ten_crop)(image, list(crop))
    return [resize(it, list(image.shape[-2:]), antialias=True) for it in found] if scale_back else list(found)


def logit_mean_probability(logits: Tensor) -> Tensor:
    """Logit of the mean of several sigmoid probabilities: logits `(V, B, K)` to `(B, K)`, float32 or wider.

    log(mean p) - log(mean (1 - p)), each from logarithms, so that it holds for huge logits; its sigmoid is the mean.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    yes: Tensor = F.logsigmoid(wide).logsumexp(dim=0)
    no: Tensor = F.logsigmoid(-wide).logsumexp(dim=0)
    return yes - no


@final
class TestTimeAugmentation(Views):
    """Tests and predicts by the mean probability over mirrored or cropped views of each image.

    In `test` and `predict`, and in validations if asked, `pl_module(images)` returns the log of the mean of the views'
    softmax probabilities in place of logits, or for several labels an image the logit of the mean sigmoid: labels,
    losses and metrics read it as logits. Training and weights are untouched.

    Args:
        views: `flip` (2 views), `five_crop`, `ten_crop`, or `none`, which is neutral.
        crop: Side of the crops: a fraction of the image's, above 0 and below 1, or whole pixels. 0.875 is 224 of 256,
            the usual sizes on ImageNet. Without meaning for `flip`.
        resize: Bring crops back to the images' size, for a network that takes only that. False shows crops as they are,
            as the paper does: load images larger than the network's (`eval_size`) and give its size as `crop`.
        probabilities: `softmax` (one label an image), `sigmoid` (several), or `auto`: the module's attribute
            `multilabel` tells, and without one it is `softmax`.
        validate: Do the same in validations, those of a fit among them.
        name: Part of the state key.

    Shape:
        Forward takes images `(B, C, H, W)` and returns logits `(B, K)`.

    Raises:
        ValueError: a setting is unknown or out of its range; `probabilities` contradicts the module's `multilabel`; in
            the first batch, a crop is larger than the image, or forward is not of the shape above or was not called.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import TestTimeAugmentation
        >>> trainer = Trainer(callbacks=[TestTimeAugmentation("ten_crop", crop=28)], accelerator="cpu", logger=False)

    Reference: Krizhevsky et al. 2012, NeurIPS 25

    BibTeX:
        @inproceedings{krizhevsky2012imagenet,
          title = {{ImageNet} Classification with Deep Convolutional Neural Networks},
          author = {Krizhevsky, Alex and Sutskever, Ilya and Hinton, Geoffrey E.},
          booktitle = {Advances in Neural Information Processing Systems},
          volume = {25},
          year = {2012},
        }

    Differs from the paper:
        The paper has ten crops of 224 of 256 pixels; two and five views, other sizes and scaling back are this class's.

    See also:
        `lightning_vision.callbacks.hooks.ensemble.Ensemble`, which averages over weights; both together are the mean
        over all.
    """

    # Not one of pytest's tests, whatever its name says.
    __test__: ClassVar[bool] = False
    neutral = ({"views": "none"},)

    def __init__(
        self,
        views: Kind = "flip",
        crop: int | float = 0.875,
        resize: bool = False,
        probabilities: Probabilities = "auto",
        validate: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(validate=validate, name=name)
        for argument, value, known in (("views", views, Kind), ("probabilities", probabilities, Probabilities)):
            if value not in get_args(known):
                names = ", ".join(map(repr, get_args(known)))
                raise ValueError(f"TestTimeAugmentation: {argument} is {value!r}; give one of {names}.")
        pixels = isinstance(crop, int) and not isinstance(crop, bool) and crop >= 1
        if not pixels and not (isinstance(crop, float) and 0 < crop < 1):
            raise ValueError(
                f"TestTimeAugmentation: crop is {crop!r}; give a fraction between 0 and 1, or whole pixels from 1 on."
            )
        flag("TestTimeAugmentation", "resize", resize)
        self.crop, self.resize, self.probabilities = crop, resize, probabilities
        self.views: Kind = views

    def views_of(self, image: Tensor) -> Sequence[Tensor]:
        height, width = image.shape[-2:]
        if isinstance(self.crop, int):
            crop = self.crop, self.crop
        else:
            crop = max(1, round(self.crop * height)), max(1, round(self.crop * width))
        if self.views != "flip" and (crop[0] > height or crop[1] > width):
            raise ValueError(
                f"TestTimeAugmentation: crops of {self.crop} pixels do not fit into images of {height}x{width}; give a "
                "smaller crop, or load larger images."
            )
        return evaluation_views(image, self.views, crop, self.resize)

    def average(self, pl_module: LightningModule) -> Callable[[Tensor], Tensor]:
        several = getattr(pl_module, "multilabel", None)
        chosen = self.probabilities
        if chosen == "auto":
            chosen = "sigmoid" if several is True else "softmax"
        if several is not None and several is not (chosen == "sigmoid"):
            kind, right = type(pl_module).__name__, "sigmoid" if several else "softmax"
            raise ValueError(
                f"TestTimeAugmentation: probabilities is {chosen!r}, and {kind} says multilabel={several}; give "
                f"{right!r} or 'auto'."
            )
        return logit_mean_probability if chosen == "sigmoid" else log_mean_probability

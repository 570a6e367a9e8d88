"""What can be said of features without labels: how many directions they use, and how they lie on the sphere.

Garrido et al. 2023, arXiv:2210.02885 (RankMe); Wang and Isola 2020, arXiv:2005.10242 (alignment and uniformity).
Letters: N images, D features.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, final

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from ..hooks._checks import whole
from ..hooks._metadata import normalised_by
from ..hooks._moment import seed_of
from ..hooks._readings import features_of
from ..hooks.probing import Probing, Read

__all__ = ["Representation", "alignment", "feature_spread", "rank_me", "uniformity"]

CHUNK = 1024  # rows of distances that are held at a time


def rank_me(features: Tensor, epsilon: float = 1e-7) -> float:
    """How many directions features use: exp of the entropy of their singular values (Garrido et al. 2023, Eq. 1).

    Features whose k singular values are alike, the others 0, have k; features that are all alike have 1.

    Args:
        features: Finite, `(N, D)`; more images than features tell all.
        epsilon: Added to each singular value's share, as in the paper; >= 0.

    Returns:
        From 1 to min(N, D), but for what `epsilon` adds; 0 where all features are 0.
    """
    # Squares of singular values are eigenvalues of the smaller of two products, found in a fraction of the time.
    exact = features.double()
    product = exact.T @ exact if features.shape[1] <= len(features) else exact @ exact.T
    singular = torch.linalg.eigvalsh(product).clamp_min(0).sqrt()
    if not bool(singular.sum() > 0):
        return 0.0
    return float(torch.special.entr(singular / singular.sum() + epsilon).sum().exp())


def alignment(first: Tensor, second: Tensor, alpha: float = 2.0) -> float:
    """The mean distance to the power of alpha between two views' features on the sphere, from 0, alike, to 2 ** alpha.

    Args:
        first: Features `(N, D)`, of any length.
        second: Of the same images, or images that are to be alike, in the same order.
        alpha: Above 0.
    """
    distance = (F.normalize(first.double(), dim=1) - F.normalize(second.double(), dim=1)).norm(dim=1)
    return float(distance.pow(alpha).mean())


def uniformity(features: Tensor, t: float = 2.0) -> float:
    """The logarithm of the mean of exp(-t distance ** 2) over all pairs of features on the sphere, at most 0.

    0 says that all are alike; the lower, the more evenly they are spread.

    Args:
        features: `(N, D)`, N >= 2, of any length.
        t: Above 0.
    """
    unit = F.normalize(features, dim=1)
    total = 0.0
    for start in range(0, len(unit), CHUNK):
        rows = unit[start : start + CHUNK]
        near = (2 * t * (rows @ unit.T - 1)).double().exp()
        # No image is paired with itself.
        near[torch.arange(len(rows)), torch.arange(start, start + len(rows))] = 0
        total += float(near.sum())
    return float(torch.tensor(total / (len(unit) * (len(unit) - 1)), dtype=torch.float64).log())


def feature_spread(features: Tensor) -> Tensor:
    """The standard deviation of each feature on the sphere, times the root of D: `(D,)`.

    Its mean is 1 at most, where features are spread evenly over the sphere, and 0 where they are alike.

    Args:
        features: `(N, D)`, of any length.
    """
    return F.normalize(features, dim=1).std(0, correction=0) * features.shape[1] ** 0.5


@final
class Representation(Probing):
    """Logs how validation images' features are spread, without labels: RankMe, alignment, uniformity, deviation.

    `probe/representation_rank` is RankMe, the number of directions in use; `_uniformity` the log mean of exp(-2
    distance ** 2) over pairs on the sphere, lower is more even; `_alignment` the mean squared distance of images that
    are to be alike, lower is nearer; `_spread` the mean standard deviation of a feature on the sphere times the root of
    D, 1 at most and 0 after a collapse. Alike are two views of an image, where the module has `views` as this project's
    learners have, and else, where there are labels, two images of one class; the settings in `probes.csv` say which.
    Training sees nothing of it.

    Args:
        every_n_epochs: While fitting, validations of every n-th epoch are measured, from the first on, and the last, >=
            0; `validate` and `test` always. Neutral: 0, which measures nothing.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, if batches are mappings; in other batches they come second.
        seed: Fixes the views and the pairs, >= 0; they are the same in every validation.
        name: Part of the state key, and what the numbers are called instead of `representation`.

    Shape:
        Features `(B, D)` of the module's `features(images)`.

    Raises:
        ValueError: from the constructor, for a number out of range; at set-up, if the module has no `features`.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import Representation
        >>> trainer = Trainer(callbacks=[Representation()], accelerator="cpu", logger=False)

    Reference: Garrido et al. 2023, arXiv:2210.02885

    BibTeX:
        @inproceedings{garrido2023rankme,
          title = {{RankMe}: Assessing the Downstream Performance of Pretrained Self-Supervised Representations by Their
            Rank},
          author = {Garrido, Quentin and Balestriero, Randall and Najman, Laurent and LeCun, Yann},
          booktitle = {International Conference on Machine Learning},
          year = {2023},
          eprint = {2210.02885},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        RankMe there is of 25,600 training images, here of the validation's; with fewer images than features it is at
        most their number. Alignment and uniformity, of Wang and Isola 2020, arXiv:2005.10242, are taken with alpha 2
        and t 2 of the backbone's features, not of the head's.

    See also:
        `rank_me`, `alignment`, `uniformity` and `feature_spread`, the same of any features; `CollapseAlarm`.
    """

    title: ClassVar[str] = "representation"
    protocol = "rankme+alignment+uniformity"
    uses_labels = False

    def __init__(
        self,
        every_n_epochs: int = 1,
        image_key: str = "image",
        target_key: str = "target",
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        super().__init__(every_n_epochs=every_n_epochs, image_key=image_key, target_key=target_key, name=name)
        whole("Representation", "seed", seed, 0)
        self.seed = seed
        self._alike: str | None = None

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"alike": self._alike, "alpha": 2, "t": 2, "epsilon": 1e-7, "seed": self.seed}

    def extra(self, pl_module: LightningModule, image: Tensor, batch_index: int) -> Mapping[str, Tensor]:
        views, draws = getattr(pl_module, "views", None), getattr(getattr(pl_module, "views", None), "draws", None)
        if not isinstance(views, nn.Module) or not isinstance(draws, int):
            return {}
        channels = image.shape[1]
        moment = seed_of(self.seed, pl_module.global_rank, batch_index)
        uniform = torch.rand(len(image), draws, generator=torch.Generator().manual_seed(moment))
        mean, std = normalised_by(pl_module.trainer) or ([0.0] * channels, [1.0] * channels)
        pair = views(image.float(), uniform.to(image.device), mean, std)[:2]
        if len(pair) < 2:  # of a learner that hides parts of one view
            return {}
        kind = type(self).__name__
        return {name: features_of(kind, pl_module, it) for name, it in zip(("first", "second"), pair, strict=True)}

    def measure(self, pl_module: LightningModule, images: Read, bank: Read | None) -> Mapping[str, float]:
        features = images.features
        numbers = {"rank": rank_me(features), "spread": float(feature_spread(features).mean())}
        if len(features) > 1:
            numbers["uniformity"] = uniformity(features)
        first, second = images.extra.get("first"), images.extra.get("second")
        self._alike = "two views" if first is not None else None
        if first is None and images.targets is not None:
            left, right = _pairs_of_classes(images.targets, self.seed)
            if len(left):
                first, second, self._alike = features[left], features[right], "two images of a class"
        if first is not None and second is not None:
            numbers["alignment"] = alignment(first, second)
        return numbers


def _pairs_of_classes(targets: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Positions of the first and of the second of pairs of one class, each image in one at most, drawn by `seed`."""
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed)).to(targets.device)
    order = order[targets[order] >= 0]
    order = order[targets[order].argsort(stable=True)]
    labels = targets[order]
    begins = torch.ones_like(labels, dtype=torch.bool)
    begins[1:] = labels[1:] != labels[:-1]
    place = torch.arange(len(labels), device=labels.device)
    within = place - torch.where(begins, place, 0).cummax(0).values if len(labels) else place
    left = place[:-1][(within[:-1] % 2 == 0) & ~begins[1:]]
    return order[left], order[left + 1]

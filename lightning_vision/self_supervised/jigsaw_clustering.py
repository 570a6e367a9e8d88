"""Jigsaw Clustering: patches of all images are mixed; which belong together, and where were they?"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_vision.inspection.at_rest import at_rest
from lightning_vision.inspection.maps import Layout, as_maps, tokens_before

from .gather import gather, mean_of_all
from .heads import mlp
from .learner import SelfSupervisedLearner, freeze_pooling
from .montages import dismantled, montages, patch_boxes, shuffle, unshuffled
from .views import View, Views, views_for

__all__ = ["JigsawClustering", "clustering_loss"]


def clustering_loss(embeddings: Tensor, patches: int, temperature: float) -> Tensor:
    """The supervised-contrastive loss of patches, whose label is their image (equation 1), over all processes.

    For each patch and each other one of its image: minus the log of exp(s / temperature) of the two, over the sum of
    the same of it and all other patches, s the cosine; the mean of these.

    Args:
        embeddings: `(B patches, D)` on each process, those of an image in a row; not normalised.
        patches: Patches of an image, at least two.
        temperature: Above 0.

    Shape:
        A scalar, the same on all processes.
    """
    rows = gather(F.normalize(embeddings, dim=1))
    logits = rows @ rows.T / temperature
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    log_shares = logits - logits.masked_fill(itself, float("-inf")).logsumexp(dim=1, keepdim=True)
    image = torch.arange(len(rows), device=rows.device) // patches
    together = (image[:, None] == image) & ~itself
    return -log_shares[together].mean()


class JigsawClustering(SelfSupervisedLearner):
    """Shuffles patches of a batch into montages and learns which came from one image, and from where in it.

    The backbone sees the montages alone, as many as there are images, once. Logs `loss`, `clustering` and `location`
    (before their weights) and `acc`, how often the place of a patch is told right, 0..1.

    Patches are mixed within a process, and contrasted with those of all processes.

    Args:
        grid: m; images and montages have m rows of m patches.
        overlap: How far a patch reaches into the next cell, fraction of the image's side, 0..1; neutral 0.
        patch_size: Pixels of the side of a patch in a montage; None is an m-th of the image's sides.
        views: What patches undergo: the first view of a recipe by name, or of a list of descriptions (`View`); its size
            is `patch_size`, its crop one of the patch.
        alpha: Weight of the clustering branch, 0 or more.
        beta: Weight of the location branch, 0 or more.
        temperature: Divides cosines, above 0.
        hidden_dim: Width of the clustering branch's inner layer; None is that of the features.
        out_dim: Width of the embeddings that are compared.
        **common: As `SelfSupervisedLearner`.

    Raises:
        ValueError: as `SelfSupervisedLearner`; a setting is out of its range, the backbone has no maps, m does not
            divide them, or the datamodule's batches are single images.

    Example:
        >>> learner = JigsawClustering(backbone="resnet8_cifar", in_channels=1, views="digits")
        >>> learner.features(torch.zeros(2, 1, 24, 24)).shape
        torch.Size([2, 64])

    Reference: Chen et al. 2021, arXiv:2104.00323

    BibTeX:
        @inproceedings{chen2021jigsaw,
          title = {Jigsaw Clustering for Unsupervised Visual Representation Learning},
          author = {Chen, Pengguang and Liu, Shu and Jia, Jiaya},
          booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
          pages = {11526--11535},
          year = {2021},
        }
    """

    fewest_images = 2

    def __init__(
        self,
        grid: int = 2,
        overlap: float = 0.3,
        patch_size: int | None = None,
        views: str | Sequence[View | Mapping[str, Any]] = "moco_v2",
        alpha: float = 1.0,
        beta: float = 1.0,
        temperature: float = 0.07,
        hidden_dim: int | None = None,
        out_dim: int = 128,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if grid < 2 or not 0 <= overlap <= 1:
            raise ValueError(f"grid is {grid} and overlap {overlap}; give at least 2, and a fraction from 0 to 1")
        if temperature <= 0 or min(alpha, beta) < 0:
            raise ValueError(
                f"temperature is {temperature}, alpha {alpha} and beta {beta}; give one above 0, and 0 or more"
            )
        self.grid, self.overlap, self.patch_size = grid, overlap, patch_size
        self.alpha, self.beta, self.temperature = alpha, beta, temperature
        self.view = replace(views_for(views).views[0], count=1, size=patch_size)
        if not hasattr(self.backbone, "forward_features"):
            kind = type(self.backbone).__name__
            raise ValueError(
                f"the {kind} given as backbone has no `forward_features` with maps to cut; name one of timm's"
            )
        widths = [self.feature_dim, hidden_dim or self.feature_dim, out_dim]
        if hasattr(self.backbone, "patch_embed"):
            freeze_pooling(self.backbone)
        self.network.add_module("projector", mlp(widths, norm=False))
        self.network.add_module("locator", nn.Linear(self.feature_dim, grid * grid))

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and (size := self.data_size()):
            sides = self._patch_view(*size).sides(0, 0)
            montage = torch.zeros(1, self.in_channels, *(self.grid * side for side in sides), device=self.device)
            with at_rest(self.backbone), torch.no_grad():
                self._parts(montage)

    @property
    def draws(self) -> int:
        return self.grid**2 * (Views([self.view]).draws + 1)

    def patches(self, image: Tensor, uniform: Tensor) -> Tensor:
        """Changed patches of images `(B, C, H, W)`, `(B m m, C, h, w)`, those of an image in a row; draws `(B, n)`."""
        view = Views([self._patch_view(*image.shape[2:])])
        boxes = patch_boxes(image.shape[2], image.shape[3], self.grid, self.overlap)
        changed = [
            view(image[:, :, top:bottom, left:right], numbers, *self.statistics())[0]
            for (top, left, bottom, right), numbers in zip(boxes, uniform.chunk(len(boxes), dim=1), strict=True)
        ]
        return torch.stack(changed, dim=1).flatten(0, 1)

    def losses(self, image: Tensor, uniform: Tensor) -> dict[str, Tensor]:
        count = self.grid**2
        order = shuffle(uniform[:, :count]).to(image.device)
        montage = montages(self.patches(image, uniform[:, count:]), order, self.grid)
        features = unshuffled(self._parts(montage), order)
        embeddings, logits = (self.network.get_submodule(name)(features).float() for name in ("projector", "locator"))
        place = torch.arange(count, device=image.device).repeat(len(image))
        with torch.autocast(image.device.type, enabled=False):
            clustering = clustering_loss(embeddings, count, self.temperature)
            location = mean_of_all(F.cross_entropy(logits, place, reduction="none"))
        return {
            "loss": self.alpha * clustering + self.beta * location,
            "clustering": clustering,
            "location": location,
            "acc": (logits.argmax(dim=1) == place).float().mean(),
        }

    def _patch_view(self, height: int, width: int) -> View:
        size = self.patch_size or (height // self.grid, width // self.grid)
        return replace(self.view, size=size)

    def _parts(self, montage: Tensor) -> Tensor:
        """Features `(B m m, D)` of what stands in each place of montages."""
        backbone: Any = self.backbone
        output = backbone.forward_features(montage)
        last = getattr(backbone, "output_fmt", "NCHW") == "NHWC"
        layout = Layout(tokens_before(backbone), last if output.ndim == 4 else None)
        maps = as_maps(output, (montage.shape[2], montage.shape[3]), layout, "forward_features")
        parts = dismantled(maps, self.grid)
        # A convolutional network pools a part as it pools a whole; of tokens the mean is taken.
        plain = output.ndim == 4 and not last and hasattr(backbone, "forward_head")
        features: Tensor = backbone.forward_head(parts) if plain else parts.mean(dim=(2, 3))
        return features

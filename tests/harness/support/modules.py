"""Small LightningModules as strangers write them, with batch norm, dropout and `self.log`, and nothing of this project.

All take images `(B, 1, 8, 8)` and labels `(B,)` of ten classes, but `Detects`, for which targets hold boxes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from timm.layers import DropPath
from torch import Tensor, nn

__all__ = [
    "AnySize",
    "AnySizeDictBatches",
    "AnySizeTwoOptimizers",
    "Detects",
    "DetectsDictBatches",
    "DetectsTwoOptimizers",
    "DictBatches",
    "DropsPaths",
    "DropsPathsDictBatches",
    "DropsPathsTwoOptimizers",
    "Featured",
    "FeaturedDictBatches",
    "FeaturedTwoOptimizers",
    "PastLightning",
    "Plain",
    "Samples",
    "SamplesDictBatches",
    "SamplesTwoOptimizers",
    "TwoOptimizers",
    "small_network",
]


def small_network(dropout: float = 0.5) -> nn.Sequential:
    """Convolution, batch norm, dropout and a head: `(B, 1, 8, 8)` to logits `(B, 10)`."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(36, 10),
    )


class Plain(LightningModule):
    """Cross entropy on integer labels, momentum, a learning rate that moves every step."""

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        self.network = small_network(dropout)

    def forward(self, image: Tensor) -> Any:
        return self.network(image)

    def loss(self, image: Tensor, target: Any) -> Tensor:
        return F.cross_entropy(self(image), target)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        image, target = batch
        loss = self.loss(image, target)
        self.log("train/loss", loss, on_step=True, on_epoch=True, batch_size=len(target))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        image, target = batch
        self.log("val/loss", self.loss(image, target), batch_size=len(target), sync_dist=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        image, target = batch
        self.log("test/loss", self.loss(image, target), batch_size=len(target), sync_dist=True)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5, gamma=0.8)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class DictBatches(Plain):
    """The same on batches `{"image", "target"}`."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step((batch["image"], batch["target"]), batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step((batch["image"], batch["target"]), batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        super().test_step((batch["image"], batch["target"]), batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch["image"])


class TwoOptimizers(Plain):
    """Manual optimisation: the network's trunk and its head have an optimizer each, stepped one after the other."""

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__(dropout)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        image, target = batch
        for optimizer in self.optimizers():
            loss = self.loss(image, target)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.log("train/loss", loss, on_step=True, on_epoch=True, batch_size=len(target))

    def configure_optimizers(self) -> Any:
        trunk, head = self.network[:-1], self.network[-1]
        return [
            torch.optim.SGD(trunk.parameters(), lr=0.05, momentum=0.9),
            torch.optim.Adam(head.parameters(), lr=0.01),
        ]


class AnySize(Plain):
    """Images of any size; on those of 8x8 the same to the last bit."""

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__(dropout)
        # Before dropout, which then draws as many numbers for images of any size.
        self.network[2] = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(3))


class SteadyDropPath(DropPath):
    """timm's, but that it draws as many numbers for any probability, so that random streams can be compared."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = torch.rand(len(x), device=x.device).view(-1, 1, 1, 1) >= self.drop_prob
        return x * (kept / (1 - self.drop_prob))


class DropsPaths(AnySize):
    """Has a path that may be dropped for a sample, and is kept if nobody changes that."""

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__(dropout)
        self.network[2].append(SteadyDropPath(0.0))


class Featured(DropsPaths):
    """Says what it makes of images before it decides, and how many classes there are."""

    num_classes = 10

    def features(self, image: Tensor) -> Tensor:
        return self.network[:5](image)


class Samples(Featured):
    """Makes images from the global random stream, as one does who has not heard of seeds."""

    def sample(self, count: int) -> Tensor:
        maps = self.network[0](torch.randn(count, 1, 8, 8, device=self.device))
        return F.interpolate(maps, 8).mean(1, keepdim=True)


class Detects(Samples):
    """Finds one object an image, whose target is `{"boxes", "labels"}`, labels 1..10.

    Forward answers one `{"boxes" (1, 4), "labels" (1,), "scores" (1,)}` an image.
    """

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__(dropout)
        self.network[5] = nn.Linear(36, 14)

    def forward(self, image: Tensor) -> Any:
        found = self.network(image)
        scores, labels = found[:, :10].softmax(1).max(1)
        corners = (found[:, 10:] * image.shape[-1]).view(-1, 2, 2).sort(1).values.view(-1, 1, 4)
        parts = zip(corners, labels[:, None] + 1, scores[:, None], strict=True)
        return [dict(zip(("boxes", "labels", "scores"), them, strict=True)) for them in parts]

    def loss(self, image: Tensor, target: Any) -> Tensor:
        found = self.network(image)
        labels, boxes = (torch.cat([it[name] for it in target]) for name in ("labels", "boxes"))
        return F.cross_entropy(found[:, :10], labels - 1) + F.l1_loss(found[:, 10:], boxes / image.shape[-1])


class AnySizeDictBatches(AnySize, DictBatches):
    """Images of any size in batches `{"image", "target"}`."""


class AnySizeTwoOptimizers(AnySize, TwoOptimizers):
    """Images of any size and manual optimisation."""


class DropsPathsDictBatches(DropsPaths, DictBatches):
    """Drop paths and batches `{"image", "target"}`."""


class DropsPathsTwoOptimizers(DropsPaths, TwoOptimizers):
    """Drop paths and manual optimisation."""


class FeaturedDictBatches(Featured, DictBatches):
    """Features of images in batches `{"image", "target"}`."""


class FeaturedTwoOptimizers(Featured, TwoOptimizers):
    """Features and manual optimisation."""


class SamplesDictBatches(Samples, DictBatches):
    """Makes images, learns from batches `{"image", "target"}`."""


class SamplesTwoOptimizers(Samples, TwoOptimizers):
    """Makes images by manual optimisation."""


class DetectsDictBatches(Detects, DictBatches):
    """Finds objects in batches `{"image", "target"}`."""


class DetectsTwoOptimizers(Detects, TwoOptimizers):
    """Finds objects by manual optimisation."""


class PastLightning(Plain):
    """Manual optimisation that steps its optimizer where Lightning does not count it."""

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__(dropout)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
        optimizer.step()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)

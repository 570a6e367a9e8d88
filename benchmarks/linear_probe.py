"""What a linear evaluation of many learning rates costs, beside lightly's of one; few labels beside scikit-learn."""

from typing import Any

import torch
import torch.nn.functional as F
from lightly.utils.benchmarking import LinearClassifier
from pytorch_lightning import Trainer  # whose modules lightly's are
from sklearn.linear_model import LogisticRegression
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader

from lightning_vision.callbacks import batches_of_an_epoch, logistic_regression, train_heads
from lightning_vision.callbacks.probes.linear_probe import PROTOCOLS

from .fits import Batches
from .probed import Featured, split
from .side_by_side import Row, Side, take_turns, unprepared

__all__ = ["rows"]

RATES = PROTOCOLS["dinov2"]["rates"]


def rows(quick: bool) -> list[Row]:
    """Evaluate `resnet20_cifar` on ten batches of 64; 20,000 features of 512, 100 classes; 1,000 labels of them.

    Args:
        quick: One repetition of two batches, 1,000 features and 100 labels.
    """
    count, epochs, labelled = (1_000, 1, 100) if quick else (20_000, 2, 1_000)
    random = Generator().manual_seed(0)
    centres = torch.randn(100, 512, generator=random)
    labels = torch.arange(count) % 100
    features = centres[labels] + 2 * torch.randn(count, 512, generator=random)
    start = 0.01 * torch.randn(512, 100, generator=random)
    batches = [it for _ in range(epochs) for it in batches_of_an_epoch(count, 128, random)]
    some, own = features[:labelled], labels[:labelled]
    images, passes = split(quick), 1 if quick else 10
    sides: dict[str, Side] = {
        "grid": unprepared(lambda: train_heads(features, labels, start, RATES, [0.0] * len(RATES), batches)),
        "apart": unprepared(lambda: [_alone(features, labels, start, rate, batches) for rate in RATES]),
        "ours": unprepared(lambda: _evaluated(images, passes)),
        "lightly": unprepared(lambda: _by_lightly(images, passes)),
        "few": unprepared(lambda: logistic_regression(some, own, 100, 1.0)),
        "sklearn": unprepared(
            lambda: LogisticRegression(C=1.0, max_iter=500, tol=1e-6).fit(some.double().numpy(), own.numpy())
        ),
    }
    times = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (5, 1)).items()}
    heads = f"{len(RATES)} heads, {epochs} epochs of {count:,} x 512, 100 classes"
    whole = f"`resnet20_cifar`, {passes} epochs of {64 * len(images)} images"
    few = f"{labelled:,} labels, logistic regression"
    return [
        Row.slowdown(
            f"{whole}, {len(RATES)} rates",
            "lightly's `LinearClassifier`, 1",
            times["ours"],
            times["lightly"],
            "cpu",
            "<= 1.00",
        ),
        Row.slowdown(
            f"{heads}, together",
            "one after the other, `torch.optim.SGD`",
            times["grid"],
            times["apart"],
            "cpu",
            "<= 1.00",
        ),
        Row.slowdown(few, "scikit-learn's `LogisticRegression`", times["few"], times["sklearn"], "cpu"),
    ]


def _alone(features: Tensor, labels: Tensor, start: Tensor, rate: float, batches: list[Tensor]) -> nn.Linear:
    head = nn.Linear(*start.shape)
    with torch.no_grad():
        head.weight.copy_(start.T)
    optimizer = torch.optim.SGD(head.parameters(), lr=rate, momentum=0.9)
    falls = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    for batch in batches:
        optimizer.zero_grad()
        F.cross_entropy(head(features[batch]), labels[batch]).backward()
        optimizer.step()
        falls.step()
    return head


def _evaluated(images: Batches, passes: int) -> Tensor:
    """One frozen pass, then all heads."""
    module = Featured().eval()
    with torch.no_grad():
        features = torch.cat([module.features(image) for image, _ in images])
    labels = torch.cat([target for _, target in images])
    random = Generator().manual_seed(0)
    batches = [it for _ in range(passes) for it in batches_of_an_epoch(len(features), 128, random)]
    weight, _ = train_heads(features, labels, torch.zeros(64, 10), RATES, [0.0] * len(RATES), batches)
    return weight


def _by_lightly(images: Batches, passes: int) -> LinearClassifier:
    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = Featured()

        def forward(self, image: Tensor) -> Tensor:
            return self.module.features(image)

    theirs = LinearClassifier(Body().eval(), batch_size_per_device=64, feature_dim=64, num_classes=10)
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(accelerator="cpu", max_epochs=passes, enable_checkpointing=False, **quiet)
    trainer.fit(theirs, DataLoader(images, batch_size=None))  # type: ignore[arg-type]  # a list will do
    return theirs

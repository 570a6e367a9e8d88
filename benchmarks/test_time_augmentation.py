"""What test-time augmentation adds to a test, against the same views by hand, all in one batch."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.functional import ten_crop

from lightning_vision.callbacks import TestTimeAugmentation

from .fits import batches_of
from .logging_tax import cnn
from .side_by_side import Row, Side, take_turns

__all__ = ["rows"]

SIZE, CROP = 32, 28


class Tested(LightningModule):
    """A small network and its test; `by_hand` folds ten crops into the batch and averages their softmax."""

    def __init__(self, by_hand: bool) -> None:
        super().__init__()
        self.network, self.by_hand = cnn(), by_hand

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.network(image)
        return logits

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        image, target = batch
        if self.by_hand:
            views = torch.stack(ten_crop(image, [CROP, CROP]))
            logits = self(views.flatten(0, 1)).view(len(views), len(image), -1).softmax(2).mean(0).log()
        else:
            logits = self(image)
        F.cross_entropy(logits, target)


def rows(quick: bool) -> list[Row]:
    """Test a small network on batches of 32 images of 32x32, crops of 28x28.

    Args:
        quick: One repetition of two batches.
    """
    count, repetitions, warmup = (2, 1, 0) if quick else (20, 15, 1)
    loader = DataLoader(batches_of(SIZE, count), batch_size=None)  # type: ignore[arg-type]  # a list will do

    def side(by_hand: bool, **settings: object) -> Side:
        def prepare() -> Callable[[], object]:
            torch.manual_seed(0)
            callbacks = [TestTimeAugmentation(**settings)] if settings else []  # type: ignore[arg-type]  # its arguments
            quiet = dict.fromkeys(
                ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False
            )
            trainer = Trainer(accelerator="cpu", callbacks=callbacks, **quiet)  # type: ignore[arg-type]  # switches
            return partial(trainer.test, Tested(by_hand), loader, verbose=False)

        return prepare

    sides = {
        "plain": side(False),
        "by hand": side(True),
        "flip": side(False, views="flip"),
        "ten": side(False, views="ten_crop", crop=CROP),
    }
    times = take_turns(sides, repetitions, warmup)
    plain, hand, flip, ten = ([seconds / count for seconds in times[name]["cpu"]] for name in sides)
    return [
        Row.slowdown("a test batch, `views: flip`", "without views", flip, plain, "cpu"),
        Row.slowdown("a test batch, `views: ten_crop`", "without views", ten, plain, "cpu"),
        Row.slowdown(
            "a test batch, `views: ten_crop`", "torchvision's `ten_crop` by hand, one batch", ten, hand, "cpu"
        ),
    ]

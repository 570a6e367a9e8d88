"""How best to fine-tune on five images a class? Accuracy on unseen digits, as they are and moved by a pixel.

The protocol stands in docs/methods/head_first.md; it and the constants below were committed before the first run.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from statistics import mean
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from lightning_vision.callbacks import HeadFirst
from lightning_vision.classification import ImageClassifier
from lightning_vision.datamodules import Digits
from lightning_vision.datamodules.common._sets import ArrayImages

from .study import in_processes, table

__all__ = ["SomeDigits", "blocks", "train"]

SEEDS = range(5)
SHOTS, BATCH = 5, 25
PRETRAINING, STEPS, HEAD_EPOCHS = 510, 300, 100
LR, FINETUNING_LR, WEIGHT_DECAY, LAYER_DECAY = 0.01, 0.003, 0.05, 0.75
MOVES = ((0, 1), (0, -1), (1, 0), (-1, 0))


@dataclass(frozen=True)
class Arm:
    """One way to train on the few images.

    Args:
        name: As the tables have it.
        model: Settings of `ImageClassifier`.
        head_first: Whether the head trains alone for the first `HEAD_EPOCHS` epochs, each of one step.
        pretrained: Whether it starts from the weights that were trained on the other digits.
    """

    name: str
    model: Mapping[str, Any] = field(default_factory=dict)
    head_first: bool = False
    pretrained: bool = True


@dataclass(frozen=True)
class Outcome:
    """Test accuracy on digits as they are and moved, percent, and the processor time of the fine-tuning, seconds."""

    accuracy: float
    moved: float
    seconds: float


ARMS = [
    Arm("plain fine-tuning"),
    Arm("HeadFirst", head_first=True),
    Arm("frozen backbone (linear probing)", {"freeze_backbone": True}),
    Arm(f"layer_decay {LAYER_DECAY}", {"layer_decay": LAYER_DECAY}),
    Arm(f"HeadFirst + layer_decay {LAYER_DECAY}", {"layer_decay": LAYER_DECAY}, head_first=True),
    Arm("no pretraining", pretrained=False),
]


class SomeDigits(Digits):
    """`Digits` 0 to 4 with all their images, or 5 to 9, called 0 to 4, with `SHOTS` training images a class.

    Args:
        few: Whether they are the digits 5 to 9.
        moved: Whether each test image stands four times in the test split, moved by a pixel up, down, left and right.
        seed: Draws the images, too.
    """

    def __init__(self, few: bool, moved: bool, seed: int) -> None:
        super().__init__(batch_size=BATCH, seed=seed)
        self.few, self.moved = few, moved

    @property
    def class_names(self) -> list[str]:
        return list("56789" if self.few else "01234")

    def load(self) -> None:
        super().load()
        self.train_set, self.val_set, self.test_set = map(self._some, (self.train_set, self.val_set, self.test_set))
        if self.few:
            targets = self.train_set.targets
            shuffled = torch.randperm(len(targets), generator=torch.Generator().manual_seed(self.seed))
            kept = torch.cat([shuffled[targets[shuffled] == label][:SHOTS] for label in range(self.num_classes)])
            self.train_set = ArrayImages(self.train_set.images[kept], targets[kept])
        if self.moved:
            images = torch.cat([_moved(self.test_set.images, *move) for move in MOVES])
            self.test_set = ArrayImages(images, self.test_set.targets.repeat(len(MOVES)))

    def _some(self, images: Any) -> ArrayImages:
        first = 5 * self.few
        kept = (images.targets >= first) & (images.targets < first + 5)
        return ArrayImages(images.images[kept], images.targets[kept] - first)


def _moved(images: Tensor, down: int, right: int) -> Tensor:
    """Images `(N, C, H, W)` moved by so many pixels, zeros where nothing was."""
    height, width = images.shape[2:]
    moved = torch.zeros_like(images)
    moved[:, :, max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = images[
        :, :, max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)
    ]
    return moved


def blocks(quick: bool) -> dict[str, str]:
    """The tables, one below the other, by the name of their block.

    Args:
        quick: One seed, four steps.
    """
    tasks = [(0, 4, 4)] if quick else [(seed, PRETRAINING, STEPS) for seed in SEEDS]
    each = in_processes(train, tasks, 0 if quick else 2)
    names = [arm.name for arm in ARMS]
    runs = {name: [outcomes[name] for outcomes in each] for name in names}
    seconds = {name: f"{mean(run.seconds for run in runs[name]):.1f} s" for name in names}
    protocol = (
        f"Accuracy, percent; {SHOTS} training images a class of the digits 5 to 9, `resnet8_cifar` pretrained on the "
        f"digits 0 to 4, AdamW (rate {FINETUNING_LR}, decay {WEIGHT_DECAY}), cosine, {tasks[0][2]} steps of {BATCH} "
        f"images, of which HeadFirst freezes all but the head for the first {HEAD_EPOCHS}. SE is the standard error of "
        "the paired difference over the seeds; CPU is the processor time of one fine-tuning."
    )
    tables = {
        "Test digits as they are:": table(
            {it: [run.accuracy for run in runs[it]] for it in names}, {}, {"CPU": seconds}
        ),
        "Moved by a pixel, which no arm has seen:": table(
            {it: [run.moved for run in runs[it]] for it in names}, {}, {}
        ),
    }
    return {"study_finetuning": "\n\n".join([*(f"{title}\n\n{it}" for title, it in tables.items()), protocol])}


def train(seed: int, pretraining: int, steps: int) -> dict[str, Outcome]:
    """Pretrain once for so many steps, fine-tune by every arm for `steps`, and score."""
    source = _module(seed, pretraining, LR)
    _trainer(pretraining).fit(source, datamodule=SomeDigits(few=False, moved=False, seed=seed))
    features = {name: it for name, it in source.network.state_dict().items() if not name.startswith("head.")}
    return {arm.name: _fine_tuned(arm, seed, steps, features) for arm in ARMS}


def _fine_tuned(arm: Arm, seed: int, steps: int, features: dict[str, Tensor]) -> Outcome:
    module = _module(seed, steps, FINETUNING_LR, **arm.model)
    if arm.pretrained:
        module.network.load_state_dict(features, strict=False)
    trainer = _trainer(steps, *([HeadFirst(epochs=HEAD_EPOCHS)] if arm.head_first else []))
    start = time.process_time()
    trainer.fit(module, datamodule=SomeDigits(few=True, moved=False, seed=seed))
    seconds = time.process_time() - start
    scores = [
        trainer.test(module, datamodule=SomeDigits(few=True, moved=moved, seed=seed), verbose=False)[0]["test/acc"]
        for moved in (False, True)
    ]
    return Outcome(100 * scores[0], 100 * scores[1], seconds)


def _module(seed: int, steps: int, lr: float, **settings: Any) -> ImageClassifier:
    seed_everything(seed, verbose=False)
    return ImageClassifier(
        "resnet8_cifar",
        num_classes=5,
        in_channels=1,
        optimizer=partial(torch.optim.AdamW, lr=lr, weight_decay=WEIGHT_DECAY),
        lr_scheduler=partial(CosineAnnealingLR, T_max=steps),
        lr_interval="step",
        **settings,
    )


def _trainer(steps: int, *callbacks: HeadFirst) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=-1,
        max_steps=steps,
        callbacks=list(callbacks),
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )

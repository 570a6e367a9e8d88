"""Named policies of box augmentation, lists of them, and their draws inside a run that is broken off and resumed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_vision.datamodules import DigitScenes
from lightning_vision.datamodules.augmentation import ColorJitter, ShiftCrop
from lightning_vision.datamodules.detection import (
    BoxAugmentation,
    BoxChain,
    BoxMixUp,
    HorizontalFlip,
    Mosaic,
    PixelsOnly,
    box_augmentation_for,
    box_policy,
)
from lightning_vision.datamodules.detection.policies import BOX_POLICIES
from support.boxes import rectangles
from support.trainers import quiet_trainer

STAGES = {
    "standard": ["ScaleJitter", "HorizontalFlip", "PhotometricDistortion"],
    "strong": ["ScaleJitter", "HorizontalFlip", "PhotometricDistortion"],
    "ssd": ["PhotometricDistortion", "ScaleJitter", "ObjectCrop", "HorizontalFlip"],
    "mixup": ["BoxMixUp", "ScaleJitter", "HorizontalFlip", "PhotometricDistortion"],
    "mosaic": ["Mosaic", "ScaleJitter", "HorizontalFlip", "PhotometricDistortion"],
}


def stages_of(name: str) -> list[BoxAugmentation]:
    chain = box_policy(name, (24, 16))
    assert isinstance(chain, BoxChain)
    return chain.stages


@pytest.mark.parametrize("name", STAGES)
def test_a_policy_is_made_of_these_stages(name: str) -> None:
    inside = [stage.augmentation if isinstance(stage, PixelsOnly) else stage for stage in stages_of(name)]

    assert [type(stage).__name__ for stage in inside] == STAGES[name]


def test_every_policy_is_known_and_has_the_settings_of_the_documentation() -> None:
    assert sorted(BOX_POLICIES) == sorted(["none", "light", *STAGES])
    assert box_policy("none", (24, 16)) is None
    assert isinstance(box_policy("light", (24, 16)), HorizontalFlip)
    assert [stages_of(name)[at].scale for name, at in (("standard", 0), ("strong", 0), ("ssd", 1), ("mosaic", 1))] == [
        (0.8, 1.25),
        (0.1, 2.0),
        (0.25, 1.0),
        (0.8, 1.25),
    ]


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "colour"])
def test_images_come_out_at_the_size_asked_for(name: str, channels: int) -> None:
    images, annotations = rectangles(4, (40, 33), channels=channels)
    augmentation = box_policy(name, (24, 16))
    assert augmentation is not None
    pixels, moved = augmentation(images, annotations, torch.Generator().manual_seed(0))

    assert (pixels.shape, pixels.dtype) == ((4, channels, 24, 16), torch.uint8)
    assert (moved.boxes <= torch.tensor([16, 24, 16, 24])).all()


def test_a_list_acts_in_its_order_and_what_changes_nothing_is_left_out() -> None:
    mosaic, jitter = Mosaic(), ColorJitter(0.4)
    chain = box_augmentation_for([mosaic, "none", "light", jitter], (24, 16))

    assert isinstance(chain, BoxChain)
    assert chain.stages[0] is mosaic and chain.stages[2].augmentation is jitter
    assert [type(stage) for stage in chain.stages] == [Mosaic, HorizontalFlip, PixelsOnly]
    assert box_augmentation_for(mosaic, (24, 16)) is mosaic
    assert box_augmentation_for(["none"], (24, 16)) is box_augmentation_for([], (24, 16)) is None


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ("mosaik", r"no augmentation policy 'mosaik' for images with boxes; did you mean mosaic\?.*there are none, li"),
        (ShiftCrop(), r"PixelsOnly: augmentation is ShiftCrop, which moves pixels"),
        (["light", 3], r"augment is 3; give the name of a policy, a BoxAugmentation, an Augmentation that moves no"),
    ],
    ids=["unknown", "moves pixels", "stranger"],
)
def test_what_is_no_policy_is_refused_by_the_datamodule(augment: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DigitScenes(augment=augment)


def test_settings_survive_yaml() -> None:
    folder = "lightning_vision.datamodules.detection"
    stages = [
        "standard",
        {"class_path": f"{folder}.ScaleJitter", "init_args": {"scale": [0.5, 1.5], "size": [8, 9]}},
        {"class_path": f"{folder}.Mosaic", "init_args": {"centre": [0.4, 0.6]}},
        {"class_path": f"{folder}.ObjectCrop", "init_args": {"overlaps": [0.1, 0.5]}},
        {"class_path": "lightning_vision.datamodules.augmentation.ColorJitter", "init_args": {"hue": [-0.1, 0.2]}},
    ]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DigitScenes, "data")
    config = parser.parse_object({"data": {"augment": stages}})
    again = parser.parse_string(parser.dump(config))
    name, jitter, mosaic, crop, colours = parser.instantiate(again).data.augment_boxes_by

    assert (name, jitter.scale, jitter.size, mosaic.centre) == ("standard", (0.5, 1.5), (8, 9), (0.4, 0.6))
    assert (crop.overlaps, colours.hue) == ([0.1, 0.5], (-0.1, 0.2))


class Watcher(LightningModule):
    """Keeps sums of what it is given, which differ when a pixel or a box does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[float]] = []

    def training_step(self, batch: Any) -> Tensor:
        images, targets = batch
        column = torch.arange(1.0, 1 + images.shape[3])
        boxes = torch.cat([target["boxes"] for target in targets])
        self.seen.append([(images * column).double().sum().item(), (boxes**2).double().sum().item(), len(boxes)])
        return self.weight * images.mean()

    def validation_step(self, batch: Any) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_draws_are_those_of_seed_epoch_and_sample() -> None:
    images, annotations = rectangles(4, (64, 64), channels=3)
    index = torch.arange(4)
    scenes = [DigitScenes(image_size=64, sizes=(0.2, 0.5), augment="ssd", seed=seed) for seed in (0, 1)]
    asked = ((0, index, 0), (0, index, 0), (0, index, 1), (1, index, 0), (0, index + 4, 0))
    first, *others = (scenes[seed].augment_boxes(images, annotations, at, epoch)[0] for seed, at, epoch in asked)

    assert [torch.equal(first, other) for other in others] == [True, False, False, False]


@pytest.mark.parametrize("augment", ["ssd", ["mosaic", BoxMixUp(prob=0.5)]], ids=["ssd", "mixing"])
def test_a_resumed_run_is_given_the_augmented_batches_of_the_straight_one(augment: Any, tmp_path: Path) -> None:
    """Broken off after two of the second epoch's three batches."""

    def fit(ckpt_path: Path | None = None) -> list[list[float]]:
        watcher = Watcher()
        checkpoints = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=5, save_top_k=-1)
        trainer = quiet_trainer(
            max_epochs=3,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            callbacks=[checkpoints],
            enable_checkpointing=True,
        )
        scenes = DigitScenes(train_images=12, image_size=64, sizes=(0.2, 0.5), batch_size=4, augment=augment)
        trainer.fit(watcher, scenes, ckpt_path=ckpt_path)
        return watcher.seen

    straight = fit()
    resumed = fit(tmp_path / "step=5.ckpt")

    assert len(straight) == 9
    assert straight[5:] == resumed
    assert len({tuple(sums) for sums in straight}) == 9

"""The recipe of EfficientNetV2: sizes of training and evaluation, and stages that go on from one another."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Callback
from torch import nn

from lightning_vision import ImageClassifier, main
from lightning_vision.backbones import create
from lightning_vision.callbacks import ProgressiveResizing
from lightning_vision.callbacks.schedules.progressive_resizing import size_at
from lightning_vision.configs import read_config, shipped
from lightning_vision.datamodules import ImageFolder
from lightning_vision.datamodules.augmentation import Chain, RandAugment, ResizedCrop
from support.photos import photo_folder
from support.trainers import quiet_trainer

RECIPE = "classification/efficientnet_v2"
SEEN: list[tuple[str, int, float]] = []


class Sizes(Callback):
    """Notes the stage, the side of each batch of images, and the network's dropout."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        SEEN.append(("train", batch[0].shape[-1], pl_module.network.drop_rate))

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *args: Any) -> None:
        SEEN.append(("val", batch[0].shape[-1], pl_module.network.drop_rate))


def stage(name: str, side: int, drop_rate: float) -> list[str]:
    """Words that add a stage of progressive learning to the recipe."""
    stages = [
        {"class_path": "ResizedCrop", "init_args": {"size": side}},
        {"class_path": "RandAugment", "init_args": {"num_ops": 2, "magnitude": 15}},
    ]
    changed = {
        "model": {"init_args": {"drop_rate": drop_rate}},
        "data": {"init_args": {"augment": {"class_path": "Chain", "init_args": {"stages": stages}}}},
        "callbacks": {"sizes": {"class_path": f"{__name__}.Sizes"}},
    }
    Path(f"{name}.yaml").write_text(yaml.safe_dump(changed))
    return ["--config", f"{name}.yaml"]


def test_a_fit_goes_on_with_larger_crops_and_more_dropout() -> None:
    root = photo_folder("photos", ("brick", "cat"), number=10)
    words = ["--config", RECIPE, "--model.backbone", "resnet10t", "--data.root", str(root), "--data.image_size", "48"]
    words += ["--data.num_workers", "0", "--data.batch_size", "8", "--trainer.default_root_dir", "run"]
    words += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    words += ["--trainer.enable_model_summary", "false", "--trainer.num_sanity_val_steps", "0"]
    SEEN.clear()
    main(["fit", *words, *stage("first", 32, 0.1), "--trainer.max_epochs", "1"])
    main(["fit", *words, *stage("second", 40, 0.2), "--trainer.max_epochs", "2", "--ckpt_path", "last"])

    assert SEEN == [("train", 32, 0.1)] * 2 + [("val", 48, 0.1)] + [("train", 40, 0.2)] * 2 + [("val", 48, 0.2)]


def test_training_and_evaluation_see_sizes_of_their_own() -> None:
    data = read_config(shipped()[RECIPE])["data"]["init_args"]
    crop, _ = data["augment"]["init_args"]["stages"]

    assert (crop["init_args"]["size"], data["image_size"]) == (300, 384)


def test_the_network_has_the_papers_size() -> None:
    name = read_config(shipped()[RECIPE])["model"]["init_args"]["backbone"]
    network: nn.Module = create(name, num_classes=1000, in_channels=3)

    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(22e6, rel=0.03)


def test_progressive_learning_is_the_recipe_but_for_what_grows() -> None:
    plain, ours = (read_config(shipped()[it]) for it in (RECIPE, f"{RECIPE}_progressive"))
    growing = ours["callbacks"].pop("progressive_resizing")["init_args"]
    for run in (plain, ours):
        run["model"]["init_args"].pop("drop_rate")
        run["trainer"].pop("default_root_dir")

    assert ours == plain
    start, multiple, stages = (growing[it] for it in ("start", "multiple", "stages"))
    sizes = [size_at((300, 300), it / 4, start, 0.0, multiple, stages)[0] for it in range(4)]
    assert sizes == [128, 185, 243, 300]


def test_each_stage_of_progressive_learning_has_its_size_dropout_and_magnitude() -> None:
    """Four steps on small crops: 48 pixels at the end, of which the first stage has 20."""

    class Strengths(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            magnitude = trainer.datamodule.augmentation.stages[1].magnitude
            seen.append((batch[0].shape[-1], round(pl_module.network.drop_rate, 3), round(magnitude, 3)))

    seen: list[tuple[int, float, float]] = []
    root = photo_folder("photos", ("brick", "cat"), number=10)
    config = read_config(shipped()[f"{RECIPE}_progressive"])
    resizing = ProgressiveResizing(**config["callbacks"]["progressive_resizing"]["init_args"])
    crop, strengthening = (it["init_args"] for it in config["data"]["init_args"]["augment"]["init_args"]["stages"])
    augment = Chain([ResizedCrop(**crop | {"size": 48}), RandAugment(**strengthening)])
    data = ImageFolder(root, batch_size=4, image_size=48, augment=augment)
    trainer = quiet_trainer(callbacks=[resizing, Strengths()], max_steps=4, max_epochs=-1, limit_val_batches=0)
    trainer.fit(ImageClassifier("resnet10t", num_classes=2, drop_rate=0.3), datamodule=data)

    assert seen == [(20, 0.1, 15), (30, 0.167, 20), (39, 0.233, 25), (48, 0.3, 30)]

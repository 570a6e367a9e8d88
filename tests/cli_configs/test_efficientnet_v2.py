"""The recipe of EfficientNetV2: sizes of training and evaluation, and stages that go on from one another."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Callback
from torch import nn

from lightning_vision import main
from lightning_vision.backbones import create
from lightning_vision.configs import read_config, shipped
from support.photos import photo_folder

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

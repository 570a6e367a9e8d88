"""A checkpoint is measured on data prepared as it was trained, or says that it is not."""

from pathlib import Path

import pytest
import torch

from lightning_vision import ImageClassifier
from lightning_vision.datamodules import ImageFolder
from support.photos import photo_folder
from support.trainers import quiet_trainer

SMALL = {"image_size": 16, "augment": "none", "batch_size": 8}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of photographs and a checkpoint that was trained on it, at 16 pixels."""
    folder = tmp_path_factory.mktemp("trained")
    root = photo_folder(folder / "photos", ("brick", "cat", "moon"), number=10)
    trainer = quiet_trainer(max_epochs=1, limit_train_batches=1)
    trainer.fit(ImageClassifier("resnet8_cifar", num_classes=3), ImageFolder(root, **SMALL))
    trainer.save_checkpoint(folder / "last.ckpt")
    return root, folder / "last.ckpt"


def measure(stage: str, data: ImageFolder, checkpoint: Path) -> None:
    module = ImageClassifier("resnet8_cifar", num_classes=3)
    getattr(quiet_trainer(), stage)(module, data, ckpt_path=checkpoint, verbose=False, weights_only=True)


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_another_size_or_mean_is_said(stage: str, trained: tuple[Path, Path], recwarn: pytest.WarningsRecorder) -> None:
    root, checkpoint = trained
    measure(stage, ImageFolder(root, **SMALL), checkpoint)
    assert [it for it in recwarn if "the checkpoint was trained with" in str(it.message)] == []
    measure(stage, ImageFolder(root, **SMALL | {"image_size": 24, "mean": [0.5] * 3}), checkpoint)
    said = [str(it.message) for it in recwarn if "the checkpoint was trained with" in str(it.message)]

    assert said == [
        "the checkpoint was trained with image_size (16, 16), ImageFolder gives (24, 24), and so it is measured; "
        "predictions use (16, 16)",
        "the checkpoint was trained with mean [0.485, 0.456, 0.406], ImageFolder gives [0.5, 0.5, 0.5], and so it is "
        "measured; predictions use [0.485, 0.456, 0.406]",
    ]


def test_a_module_that_knows_its_preprocessing_is_held_to_it_without_a_checkpoint(
    trained: tuple[Path, Path], recwarn: pytest.WarningsRecorder
) -> None:
    root, checkpoint = trained
    module = ImageClassifier.load_from_checkpoint(checkpoint, weights_only=True)
    quiet_trainer().test(module, ImageFolder(root, **SMALL | {"image_size": 24}), verbose=False)

    assert [str(it.message)[:62] for it in recwarn if "trained with" in str(it.message)] == [
        "the checkpoint was trained with image_size (16, 16), ImageFold"
    ]


def test_classes_in_another_order_are_refused(trained: tuple[Path, Path], tmp_path: Path) -> None:
    _, checkpoint = trained
    other = photo_folder(tmp_path / "others", ("brick", "coffee", "moon"), number=10)
    with pytest.raises(
        ValueError,
        match=r"^the checkpoint was trained on the classes brick, cat, moon, ImageFolder has brick, coffee, moon; give",
    ):
        measure("test", ImageFolder(other, **SMALL), checkpoint)

    assert torch.load(checkpoint, weights_only=True)["preprocessing"]["class_names"] == ["brick", "cat", "moon"]

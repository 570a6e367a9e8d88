"""Folders of images: both layouts, every mode and size, a split nothing moves, and refusals that name the culprit."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import Tensor

from lightning_vision import ImageClassifier
from lightning_vision.datamodules.common._sets import FileImages
from lightning_vision.datamodules.image_folder import ImageFolder
from lightning_vision.images import BadImageError
from support.photos import photo_folder
from support.trainers import quiet_trainer

SPLITS = ("train", "val", "test")


def write(root: Path, **classes: int) -> Path:
    """Class folders with so many 6x6 images each; the brightness is the image's number."""
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (6, 6), number).save(root / name / f"{number:03}.png")
    return root


def paths_of(data: ImageFolder, split: str) -> list[str]:
    data.setup()
    images = getattr(data, f"{split}_set")
    assert isinstance(images, FileImages)
    return images.paths


def test_split_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("val", 2), ("test", 1)):
        write(tmp_path / split, cat=count, dog=count)
    data = ImageFolder(tmp_path, image_size=4)

    assert data.class_counts == {
        "train": {"cat": 4, "dog": 4},
        "val": {"cat": 2, "dog": 2},
        "test": {"cat": 1, "dog": 1},
    }
    assert data.class_names == ["cat", "dog"]
    assert [
        str(tmp_path / "test" / "cat" / "000.png"),
        str(tmp_path / "test" / "dog" / "000.png"),
    ] == data.predict_paths


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_the_validation_folder_has_three_names(name: str, tmp_path: Path) -> None:
    write(tmp_path / "train", cat=3)
    write(tmp_path / name, cat=2)

    assert ImageFolder(tmp_path).class_counts == {"train": {"cat": 3}, "val": {"cat": 2}}


def test_without_a_validation_folder_its_images_are_drawn_from_the_training_images(tmp_path: Path) -> None:
    write(tmp_path / "train", cat=20, dog=10)
    write(tmp_path / "test", cat=3)

    assert ImageFolder(tmp_path, val_fraction=0.2).class_counts == {
        "train": {"cat": 16, "dog": 8},
        "val": {"cat": 4, "dog": 2},
        "test": {"cat": 3, "dog": 0},
    }


def test_class_folders_alone_are_split_in_three(tmp_path: Path) -> None:
    data = ImageFolder(write(tmp_path, cat=20, dog=10), val_fraction=0.2, test_fraction=0.1)
    counts = {split: list(classes.values()) for split, classes in data.class_counts.items()}
    everything = [path for split in SPLITS for path in paths_of(data, split)]

    assert counts == {"train": [14, 7], "val": [4, 2], "test": [2, 1]}
    assert 30 == len(everything) == len(set(everything))


def test_the_split_is_the_same_in_another_process_folder_and_stage(
    tmp_path: Path, two_ranks: Callable[..., Any]
) -> None:
    first = ImageFolder(write(tmp_path / "here", cat=20, dog=10))
    write(tmp_path / "there", dog=10, cat=20)

    def there() -> list[str]:
        torch.manual_seed(3)
        data = ImageFolder(tmp_path / "there", seed=9)
        data.setup("test")
        return [Path(path).relative_to(tmp_path / "there").as_posix() for path in data.test_set.paths]

    here = [Path(path).relative_to(tmp_path / "here").as_posix() for path in paths_of(first, "test")]

    assert two_ranks(there) == [here] * 2
    assert here != [
        Path(path).relative_to(tmp_path / "here").as_posix()
        for path in paths_of(ImageFolder(tmp_path / "here", split_seed=1), "test")
    ]


def test_a_new_file_does_not_move_old_ones_from_test_to_train(tmp_path: Path) -> None:
    write(tmp_path, cat=50)
    before = set(paths_of(ImageFolder(tmp_path, test_fraction=0.2), "test"))
    Image.new("L", (6, 6)).save(tmp_path / "cat" / "a new one.png")
    after = set(paths_of(ImageFolder(tmp_path, test_fraction=0.2), "test"))

    assert len(before - after) <= 1


def mixed(folder: Path) -> None:
    """Sizes and modes as people have them; all of a uniform 120 where the mode can say so."""
    folder.mkdir(parents=True)
    pixels = np.full((30, 50), 120, dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "grey.png")
    Image.fromarray(np.stack([pixels] * 3, 2)).save(folder / "rgb.bmp")
    Image.fromarray(pixels).save(folder / "SHOUTED.JPG", quality=100)
    Image.merge("LA", (Image.fromarray(pixels), Image.fromarray(pixels * 0 + 255))).save(folder / "veiled.png")
    see_through = np.concatenate([pixels * 0, pixels * 0 + 1])
    marked = Image.fromarray(see_through).convert("P")
    marked.putpalette([120, 120, 120, 0, 0, 0])
    marked.crop((0, 0, 50, 30)).save(folder / "transparent.png", transparency=1)
    Image.fromarray(np.stack([pixels] * 3, 2)).resize((7, 90)).save(folder / "tall.webp", lossless=True)
    Image.fromarray(np.stack([pixels, pixels, pixels, pixels * 0 + 255], 2)).save(folder / "rgba.png")
    Image.fromarray(pixels).quantize(4).save(folder / "palette.gif")
    Image.fromarray(pixels.astype(np.uint16) * 257).save(folder / "deep.png")
    Image.fromarray(np.stack([pixels] * 3, 2)).convert("CMYK").save(folder / "print.tiff")
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(np.stack([pixels] * 3, 2)).save(folder / "turned.jpg", exif=exif, quality=100)


@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize("channels", [1, 3])
def test_mixed_sizes_modes_and_formats_become_one_batch(channels: int, resize: Any, tmp_path: Path) -> None:
    mixed(tmp_path / "train" / "thing")
    data = ImageFolder(tmp_path, image_size=(16, 20), channels=channels, resize=resize, val_fraction=0)
    image, target, _ = next(iter(data.train_dataloader()))

    assert (11, channels, 16, 20) == tuple(image.shape)
    assert torch.uint8 == image.dtype
    assert ((image.int() - 120).abs() <= 2).all()
    assert target.tolist() == [0] * 11


def test_images_labels_and_paths_belong_together(tmp_path: Path) -> None:
    data = ImageFolder(write(tmp_path, cat=9, dog=7), image_size=6, channels=1, val_fraction=0, test_fraction=0)
    paths = paths_of(data, "train")
    for images, targets, indices in data.train_dataloader():
        for image, target, index in zip(images, targets, indices, strict=True):
            path = Path(paths[index])

            assert int(path.stem) == image.unique().item()
            assert path.parent.name == data.class_names[target]


def test_a_flat_folder_is_predicted_without_labels(tmp_path: Path) -> None:
    write(tmp_path, new=3)
    Image.new("L", (6, 6), 77).save(tmp_path / "new" / "in a folder.png")
    data = ImageFolder(predict_root=tmp_path / "new", image_size=6, channels=1, batch_size=2)
    batches = list(data.predict_dataloader())
    pixels = torch.cat([batch["image"][:, 0, 0, 0] for batch in batches])

    assert [{"image", "index"}] * 2 == [batch.keys() for batch in batches]
    assert torch.cat([batch["index"] for batch in batches]).tolist() == [0, 1, 2, 3]
    assert [Path(path).name for path in data.predict_paths or []] == [
        "000.png",
        "001.png",
        "002.png",
        "in a folder.png",
    ]
    assert pixels.tolist() == [0, 1, 2, 77]


def test_a_folder_named_train_beside_other_classes_is_a_class(tmp_path: Path) -> None:
    assert ImageFolder(write(tmp_path, train=2, car=2)).class_names == ["car", "train"]


def refused(data: ImageFolder, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        data.setup()


def test_a_missing_folder_is_one_sentence(tmp_path: Path) -> None:
    data = ImageFolder(tmp_path / "no")
    refused(
        data,
        FileNotFoundError,
        f"there is no folder {tmp_path / 'no'}; root must hold train/CLASS or CLASS folders of images",
    )


@pytest.mark.parametrize("content", ["nothing", "flat"])
def test_an_empty_folder_is_one_sentence(content: str, tmp_path: Path) -> None:
    if content == "flat":
        Image.new("L", (6, 6)).save(tmp_path / "a.png")
    example = tmp_path / "cat" / "1.jpg"
    refused(
        ImageFolder(tmp_path), ValueError, f"the folder {tmp_path} has no class folders with images, such as {example}"
    )


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    refused(
        ImageFolder(write(tmp_path, cat=3, dog=0)),
        ValueError,
        f"the class folder {tmp_path / 'dog'} holds no images",
    )


def test_two_folders_for_one_split_are_named(tmp_path: Path) -> None:
    for name in ("train", "val", "valid"):
        write(tmp_path / name, cat=2)
    refused(
        ImageFolder(tmp_path),
        ValueError,
        f"{tmp_path / 'val'} and {tmp_path / 'valid'} are both folders for val; merge them or move one away",
    )


def test_folders_beside_the_splits_that_would_not_be_read_are_named(tmp_path: Path) -> None:
    write(tmp_path, bus=2, tram=1, empty=0)
    write(tmp_path / "train", north=2, south=2)
    refused(
        ImageFolder(tmp_path),
        ValueError,
        f"{tmp_path} has class folders in train, so images in bus, tram beside it would not be read; "
        "move them into train or away, or rename train if it is a class",
    )


def test_hidden_and_empty_folders_beside_the_splits_and_inside_a_class_change_nothing(tmp_path: Path) -> None:
    write(tmp_path / "split" / "train", cat=2)
    write(tmp_path / "split", empty=0, **{".thumbnails": 2})
    write(tmp_path / "flat", train=2, car=2)
    write(tmp_path / "flat" / "train", **{".thumbnails": 2})

    assert ImageFolder(tmp_path / "split").class_names == ["cat"]
    assert ImageFolder(tmp_path / "flat").class_names == ["car", "train"]


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_that_is_not_trained_is_named(split: str, tmp_path: Path) -> None:
    write(tmp_path / "train", cat=3, dog=3)
    write(tmp_path / split, cat=1, zebra=1)
    refused(
        ImageFolder(tmp_path),
        ValueError,
        f"class 'zebra' is in {tmp_path / split} but not in {tmp_path / 'train'}; add images to train on or remove it",
    )


def test_a_class_that_is_trained_but_not_validated_is_fine(tmp_path: Path) -> None:
    write(tmp_path / "train", cat=3, dog=3)
    write(tmp_path / "val", cat=1, zebra=0)

    assert ImageFolder(tmp_path).class_counts["val"] == {"cat": 1, "dog": 0}


def test_an_empty_folder_to_predict_is_one_sentence(tmp_path: Path) -> None:
    data = ImageFolder(predict_root=tmp_path)
    with pytest.raises(ValueError, match="holds no images"):
        data.predict_dataloader()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "ImageFolder needs a root"),
        ({"root": "x", "val_fraction": 0.6, "test_fraction": 0.4}, "leave nothing to train on"),
        ({"root": "x", "val_fraction": -0.1}, "leave nothing to train on"),
        (
            {"root": "x", "train_size": 200},
            "train_size 200x200 is smaller than image_size 224x224, which is cut out of it",
        ),
        ({"root": "x", "eval_size": (300, 200)}, "eval_size 300x200 is smaller than image_size 224x224"),
        ({"root": "x", "augment": "lite"}, "no augmentation policy 'lite'"),
        ({"root": "x", "channels": 4}, "channels is 4; give 1 or 3"),
        ({"root": "x", "resize": "stretch"}, "resize is 'stretch' and on_bad_image 'error'; give crop or squash"),
        ({"root": "x", "on_bad_image": "ignore"}, "on_bad_image 'ignore'; give crop or squash, and error or skip"),
    ],
)
def test_impossible_arguments_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageFolder(**options)


class Bright(LightningModule):
    """Counts images; steps on their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.sizes = torch.nn.Parameter(torch.zeros(())), list[int]()

    def training_step(self, batch: Any) -> Tensor:
        self.sizes.append(len(batch[1]))
        return self.weight * batch[0].mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(root: Path, **options: Any) -> list[int]:
    model = Bright()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        model, datamodule=ImageFolder(root, image_size=6, batch_size=4, val_fraction=0, test_fraction=0, **options)
    )
    return model.sizes


def cut_short(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:900])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_truncated_jpeg_in_mid_epoch_ends_the_fit_with_its_name(num_workers: int, tmp_path: Path) -> None:
    write(tmp_path, cat=11)

    assert fit(tmp_path, num_workers=num_workers) == [4, 4, 3]

    cut_short(tmp_path / "cat" / "bad.jpg")
    message = f"cannot decode the image {tmp_path / 'cat' / 'bad.jpg'}: image file is truncated"
    with pytest.raises(BadImageError, match=f"^{re.escape(message)}[^\n]*; remove it or pass on_bad_image='skip'$"):
        fit(tmp_path, num_workers=num_workers)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_truncated_jpeg_can_be_skipped_with_a_count(num_workers: int, tmp_path: Path) -> None:
    write(tmp_path, cat=11)
    cut_short(tmp_path / "cat" / "bad.jpg")
    with pytest.warns(UserWarning, match=r"^left out 1 of 12 images in epoch 0, unusable: .*bad\.jpg$"):
        sizes = fit(tmp_path, num_workers=num_workers, on_bad_image="skip")

    assert sorted(sizes) == [3, 4, 4]


def test_split_folders_without_one_to_train_on_are_no_classes(tmp_path: Path) -> None:
    for split in ("val", "test"):
        write(tmp_path / split, ant=2, bee=2)

    message = f"{tmp_path} has folders called test and val but no train folder with class folders in it"
    refused(ImageFolder(tmp_path), ValueError, message)


def test_images_are_decoded_at_the_sizes_of_training_and_evaluation(tmp_path: Path) -> None:
    write(tmp_path, cat=20)
    for policy, train_size in (("none", 9), ("standard", (9, 12)), ("light", None)):
        data = ImageFolder(tmp_path, image_size=8, train_size=train_size, eval_size=(10, 8), augment=policy)
        image, _, index = next(iter(data.train_dataloader()))

        assert image.shape[2:] == {9: (9, 9), (9, 12): (9, 12), None: (8, 8)}[train_size]
        assert data.augment(image, index, 0).shape[2:] == (8, 8)
        for loader in (data.val_dataloader(), data.test_dataloader()):
            assert next(iter(loader))[0].shape[2:] == (10, 8)
        assert next(iter(data.predict_dataloader()))["image"].shape[2:] == (10, 8)
        assert data.preprocessing["image_size"] == (10, 8)


def test_prediction_of_files_sees_the_pixels_that_evaluation_sees(tmp_path: Path) -> None:
    data = ImageFolder(photo_folder(tmp_path / "photos", number=6), image_size=16, eval_size=24, batch_size=4)
    module = ImageClassifier("resnet8_cifar", num_classes=data.num_classes, in_channels=3)
    trainer = quiet_trainer(max_epochs=1, limit_train_batches=2, limit_val_batches=1)
    trainer.fit(module, datamodule=data)
    batches = trainer.predict(module, datamodule=data)
    assert batches is not None
    evaluated = torch.cat([batch["probabilities"] for batch in batches])
    files = module.predict(data.predict_paths or [], batch_size=4)

    torch.testing.assert_close(torch.tensor([record["probabilities"] for record in files]), evaluated)

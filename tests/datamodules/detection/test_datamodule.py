"""The base of sources with boxes inside a Trainer: packed targets, checks, draws, resuming in mid-epoch, two shards."""

import pickle
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_vision.datamodules.common._loader import ShardedLoader
from lightning_vision.datamodules.common._sets import Fetched
from lightning_vision.datamodules.common._uniforms import uniforms
from lightning_vision.datamodules.detection._sets import BoxedImages
from lightning_vision.datamodules.detection.annotations import Annotations
from lightning_vision.datamodules.detection.box_augmentation import BoxAugmentation, pack_boxes
from lightning_vision.datamodules.detection.datamodule import DetectionDataModule

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory")


class Watcher(LightningModule):
    """Keeps every batch it is given, by stage."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[str, list[Any]] = {"train": [], "val": [], "predict": []}

    def training_step(self, batch: Any) -> Tensor:
        self.seen["train"].append(batch)
        return self.weight * batch[0].mean()

    def validation_step(self, batch: Any) -> None:
        self.seen["val"].append(batch)

    def predict_step(self, batch: Any) -> None:
        self.seen["predict"].append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Counted(BoxedImages):
    """Twelve grey images of 8x8; number i holds i % 3 objects of class i % 2 + 1, the last of image 5 a crowd."""

    def __init__(self, label: int | None = None) -> None:
        self.label = label

    def __len__(self) -> int:
        return 12

    def annotations(self, index: Tensor, epoch: int = 0) -> Annotations:
        numbers = (index % 12).tolist()
        boxes = [torch.tensor([[1.0, 2.0, 3.0 + k, 7.0] for k in range(it % 3)]) for it in numbers]
        labels = [torch.full((it % 3,), it % 2 + 1 if self.label is None else self.label) for it in numbers]
        packed = pack_boxes(boxes, labels, (8, 8))
        crowd = (index[packed.sample] == 5) & (packed.boxes[:, 2] == 4)
        return Annotations(**{**vars(packed), "crowd": crowd, "image_id": 100 + index % 12})

    def fetch(self, index: Tensor, epoch: int = 0) -> Fetched:
        image = (index % 12 * 20).to(torch.uint8)[:, None, None, None].repeat(1, 1, 8, 8)
        return Fetched(image, self.annotations(index), index)


class Dimmed(BoxAugmentation):
    """Subtracts up to 9, and moves boxes right by as much of a pixel."""

    draws = 1

    def apply(self, images: Tensor, annotations: Annotations, uniform: Tensor) -> tuple[Tensor, Annotations]:
        by = (uniform[:, 0] * 10).floor()
        moved = annotations.boxes + by[annotations.sample][:, None] / 10 * torch.tensor([1, 0, 1, 0])
        return (images.int() - by.int()[:, None, None, None]).clamp(0).to(torch.uint8), Annotations(
            **{**vars(annotations), "boxes": moved}
        )


class Counts(DetectionDataModule):
    in_channels = 1
    image_size = (8, 8)
    statistics = [0.25], [0.5]
    class_names: ClassVar = ["odd", "even"]
    category_ids: ClassVar = [7, 3]
    label: int | None = None

    def load(self) -> None:
        self.train_set = self.val_set = Counted(self.label)
        self.predict_set = self.train_set


def fit(data: DetectionDataModule, ckpt_path: Path | None = None, **options: Any) -> Watcher:
    model = Watcher()
    trainer = Trainer(**QUIET, enable_checkpointing="callbacks" in options, **options)
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return model


def equal(first: list[Any], second: list[Any]) -> bool:
    return len(first) == len(second) > 0 and all(
        torch.equal(image, other)
        and all(one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one) for one, two in pairs)
        for (image, targets), (other, others) in zip(first, second, strict=True)
        for pairs in [list(zip(targets, others, strict=True))]
    )


def test_a_batch_is_normalised_images_and_one_dictionary_an_image() -> None:
    seen = fit(Counts(batch_size=5), max_epochs=1).seen["val"]
    targets = [target for _, batch in seen for target in batch]

    assert [len(image) for image, _ in seen] == [5, 5, 2]
    assert torch.allclose((torch.full((1, 8, 8), 60 / 255) - 0.25) / 0.5, seen[0][0][3])
    assert {"boxes", "labels", "iscrowd", "area", "image_id", "placement", "size"} == targets[0].keys()
    assert [100 + number for number in range(12)] == [int(it["image_id"]) for it in targets]
    assert [number % 3 for number in range(12)] == [len(it["boxes"]) for it in targets]
    assert targets[5]["labels"].tolist() == [2, 2]
    assert targets[5]["iscrowd"].tolist() == [0, 1]
    assert targets[5]["boxes"].tolist() == [[1, 2, 3, 7], [1, 2, 4, 7]]
    assert [tuple(targets[0][name].shape) for name in ("boxes", "labels")] == [(0, 4), (0,)]


def test_prediction_gives_dictionaries_of_images_with_and_without_objects() -> None:
    model = Watcher()
    Trainer(**QUIET, enable_checkpointing=False).predict(model, datamodule=Counts(batch_size=12))
    (batch,) = model.seen["predict"]
    assert {"image", "index", "target"} == batch.keys()
    assert torch.float32 == batch["image"].dtype
    assert [int(target["image_id"]) for target in batch["target"][:3]] == [100, 101, 102]
    assert [len(target["boxes"]) for target in batch["target"][:3]] == [0, 1, 2]


def test_training_images_and_boxes_are_the_draws_of_their_epoch_and_sample() -> None:
    data = Counts(batch_size=4, augment=Dimmed())
    seen = fit(data, max_epochs=2).seen
    loader = data.train_dataloader()
    expected = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        for image, annotations, index in loader:
            image, annotations = Dimmed().apply(image, annotations, uniforms(index, 1, data.seed, epoch))
            expected.append((data.normalise(image), annotations.targets()))

    assert equal(expected, seen["train"])
    assert not equal(expected[:3], expected[3:])
    assert seen["val"][0][1][1]["boxes"][0].tolist() == [1, 2, 3, 7]


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16-mixed", torch.float32), ("bf16-true", torch.bfloat16), ("64-true", torch.float64)]
)
def test_images_have_the_precision_of_the_trainer_and_boxes_stay_what_they_were(
    precision: Any, dtype: torch.dtype
) -> None:
    plain = fit(Counts(batch_size=12), max_epochs=1).seen["val"][0]
    images, targets = fit(Counts(batch_size=12), max_epochs=1, precision=precision).seen["val"][0]

    assert dtype == images.dtype
    # Small whole numbers, which half precision holds.
    assert [it["boxes"].tolist() for it in plain[1]] == [it["boxes"].tolist() for it in targets]
    assert all(torch.equal(one["labels"], two["labels"]) for one, two in zip(plain[1], targets, strict=True))


@pytest.mark.parametrize("saved_at", [1, 3, 4])
def test_a_resumed_run_is_given_the_batches_the_straight_run_was_given(saved_at: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_epochs": 2, "limit_val_batches": 0}
    writer = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    straight = fit(Counts(batch_size=4, augment=Dimmed()), callbacks=[writer], **options).seen["train"]
    resumed = fit(Counts(batch_size=4, augment=Dimmed()), tmp_path / f"step={saved_at}.ckpt", **options).seen["train"]

    assert len(straight) == 6
    assert equal(straight[saved_at:], resumed)


def test_workers_change_nothing() -> None:
    inside, outside = (list(Counts(batch_size=5, num_workers=number).val_dataloader()) for number in (0, 1))

    assert equal(*([(image, found.targets()) for image, found, _ in side] for side in (inside, outside)))


def test_two_ranks_share_an_epoch() -> None:
    ranks = [ShardedLoader(Counted(), 3, shuffle=True, rank=rank, world_size=2) for rank in range(2)]
    numbers = [torch.cat([found.image_id for _, found, _ in loader]).tolist() for loader in ranks]

    assert list(map(len, numbers)) == [6, 6]
    assert {*range(100, 112)} == {*numbers[0], *numbers[1]}


def test_samples_of_a_set_come_one_by_one_in_a_plain_dataloader() -> None:
    first, *_ = DataLoader(Counted(), batch_size=3, collate_fn=list)

    assert [len(target["labels"]) for _, target, _ in first] == [0, 1, 2]
    assert [int(target["image_id"]) for _, target, _ in first] == [100, 101, 102]


@pytest.mark.parametrize("label", [0, 3, -1])
def test_a_label_outside_the_range_is_named_with_its_image(label: int) -> None:
    data = Counts(batch_size=12)
    data.label = label
    message = f"label {label} of an object in image 101 is outside 1..2; there are 2 classes, and 0 is the background's"

    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Trainer(**QUIET, enable_checkpointing=False).validate(Watcher(), datamodule=data, verbose=False)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Trainer(**QUIET, enable_checkpointing=False).predict(Watcher(), datamodule=data)


def test_objects_of_each_class_are_counted_without_crowds() -> None:
    # Images 1, 4, 7 and 10 hold one object and 2, 5, 8 and 11 two, one of which in image 5 is a crowd.
    assert Counts().class_counts["train"] == {"odd": 2 + 4, "even": 2 + 3}


def test_preprocessing_is_plain_data_and_says_what_the_source_calls_the_classes() -> None:
    assert Counts().preprocessing == {
        "class_names": ["odd", "even"],
        "category_ids": [7, 3],
        "channels": 1,
        "image_size": (8, 8),
        "resize": "letterbox",
        "mean": [0.25],
        "std": [0.5],
    }


def test_a_sheet_shows_every_object_before_and_after_augmentation(tmp_path: Path) -> None:
    data = Counts(augment=Dimmed())
    figure = data.plot("train", path=tmp_path / "sheet.png", epoch=1, positions=[5, 3, 1])
    cells = [axes for axes in figure.axes if axes.images]

    assert (tmp_path / "sheet.png").stat().st_size > 1000
    assert ["105", "103", "101", *["in epoch 1"] * 3] == [axes.get_title() for axes in cells]
    assert [len(axes.patches) for axes in cells] == [2, 0, 1, 2, 0, 1]
    assert [text.get_text() for text in cells[0].texts] == ["even", "even"]
    whole, crowd = cells[0].patches
    # Pixel 1 begins at half a pixel before its middle.
    assert (*whole.get_xy(), whole.get_width(), whole.get_height()) == (0.5, 1.5, 2.0, 5.0)
    assert [it.get_linestyle() for it in (whole, crowd)] == ["-", ":"]
    assert cells[3].patches[0].get_x() >= 0.5


def test_without_images_there_is_nothing_to_plot() -> None:
    with pytest.raises(ValueError, match=r"^Counts has no test images to plot; name another split$"):
        Counts().plot("test")


def test_an_augmentation_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="no augmentation policy 'lihgt' for images with boxes; did you mean light"):
        Counts(augment="lihgt")


def test_it_survives_pickling() -> None:
    data = pickle.loads(pickle.dumps(Counts(batch_size=3, augment=Dimmed())))

    assert equal(*([(image, found.targets()) for image, found, _ in it.val_dataloader()] for it in (data, Counts(3))))

"""Any torch Dataset: every form of image and label, wrong labels named, random transforms that repeat themselves."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset
from torchvision.transforms import v2

from lightning_vision.datamodules.common._labels import known_targets
from lightning_vision.datamodules.datasets import from_datasets


class Items(Dataset[Any]):
    """A dataset as people write it: a list."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class Noisy(Dataset[Any]):
    """Draws from all three global streams."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        draws = [random.random(), float(np.random.rand()), float(torch.rand(()))]
        return torch.tensor(draws).view(3, 1, 1).expand(3, 4, 4), index % 3


def pixels(values: range = range(48)) -> np.ndarray:
    return np.array(values, dtype=np.uint8).reshape(4, 4, 3)


FORMS = {
    "Pillow": Image.fromarray(pixels()),
    "array": pixels(),
    "tensor": torch.from_numpy(pixels()).permute(2, 0, 1),
    "float tensor": torch.from_numpy(pixels()).permute(2, 0, 1) / 255,
    "float array": pixels().astype(np.float64) / 255,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("label", [1, np.int64(1), torch.tensor(1)])
def test_every_form_of_image_and_label_gives_the_same_batch(form: str, label: Any) -> None:
    data = from_datasets(Items((FORMS[form], label)), num_classes=2)
    image, target, index = next(iter(data.train_dataloader()))
    expected = torch.from_numpy(pixels()).permute(2, 0, 1)[None] / 255

    assert torch.allclose(expected, data.normalise(image))
    assert (torch.int64, [1], [0]) == (target.dtype, target.tolist(), index.tolist())
    assert (data.in_channels, data.image_size) == (3, (4, 4))


@pytest.mark.parametrize(
    "image", [Image.new("L", (5, 4)), np.zeros((4, 5), np.uint8), torch.zeros(4, 5), torch.zeros(1, 4, 5)]
)
def test_grey_images_have_one_channel(image: Any) -> None:
    data = from_datasets(Items((image, 0)), num_classes=1)

    assert (data.in_channels, data.image_size) == (1, (4, 5))
    assert tuple(next(iter(data.train_dataloader()))[0].shape) == (1, 1, 4, 5)


def test_images_of_mixed_sizes_and_modes_are_brought_to_one() -> None:
    mixed = Items(
        (Image.new("RGB", (9, 9), "red"), 0), (Image.new("L", (3, 7)), 0), (np.zeros((20, 5, 3), np.uint8), 0)
    )
    data = from_datasets(mixed, num_classes=1, image_size=(6, 8))

    assert tuple(next(iter(data.train_dataloader()))[0].shape) == (3, 3, 6, 8)


def test_mean_and_std_are_applied_on_the_device() -> None:
    data = from_datasets(Items((torch.full((1, 2, 2), 0.5), 0)), num_classes=1, mean=[0.25], std=[0.5])
    image, _, _ = next(iter(data.train_dataloader()))

    assert data.normalise(image).unique().tolist() == [0.5]
    assert (data.mean, data.std) == ([0.25], [0.5])


def test_several_labels_at_once_are_floats_one_column_a_class() -> None:
    data = from_datasets(Items((torch.zeros(1, 2, 2), [1, 0, 1]), (torch.zeros(1, 2, 2), [0, 0, 1])), num_classes=3)
    batch = data.on_before_batch_transfer(next(iter(data.train_dataloader())), 0)

    assert torch.float32 == batch[1].dtype
    assert sorted(batch[1].tolist()) == [[0, 0, 1], [1, 0, 1]]
    assert data.plot("train", 1).axes[0].get_title() == "0, 2"


def test_names_and_number_of_classes_come_from_the_dataset() -> None:
    dataset = Items((torch.zeros(1, 2, 2), 0))
    dataset.classes = ["ant", "bee"]  # type: ignore[attr-defined]  # as torchvision's have it

    assert from_datasets(dataset).class_names == ["ant", "bee"]
    assert from_datasets(dataset, num_classes=3).class_names == ["0", "1", "2"]
    assert from_datasets(dataset, class_names=["a", "b"]).class_names == ["a", "b"]


def tensors(*labels: int) -> TensorDataset:
    return TensorDataset(torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8), torch.tensor(labels))


def with_attribute(name: str) -> Dataset[Any]:
    dataset = Items((torch.zeros(1, 2, 2), 0), (torch.zeros(1, 2, 2), 7))
    setattr(dataset, name, [0, 7])
    return dataset


@pytest.mark.parametrize(
    ("dataset", "sample"),
    [
        (tensors(0, 1, 7), 2),
        (with_attribute("targets"), 1),
        (with_attribute("labels"), 1),
        (Subset(tensors(0, 7, 1, 0), [3, 1]), 1),
        (ConcatDataset([tensors(0, 1), tensors(2, 7)]), 3),
    ],
)
def test_a_wrong_label_that_the_dataset_tells_is_refused_at_set_up(dataset: Dataset[Any], sample: int) -> None:
    data = from_datasets(train=tensors(0), val=dataset, num_classes=3)
    with pytest.raises(ValueError, match=rf"^val: label 7 of sample {sample} is outside 0\.\.2; there are 3 classes$"):
        data.setup("fit")

    from_datasets(train=tensors(0), val=dataset, num_classes=8).setup("fit")


class Steps(LightningModule):
    """Notes the labels it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.zeros(())), list[int]()

    def training_step(self, batch: Any) -> Tensor:
        self.seen += batch[1].tolist()
        return self.weight * batch[0].mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    ("label", "message"),
    [
        (5, "label 5 of sample 1 is outside 0..2; there are 3 classes"),
        (-1, "label -1 of sample 1 is outside 0..2; there are 3 classes"),
        ("cat", "sample 1 has the label 'cat'; give an integer or one 0 or 1 a class"),
        (1.5, "sample 1 has the label 1.5; give an integer or one 0 or 1 a class"),
    ],
)
def test_a_wrong_label_nobody_told_is_refused_before_it_is_trained(num_workers: int, label: Any, message: str) -> None:
    good, bad = (torch.zeros(1, 2, 2), 0), (torch.zeros(1, 2, 2), label)
    model = Steps()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(**quiet, enable_checkpointing=False, max_epochs=1)  # type: ignore[arg-type]  # mixed values
    with pytest.raises(ValueError) as caught:
        trainer.fit(model, datamodule=from_datasets(Items(good, bad), num_classes=3, num_workers=num_workers))

    assert message == str(caught.value)
    assert model.seen == []


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (torch.zeros(1, 2, 2), "sample 1 is Tensor, not (image, label)"),
        ((torch.zeros(1, 3, 2), 0), "sample 1 has shape (1, 3, 2), not (1, 2, 2); let its transform resize it"),
        (("a.png", 0), "sample 1 has no image but str; give a Pillow image, an array or a tensor"),
        ((torch.zeros(5), 0), "sample 1 has no image but of shape (5,); give a Pillow image, an array or a tensor"),
    ],
)
def test_a_sample_that_is_none_is_named(sample: Any, message: str) -> None:
    data = from_datasets(Items((torch.zeros(1, 2, 2), 0), sample), num_classes=1)
    with pytest.raises(ValueError) as caught:
        list(data.train_dataloader())

    assert message == str(caught.value)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 2}, "from_datasets needs at least one dataset"),
        ({"train": tensors(0)}, "cannot tell the number of classes; pass num_classes or class_names"),
        ({"train": Items(), "num_classes": 2}, "the train dataset Items is empty"),
        ({"train": Stream(), "num_classes": 2}, "the train dataset Stream needs __getitem__ and __len__"),
        ({"train": tensors(0), "num_classes": 2, "class_names": ["a"]}, "num_classes is 2 but there are 1 class_names"),
    ],
)
def test_what_cannot_work_is_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_datasets(**options)


def epoch_of(number: int, split: str = "train", **options: Any) -> Tensor:
    """All images of one epoch, in the order of the dataset."""
    data = from_datasets(**{split: Noisy()}, num_classes=3, batch_size=5, **options)
    loader: Any = getattr(data, f"{split}_dataloader")()
    loader.sampler.set_epoch(number)
    images, _, indices = zip(*loader, strict=True)
    return torch.cat(images)[torch.cat(indices).argsort()]


def test_random_transforms_repeat_themselves_by_seed_epoch_and_sample() -> None:
    first = epoch_of(0)

    assert len(first[:, :, 0, 0].unique()) == 36
    assert torch.equal(first, epoch_of(0))
    assert torch.equal(first, epoch_of(0, num_workers=2))
    assert not torch.equal(first, epoch_of(1))
    assert not torch.equal(first, epoch_of(0, seed=1))
    assert torch.equal(epoch_of(0, "val"), epoch_of(1, "val"))


def test_global_random_states_are_put_back() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[union-attr]
    epoch_of(0)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[union-attr]

    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])


def test_torchvision_transforms_run_inside_spawned_workers() -> None:
    images = [Image.fromarray(np.full((12, 12, 3), number, np.uint8)) for number in range(6)]
    dataset = TensorDataset(torch.stack([v2.functional.pil_to_tensor(image) for image in images]), torch.arange(6))
    options: dict[str, Any] = {"num_classes": 6, "batch_size": 4}
    inside = list(from_datasets(dataset, **options).train_dataloader())
    spawn = {"num_workers": 1, "multiprocessing_context": "spawn"}
    spawned = list(from_datasets(dataset, **options, **spawn).train_dataloader())

    assert all(torch.equal(*pair) for pairs in zip(inside, spawned, strict=True) for pair in zip(*pairs, strict=True))


def test_prediction_takes_images_without_labels_or_the_test_set() -> None:
    bare = from_datasets(predict=Items(torch.zeros(1, 2, 2)), num_classes=2)
    tested = from_datasets(test=tensors(1, 0), num_classes=2)

    assert {"image", "index"} == next(iter(bare.predict_dataloader())).keys()
    assert next(iter(tested.predict_dataloader()))["target"].tolist() == [1, 0]  # type: ignore[call-overload]


def predicted(*labels: Any) -> list[Any]:
    data = from_datasets(predict=[(torch.zeros(1, 2, 2), label) for label in labels], num_classes=2, batch_size=9)  # type: ignore[arg-type]  # a list is a dataset
    batch = data.on_before_batch_transfer(next(iter(data.predict_dataloader())), 0)
    assert isinstance(batch, dict)
    return batch["target"].tolist()


def test_labels_are_checked_in_prediction_too_where_minus_one_is_unknown() -> None:
    assert predicted(1, -1, 0) == [1, -1, 0]
    assert predicted([0, 1], [1, 1]) == [[0, 1], [1, 1]]
    with pytest.raises(ValueError, match=r"^label 2 of sample 2 is outside 0\.\.1; there are 2 classes$"):
        predicted(1, -1, 2)
    with pytest.raises(ValueError, match=r"^label -2 of sample 0 is outside 0\.\.1; there are 2 classes$"):
        predicted(-2)
    with pytest.raises(ValueError, match=r"^label -1\.0 of sample 0 is outside 0\.\.1; there are 2 classes$"):
        predicted([0, -1])


def test_labels_that_a_transform_changes_are_not_believed() -> None:
    dataset = with_attribute("targets")
    dataset.target_transform = lambda label: 0  # type: ignore[attr-defined]  # as torchvision's have it

    assert known_targets(dataset) is None
    assert known_targets(Items(1)) is None


def test_floats_are_not_augmented_but_refused() -> None:
    data = from_datasets(TensorDataset(torch.zeros(4, 1, 8, 8), torch.zeros(4).long()), num_classes=2, augment="light")
    with pytest.raises(
        ValueError, match=r"^augment works on uint8 images .* are float32 with 1 channels; give uint8 or"
    ):
        data.setup()


def test_a_balanced_epoch_takes_the_labels_that_a_dataset_tells() -> None:
    images, labels = torch.zeros(10, 1, 8, 8, dtype=torch.uint8), torch.tensor([0] * 8 + [1] * 2)
    told = from_datasets(TensorDataset(images, labels), num_classes=2, sampler="balanced", batch_size=10)

    assert next(iter(told.train_dataloader()))[1].bincount().tolist() == [5, 5]

    silent = from_datasets([(images[0], 1)] * 4, num_classes=2, sampler="balanced")  # type: ignore[arg-type]  # map-style
    with pytest.raises(
        ValueError, match=r"^sampler='balanced' draws .* does not tell its labels before it loads images"
    ):
        silent.setup()

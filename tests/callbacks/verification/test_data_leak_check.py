"""Images that stand on both sides of a split are found, whatever holds them; splits that are clean are left alone.

Conformance proves that the run is the one without it.
"""

import io
import random

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder, VisionDataset
from torchvision.transforms import v2

from lightning_vision.callbacks import DataLeakCheck
from lightning_vision.callbacks.hooks._fields import Fields
from lightning_vision.callbacks.hooks._still_images import StillImages
from lightning_vision.callbacks.verification.data_leak_check import digest, nearest, thumbnails
from lightning_vision.datamodules import Digits, DigitScenes, PlacedDigits
from support.compare import seeded
from support.data import labelled_images
from support.four_tasks import TASKS
from support.modules import DictBatches, Plain
from support.trainers import quiet_trainer


class Still(Plain):
    """Looks at images of any size and learns nothing."""

    def training_step(self, batch, batch_idx):
        return self.network[5].bias.sum()

    def validation_step(self, batch, batch_idx):
        pass


def said(train, val=None, module=None, datamodule=None, folder=None, **settings):
    """What the check raises before the first step; nothing if it is content."""
    check = DataLeakCheck(**{"action": "error"} | settings)
    trainer = quiet_trainer(callbacks=[check], max_steps=1, default_root_dir=folder, num_sanity_val_steps=0)
    try:
        trainer.fit(module or seeded(Still), train, val, datamodule=datamodule)
    except RuntimeError as error:
        assert trainer.global_step == 0
        return str(error)
    return ""


def photographs(count, side=32, seed=0):
    """Smooth random pictures, bytes `(count, 3, side, side)`, no two alike."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 9, 9, generator=generator)
    return (torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1) * 255).byte()


def pairs(images, targets=None):
    targets = torch.zeros(len(images), dtype=torch.int64) if targets is None else targets
    return DataLoader(TensorDataset(images, targets), batch_size=8)


def test_an_image_on_both_sides_is_named_by_its_positions():
    images = photographs(30)
    train, val = images[:20], torch.cat([images[20:], images[3:5]])

    assert said(pairs(train), pairs(images[20:])) == ""
    assert said(pairs(train), pairs(val)) == (
        "DataLeakCheck: 2 of 12 val images stand to the byte among the 20 training images that were read (16.7%, 0.0% "
        "may): val 10 = train 3, val 11 = train 4; split the data by what belongs together, or allow it with exact=."
    )
    assert said(pairs(train), pairs(val), exact=0.2) == ""


def saved_anew(image):
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=75)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)


def brighter(image):
    return (image * 0.8 + 30).byte()


def smaller(image):
    half = v2.functional.resize(image, [16, 16], antialias=True)
    return v2.functional.resize(half, [32, 32], antialias=True)


@pytest.mark.parametrize("changed", [saved_anew, brighter, smaller])
def test_a_copy_that_was_changed_a_little_is_a_near_duplicate(changed):
    images = photographs(24)
    val = torch.cat([images[16:], changed(images[5])[None]])
    message = said(pairs(images[:16]), pairs(val))

    assert message.startswith("DataLeakCheck: 1 of 9 val images stand nearly among the 16 training images")
    assert "val 8 = train 5" in message
    assert said(pairs(images[:16]), pairs(val), near=1) == ""


def test_a_copy_of_another_size_is_a_near_duplicate():
    images = photographs(16)
    val = v2.functional.resize(images[2:3], [24, 40], antialias=True)

    assert "val 0 = train 2" in said(pairs(images), pairs(val))


@pytest.mark.parametrize("source", [Digits, PlacedDigits, DigitScenes])
def test_the_splits_of_the_digits_are_clean(source, recwarn):
    assert said(None, datamodule=source(batch_size=100)) == ""
    assert [it for it in recwarn if "DataLeakCheck" in str(it.message)] == []


def test_one_image_a_thousand_or_so_of_the_digits_is_nearly_another():
    data = Digits()
    data.setup()
    train, val, test = (thumbnails(it.images) for it in (data.train_set, data.val_set, data.test_set))

    assert [int((nearest(it, train)[0] >= 0.99).sum()) for it in (val, test)] == [1, 0]


@pytest.mark.parametrize("task", TASKS)
def test_on_each_kind_of_task_training_images_that_validate_are_found(task):
    module, loader = TASKS[task]()
    module.validation_step = lambda batch, batch_idx: None

    assert " val images stand to the byte among the " in said(loader, loader, module)


def test_of_a_datamodule_of_ours_the_test_images_are_compared_too_and_never_augmented():
    data = Digits(shift=2, augment="trivialaugment")
    data.setup()
    data.test_set = data.train_set.part(torch.arange(7))

    assert "7 of 7 test images stand to the byte among the 1,258 training images" in said(None, datamodule=data)


def test_the_images_of_all_training_loaders_are_compared():
    images = photographs(24)
    train = {"a": pairs(images[:8]), "b": pairs(images[8:16], torch.ones(8).long()), "again": pairs(images[:8])}
    train["again"] = DataLoader(train["a"].dataset, batch_size=4)
    message = said(train, pairs(images[14:]))

    assert "2 of 10 val images stand to the byte among the 16 training images that were read" in message
    assert "val 0 = train 1 6, val 1 = train 1 7" in message


def test_one_image_with_two_labels_in_two_training_sets_is_no_contradiction(recwarn):
    images = photographs(12)
    said([pairs(images[:8]), pairs(images[:8], torch.ones(8).long())], pairs(images[8:]))

    assert [it for it in recwarn if "different labels" in str(it.message)] == []


def test_a_datamodule_of_ours_without_test_images_is_told_nothing(recwarn):
    data = Digits()
    data.setup()
    data.test_set = None

    assert said(None, datamodule=data) == ""
    assert [it for it in recwarn if "DataLeakCheck" in str(it.message)] == []


class Foreign(LightningDataModule):
    """Some of its test images train; they are there before a test, or not."""

    def __init__(self, ready):
        super().__init__()
        self.images = photographs(16)
        if ready:
            self.test_set = self.images[5:8]

    def train_dataloader(self):
        return pairs(self.images[:8])

    def val_dataloader(self):
        return pairs(self.images[8:])

    def test_dataloader(self):
        return pairs(self.test_set)


def test_of_a_foreign_datamodule_the_test_images_are_read_if_they_are_there_else_it_is_told():
    assert "3 of 3 test images stand to the byte" in said(None, datamodule=Foreign(True))

    with pytest.warns(
        UserWarning,
        match=r"^DataLeakCheck: test images are not looked at, for test_dataloader\(\) of Foreign cannot be called "
        r"before a test \(AttributeError: .*test_set'\)\.$",
    ):
        assert said(None, datamodule=Foreign(False)) == ""


class Fallen(Dataset):
    """Gives noise on top of each image, another one each time."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        noise = torch.rand(len(self.images[index]), 1, 1) + random.random() + np.random.rand()
        return self.images[index] + noise, 0


def test_a_dataset_that_augments_is_told_and_near_duplicates_are_found():
    images = photographs(12) / 255
    with pytest.warns(UserWarning, match="^DataLeakCheck: a dataset gives another image each time it is asked"):
        message = said(DataLoader(Fallen(images), 4), DataLoader(Fallen(images[:3]), 4))

    assert message.startswith("DataLeakCheck: 3 of 3 val images stand nearly among")


class Mirrored(TensorDataset):
    def __getitem__(self, index):
        (image,) = super().__getitem__(index)
        return (image.flip(-1) if torch.rand(()) < 0.5 else image), 0


def test_a_dataset_that_only_mirrors_is_told_whatever_the_seed():
    source = StillImages("train", Mirrored(photographs(20)), Fields("it", "image", "target"))

    assert [torch.manual_seed(seed) and source.repeats() for seed in range(40)] == [False] * 40
    assert StillImages("train", TensorDataset(photographs(3)), source.fields).repeats()


class Unasked(VisionDataset):
    """Calls its transform whether it has one or not."""

    def __init__(self, images):
        super().__init__(".", transform=v2.RandomHorizontalFlip())
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(self.images[index]), 0


def test_a_class_that_calls_its_transform_unasked_is_compared_without():
    images = photographs(12)

    assert "1 of 4 val images stand to the byte" in said(
        DataLoader(Unasked(images[:9]), 4), DataLoader(Unasked(images[8:]), 4)
    )


@pytest.mark.parametrize(
    ("samples", "found"),
    [
        (torch.zeros(8, 2, 3, 8, 8), r"a Tensor of shape \(2, 3, 8, 8\)"),
        (torch.zeros(8, 5), r"a Tensor of shape \(5,\)"),
        ([[torch.zeros(3, 8, 8)] * 2] * 8, "a list"),
        (np.zeros((8, 5)), r"a ndarray of shape \(5,\)"),
    ],
)
def test_samples_without_one_image_are_refused(samples, found):
    data = [(it, 0) for it in samples]
    way_out = r"give one image \(C, H, W\) a sample, under image_key= or first, or leave it out\.$"
    with pytest.raises(ValueError, match=rf"^DataLeakCheck: the image of train 0 is {found}; {way_out}"):
        said(DataLoader(data, 4), DataLoader(data, 4))
    stream = DataLoader(Streams(samples), 4) if isinstance(samples, torch.Tensor) else None
    if stream is not None:
        with pytest.raises(ValueError, match=rf"^DataLeakCheck: the image of train 0 is {found}; {way_out}"):
            said(stream, stream)


def test_large_images_are_made_small_a_few_at_a_time(monkeypatch):
    from lightning_vision.callbacks.verification import data_leak_check

    most = []
    monkeypatch.setattr(data_leak_check, "thumbnails", lambda images: (most.append(len(images)), thumbnails(images))[1])
    monkeypatch.setattr(data_leak_check, "NUMBERS", 3 * 3 * 32 * 32)
    said(pairs(photographs(10)), pairs(photographs(1, seed=1)))

    assert most == [3, 3, 3, 1, 1]


def test_what_torchvision_transforms_is_compared_without(tmp_path):
    images = photographs(6)
    for number, image in enumerate(images):
        (tmp_path / "train" / "a").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "train" / "a" / f"{number}.png")
    augment = v2.Compose([v2.ToImage(), v2.RandomResizedCrop(8), v2.ToDtype(torch.float32, scale=True)])
    plain = v2.Compose([v2.ToImage(), v2.Resize([8, 8]), v2.ToDtype(torch.float32, scale=True)])
    train, val = (ImageFolder(str(tmp_path / "train"), transform=it) for it in (augment, plain))
    message = said(DataLoader(Subset(train, range(5)), 2), DataLoader(Subset(val, [4, 5]), 2))

    assert message.startswith("DataLeakCheck: 1 of 2 val images stand to the byte among the 5 training images")
    assert train.transform is augment


class Streams(IterableDataset):
    def __init__(self, images):
        self.images = images

    def __iter__(self):
        return iter([(image, 0) for image in self.images])


def test_a_stream_is_read_through_a_copy_of_its_loader():
    images = photographs(10)
    message = said(DataLoader(Streams(images[:6]), 4), DataLoader(Streams(images[5:]), 4))

    assert "1 of 5 val images stand to the byte among the 6 training images" in message
    assert "val 0 = train 5" in message


def test_samples_may_be_mappings():
    data = [{"image": image, "target": 0} for image in photographs(8)]
    module = seeded(DictBatches)
    module.training_step = lambda batch, batch_idx: module.network[5].bias.sum()
    module.validation_step = lambda batch, batch_idx: None

    assert "2 of 2 val images" in said(DataLoader(data, 4), DataLoader(data[:2], 4), module)


def test_training_images_with_two_labels_are_told_and_no_error():
    images = photographs(9)
    train = torch.cat([images[:6], images[1:3]])
    with pytest.warns(UserWarning) as caught:
        assert said(pairs(train, torch.arange(8) // 2), pairs(images[6:])) == ""
    (told,) = [str(it.message) for it in caught if "DataLeakCheck" in str(it.message)]

    assert told == (
        "DataLeakCheck: 2 training images stand there twice with different labels: train 1 as 0 and train 6 as 3, "
        "train 2 as 1 and train 7 as 3."
    )


def test_the_first_pairs_are_drawn(tmp_path):
    images = photographs(20)
    said(pairs(images[:10]), pairs(images[8:]), folder=tmp_path)
    (file,) = (tmp_path / "media" / "train" / "data_leak").glob("*.png")

    assert np.asarray(Image.open(file)).shape[2] == 3


def test_no_more_than_so_many_are_read_evenly_spread():
    images = photographs(20)
    message = said(pairs(images), pairs(images[::2]), max_samples=5)

    assert "5 of 5 val images stand to the byte among the 5 training images that were read" in message
    assert "val 0 = train 0, val 2 = train 4" in message


def test_with_warn_the_fit_goes_on():
    images = photographs(8)
    with pytest.warns(UserWarning, match=r"^DataLeakCheck: 8 of 8 val images stand to the byte"):
        assert said(pairs(images), pairs(images), action="warn") == ""


class Handed(LightningDataModule):
    """Its datasets draw from the global streams."""

    def train_dataloader(self):
        return DataLoader(Fallen(labelled_images(24).tensors[0]), 6, shuffle=True)

    def val_dataloader(self):
        return DataLoader(Streams(labelled_images(9).tensors[0]), 6)


@pytest.mark.filterwarnings("ignore:DataLeakCheck")
def test_no_random_stream_moves_and_no_order_of_the_data():
    def drawn(*callbacks):
        module, seen = seeded(Plain), []
        own = module.training_step
        module.training_step = lambda batch, batch_idx: (seen.append(batch[0]), own(batch, batch_idx))[1]
        for seed in (torch.manual_seed, random.seed, np.random.seed):
            seed(3)
        quiet_trainer(callbacks=list(callbacks), max_epochs=1).fit(module, datamodule=Handed())
        return torch.cat(seen).numpy(), torch.get_rng_state().numpy(), random.getstate(), np.random.get_state()[1]

    for left, right in zip(drawn(DataLeakCheck()), drawn(), strict=True):
        assert np.array_equal(left, right) if isinstance(left, np.ndarray) else left == right


class Jittered(TensorDataset):
    """Draws from a generator of its own."""

    def __init__(self, images):
        super().__init__(images)
        self.stream, self.given = np.random.default_rng(0), 0

    def __getitem__(self, index):
        self.given += 1
        return super().__getitem__(index)[0] + float(self.stream.normal()), 0


@pytest.mark.filterwarnings("ignore:DataLeakCheck")
@pytest.mark.parametrize("workers", [0, 1])
def test_streams_and_counters_of_datasets_stand_where_they_were(workers):
    data = Jittered(photographs(6) / 255)

    class Looks(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            assert data.given == 0
            assert data.stream.bit_generator.state == np.random.default_rng(0).bit_generator.state
            raise KeyError("it looked")

    trainer = quiet_trainer(callbacks=[DataLeakCheck(), Looks()], max_epochs=1, num_sanity_val_steps=0)
    with pytest.raises(KeyError, match="it looked"):
        trainer.fit(seeded(Still), DataLoader(data, 3, num_workers=workers), pairs(photographs(3)))


def test_a_digest_tells_pixels_shapes_and_types_apart():
    image = torch.arange(12, dtype=torch.uint8).view(1, 3, 4)
    others = [image.view(1, 4, 3), image.float(), image + 1]

    assert digest(image) == digest(image.clone().transpose(1, 2).contiguous().transpose(1, 2))
    assert digest(image) not in {digest(it) for it in others}


def test_thumbnails_do_not_see_brightness_contrast_or_flat_images():
    images = photographs(4)
    first, changed = thumbnails(images), thumbnails((images * 0.5 + 40).byte())

    assert torch.allclose(first.norm(dim=1), torch.ones(4), atol=1e-5)
    assert (first * changed).sum(1).min() > 0.999
    assert (first @ first.T - torch.eye(4)).max() < 0.9
    assert not thumbnails(torch.full((1, 1, 5, 9), 90, dtype=torch.uint8)).any()


def test_the_nearest_of_all_is_found_block_by_block(monkeypatch):
    from lightning_vision.callbacks.verification import data_leak_check

    torch.manual_seed(0)
    queries, bank = torch.randn(7, 5), torch.randn(9, 5)
    monkeypatch.setattr(data_leak_check, "BLOCK", 3)
    cosines, places = nearest(queries, bank)

    assert torch.equal(places, (queries @ bank.T).argmax(1))
    assert torch.allclose(cosines, (queries @ bank.T).amax(1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exact": 2}, "DataLeakCheck: exact is 2; give a number from 0 to 1."),
        ({"near": -1}, "DataLeakCheck: near is -1; give a number from 0 to 1."),
        ({"similarity": 1.5}, "DataLeakCheck: similarity is 1.5; give a number from 0 to 1."),
        ({"max_samples": 0}, "DataLeakCheck: max_samples is 0; give a whole number of at least 1."),
        ({"action": "stop"}, "DataLeakCheck: action is 'stop'; give 'error', 'warn' or 'off'."),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError) as caught:
        DataLeakCheck(**settings)

    assert str(caught.value) == message


def test_a_fit_without_validation_is_told():
    with pytest.warns(UserWarning, match="there are no training and validation images to compare"):
        assert said(DataLoader(labelled_images(12), 4)) == ""

"""The base inside a Trainer: batches after transfer, draws, checks, resuming in mid-epoch, shards of two ranks.

Weights after a crash, Ctrl-C and the callback that saves random streams are proved in `tests/callbacks/resume`.
"""

import gc
import itertools
import pickle
import weakref
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import Tensor

from lightning_vision.catalogue import Entry, entries
from lightning_vision.datamodules.augmentation.augmentation import Augmentation
from lightning_vision.datamodules.augmentation.chain import Chain
from lightning_vision.datamodules.augmentation.policies import POLICIES
from lightning_vision.datamodules.augmentation.shift_crop import ShiftCrop
from lightning_vision.datamodules.cifar import CIFAR10
from lightning_vision.datamodules.common._loader import ShardedLoader
from lightning_vision.datamodules.common._sets import ArrayImages
from lightning_vision.datamodules.common._uniforms import EpochUniforms, uniforms
from lightning_vision.datamodules.common.datamodule import VisionDataModule
from lightning_vision.datamodules.digits import Digits
from lightning_vision.datamodules.image_folder import ImageFolder

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory")


class Watcher(LightningModule):
    """Keeps every batch it is given, by stage."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[str, list[Any]] = {"train": [], "val": [], "test": [], "predict": []}

    def training_step(self, batch: Any) -> Tensor:
        self.seen["train"].append(batch)
        return self.weight * batch[0].mean()

    def validation_step(self, batch: Any) -> None:
        self.seen["val"].append(batch)

    def test_step(self, batch: Any) -> None:
        self.seen["test"].append(batch)

    def predict_step(self, batch: Any) -> None:
        self.seen["predict"].append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Numbered(VisionDataModule):
    """Forty images of 6x6, pixels equal to the sample's number; cropped and flipped."""

    in_channels = 1
    image_size = (6, 6)
    statistics = [0.25], [0.5]
    class_names: ClassVar = ["a", "b", "c", "d"]

    def __init__(self, *args: Any, augment: str | Augmentation | None = None, **options: Any) -> None:
        super().__init__(*args, augment=augment or ShiftCrop(2, flip=True), **options)

    def load(self) -> None:
        number = torch.arange(40)
        images = number.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 6, 6) + torch.arange(6, dtype=torch.uint8) * 40
        self.train_set = self.val_set = self.test_set = self.predict_set = ArrayImages(images, number % 4)


def fit(data: VisionDataModule, ckpt_path: Path | None = None, **options: Any) -> Watcher:
    model = Watcher()
    trainer = Trainer(**{**QUIET, "enable_checkpointing": "callbacks" in options, "num_sanity_val_steps": 0, **options})
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
    return model


def equal(first: list[Any], second: list[Any]) -> bool:
    pairs = list(zip(first, second, strict=True))
    return bool(pairs) and all(torch.equal(*tensors) for batches in pairs for tensors in zip(*batches, strict=True))


def test_batches_after_transfer_are_normalised_floats_and_labels() -> None:
    seen = fit(Numbered(batch_size=16), max_epochs=1).seen

    for image, target in seen["train"] + seen["val"]:
        assert (torch.float32, torch.int64) == (image.dtype, target.dtype)
        assert (len(target), 1, 6, 6) == tuple(image.shape)
    first = seen["val"][0][0]

    assert [len(target) for _, target in seen["val"]] == [16, 16, 8]
    assert torch.allclose(first[3, 0, 0], ((3 + torch.arange(6) * 40) / 255 - 0.25) / 0.5)


def test_training_images_are_the_draws_of_their_epoch_and_sample() -> None:
    data = Numbered(batch_size=16)
    seen = fit(data, max_epochs=2).seen["train"]
    loader = data.train_dataloader()
    expected = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        expected += [(data.normalise(data.augment(x, index, epoch)), y) for x, y, index in loader]

    assert equal(expected, seen)
    assert not equal(expected[:3], seen[3:])


@pytest.mark.parametrize(("name", "value"), [("augmentation", ShiftCrop(1)), ("augmentation", None), ("seed", 5)])
def test_an_augmentation_changed_between_two_fits_takes_effect_at_once(name: str, value: Any) -> None:
    changed, fresh = Numbered(batch_size=16), Numbered(batch_size=16)
    fit(changed, max_epochs=1)
    setattr(changed, name, value)
    setattr(fresh, name, value)

    assert equal(fit(fresh, max_epochs=1).seen["train"], fit(changed, max_epochs=1).seen["train"])


def test_another_loader_made_in_mid_run_does_not_move_the_draws() -> None:
    class Curious(Watcher):
        def on_train_batch_start(self, *args: object) -> None:
            list(self.trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]  # Trainer annotates none

    data, model = Numbered(batch_size=16), Curious()
    Trainer(**QUIET, enable_checkpointing=False, max_epochs=2, num_sanity_val_steps=0).fit(model, datamodule=data)

    assert equal(fit(Numbered(batch_size=16), max_epochs=2).seen["train"], model.seen["train"])


def test_draws_are_independent_across_samples_epochs_and_of_the_batch() -> None:
    data, index = CIFAR10(), torch.arange(4000)
    marked = torch.zeros(4000, 3, 32, 32, dtype=torch.uint8)
    marked[:, 0, 16, 10] = 255
    places = data.augment(marked, index, 0)[:, 0].flatten(1).argmax(1)
    row, column = 20 - places // 32, places % 32
    # Unflipped the mark lies in columns 6..14, flipped, at 21, in 17..25.
    flipped = column > 15
    shift = torch.where(flipped, 25 - column, 14 - column)

    assert abs(flipped.float().mean() - 0.5) < 4 * 0.5 / 4000**0.5
    for draw in (row, shift):
        counts = draw.bincount(minlength=9).double()
        # Chi-square, 8 degrees of freedom, one in a thousand; keys are fixed.
        assert ((counts - 4000 / 9) ** 2 / (4000 / 9)).sum() < 26.1
    together = torch.corrcoef(torch.stack([row, shift, flipped]).double())
    assert (together - torch.eye(3)).abs().max() < 4 / 4000**0.5
    assert torch.equal(data.augment(marked[7:9], index[7:9], 0), data.augment(marked, index, 0)[7:9])
    assert not torch.equal(data.augment(marked, index, 0), data.augment(marked, index, 1))


def test_validation_test_and_prediction_are_not_augmented() -> None:
    data, model = Numbered(batch_size=40), Watcher()
    trainer = Trainer(**QUIET, enable_checkpointing=False, max_epochs=1)
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
    trainer.predict(model, datamodule=data)
    plain = data.normalise(data.train_set.images)  # type: ignore[union-attr]  # loaded by then

    for split in ("val", "test"):
        assert torch.equal(plain, model.seen[split][0][0])
    assert not torch.equal(plain.sum((1, 2, 3)).sort().values, model.seen["train"][0][0].sum((1, 2, 3)).sort().values)
    (batch,) = model.seen["predict"]
    assert {"image", "target", "index"} == batch.keys()
    assert torch.equal(plain, batch["image"])
    assert list(range(40)) == batch["index"].tolist()


# Ten batches an epoch. Saved inside the first epoch, at its end, inside the second and at the end of the run.
@pytest.mark.parametrize("saved_at", [1, 4, 10, 13, 20])
@pytest.mark.parametrize("limit", [1.0, 7])
def test_a_resumed_run_is_given_the_batches_the_straight_run_was_given(
    saved_at: int, limit: float | int, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"max_epochs": 3, "limit_train_batches": limit, "limit_val_batches": 2}
    writer = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    straight = fit(Numbered(batch_size=4), callbacks=[writer], **options).seen["train"]
    resumed = fit(Numbered(batch_size=4), tmp_path / f"step={saved_at}.ckpt", **options).seen["train"]

    assert (30 if limit == 1.0 else 21) == len(straight)
    assert equal(straight[saved_at:], resumed)


def test_resuming_at_an_epochs_end_is_exact_too(tmp_path: Path) -> None:
    writer = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    straight = fit(Numbered(batch_size=4), callbacks=[writer], max_epochs=3).seen["train"]
    resumed = fit(Numbered(batch_size=4), tmp_path / "epoch=1.ckpt", max_epochs=3).seen["train"]

    assert equal(straight[20:], resumed)


def test_workers_resume_as_well(tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_epochs": 2, "limit_val_batches": 0}
    writer = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=7)
    straight = fit(Numbered(batch_size=4), callbacks=[writer], **options).seen["train"]
    resumed = fit(Numbered(batch_size=4, num_workers=2), tmp_path / "step=7.ckpt", **options).seen["train"]

    assert equal(straight[7:], resumed)


def test_another_batch_size_in_mid_epoch_is_refused_by_the_fit(tmp_path: Path) -> None:
    writer = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=4)
    fit(Numbered(batch_size=4), callbacks=[writer], max_epochs=1)
    with pytest.raises(ValueError, match="with batch_size 5, it was saved with batch_size 4"):
        fit(Numbered(batch_size=5), tmp_path / "step=4.ckpt", max_epochs=1)


@pytest.mark.filterwarnings("error:You requested to overfit")
def test_overfitting_batches_sees_the_same_ones_each_epoch() -> None:
    seen = fit(Numbered(batch_size=4, augment="none"), max_epochs=2, overfit_batches=2).seen["train"]

    assert equal(seen[:2], seen[2:])
    assert ((seen[0][0][:, 0, 0, 0] * 0.5 + 0.25) * 255).round().tolist() == [0.0, 1.0, 2.0, 3.0]


def test_precision_of_the_trainer_reaches_the_images() -> None:
    assert torch.float64 == fit(Numbered(batch_size=40), max_epochs=1, precision="64-true").seen["train"][0][0].dtype


@pytest.mark.parametrize("wrong", [-1, 4])
def test_a_label_outside_the_range_is_named_before_it_reaches_the_device(wrong: int) -> None:
    data = Numbered(batch_size=8)
    data.setup()
    data.train_set.targets[13] = wrong  # type: ignore[union-attr, index]  # an ArrayImages
    with pytest.raises(ValueError, match=rf"^label {wrong} of sample 13 is outside 0..3; there are 4 classes$"):
        fit(data, max_epochs=1)


def test_preprocessing_is_plain_data() -> None:
    assert Numbered().preprocessing == {
        "class_names": ["a", "b", "c", "d"],
        "channels": 1,
        "image_size": (6, 6),
        "resize": "crop",
        "mean": [0.25],
        "std": [0.5],
    }


def test_sizes_are_known_before_set_up_and_survive_pickling() -> None:
    data = pickle.loads(pickle.dumps(Digits(batch_size=7)))

    assert (data.num_classes, data.in_channels, data.image_size) == (10, 1, (8, 8))
    assert len(next(iter(data.train_dataloader()))[1]) == 7


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"num_workers": -1}])
def test_impossible_sizes_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="; give at least 1 and 0"):
        Numbered(**options)


def test_without_a_validation_set_fit_does_not_validate() -> None:
    class TrainOnly(Numbered):
        def load(self) -> None:
            super().load()
            self.val_set = self.test_set = None

    assert fit(TrainOnly(batch_size=20), max_epochs=1).seen["val"] == []
    with pytest.raises(ValueError, match=r"^TrainOnly has no test images; give it some, or do without$"):
        TrainOnly().test_dataloader()


def test_workers_end_with_the_fit_and_after_an_error() -> None:
    class Fails(Watcher):
        def training_step(self, batch: Any) -> Tensor:
            raise RuntimeError("in the step")

    fit(Numbered(batch_size=10, num_workers=1), max_epochs=1)
    data = Numbered(batch_size=10, num_workers=1)
    with pytest.raises(RuntimeError, match="in the step"):
        Trainer(**QUIET, enable_checkpointing=False, max_epochs=1).fit(Fails(), datamodule=data)
    # The leak check of every test fails this one if a process is left.


def test_loaders_that_nobody_uses_are_not_kept() -> None:
    data = Numbered()
    kept, dropped = data.train_dataloader(), weakref.ref(data.train_dataloader())
    gc.collect()

    assert dropped() is None
    assert list(data._loaders) == [kept]


@pytest.mark.filterwarnings("ignore:Consider setting")
def test_a_limited_last_epoch_still_reports_what_was_left_out(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    for number in range(4):
        Image.new("L", (4, 4)).save(tmp_path / "cat" / f"{number}.png")
    (tmp_path / "cat" / "0.png").write_bytes(b"cut short")
    options = {"image_size": 4, "val_fraction": 0, "test_fraction": 0, "batch_size": 3, "on_bad_image": "skip"}
    with pytest.warns(UserWarning, match=r"^left out 1 of 4 images in epoch 1, unusable: .*0\.png$"):
        fit(ImageFolder(tmp_path, **options), max_epochs=2, limit_train_batches=1)


DATAMODULES = [entry for entry in entries() if entry.kind == "datamodule"]


@pytest.mark.parametrize("entry", DATAMODULES, ids=lambda entry: entry.name)
def test_every_datamodule_goes_through_yaml_and_back(entry: Entry) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    needed: dict[str, dict[str, Any]] = {"ImageFolder": {"root": "somewhere"}, "CSVImages": {"csv": "table.csv"}}
    needed |= {name: {"root": "somewhere"} for name in ("CocoDetection", "OpenImages", "VOCDetection")}
    given = {"batch_size": 9, **needed.get(entry.name, {})}
    if entry.name in ("Reinforced", "ReLabel"):
        digits = f"{Digits.__module__}.{Digits.__qualname__}"
        given = {"data": {"class_path": digits, "init_args": given}, "store": "somewhere"}
    config = parser.parse_object({"data": {"class_path": entry.path, "init_args": given}})
    again = parser.parse_string(parser.dump(config))
    data = parser.instantiate(again).data

    assert config == again
    assert data.batch_size == 9
    assert pickle.loads(pickle.dumps(data)).batch_size == 9


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_plot_draws_a_labelled_sheet(suffix: str, tmp_path: Path) -> None:
    figure = Numbered().plot("val", count=7, path=tmp_path / f"sheet.{suffix}")

    assert (tmp_path / f"sheet.{suffix}").stat().st_size > 1000
    # Samples 0, 6, 13, 19, 26, 32, 39 of labels modulo 4; the grid of nine has two empty cells.
    assert [axes.get_title() for axes in figure.axes] == ["a", "c", "b", "d", "c", "a", "d", "", ""]


def test_plot_draws_images_before_and_after_augmentation_one_below_the_other() -> None:
    data = Numbered(augment=ShiftCrop(1, flip=True))
    figure = data.plot("train", epoch=3, positions=[5, 9, 17, 30, 39])
    images = data.train_set.images[torch.tensor([5, 9, 17, 30, 39])]  # type: ignore[union-attr]  # loaded by then
    after = data.augment(images, torch.tensor([5, 9, 17, 30, 39]), 3)
    shown = [torch.from_numpy(axes.images[0].get_array() * 255).round().long() for axes in figure.axes if axes.images]
    rows = [images[:4], after[:4], images[4:], after[4:]]

    titles = [*"bbbc", *["in epoch 3"] * 4, "d", *[""] * 3, "in epoch 3", *[""] * 3]
    assert [axes.get_title() for axes in figure.axes] == titles
    assert torch.equal(torch.cat(rows)[:, 0].long(), torch.stack(shown))
    assert not torch.equal(images, after)


def test_every_policy_trains_images_of_any_size_it_is_given() -> None:
    images = torch.randint(256, (4, 3, 40, 36), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for name in POLICIES:
        data = Numbered(augment=name)
        data.in_channels, data.image_size, data.train_size = 3, (32, 32), (40, 36)
        first, again, later = (data.augment(images, torch.arange(4), epoch) for epoch in (0, 0, 1))

        assert first.shape == (4, 3, 32, 32)
        assert torch.equal(first, again)
        assert not torch.equal(first, later)


def test_an_augmentation_that_does_not_cut_larger_images_has_a_window_drawn_before_it() -> None:
    rows = torch.arange(12, dtype=torch.uint8).view(1, 1, 12, 1).expand(500, 1, 12, 6)
    data = Numbered(augment=Chain([]))
    data.train_size = (12, 6)
    first = data.augment(rows, torch.arange(500), 0)[:, 0, :, 0]
    counts = first[:, 0].long().bincount(minlength=7).double()

    assert torch.equal(first[:, :1] + torch.arange(6, dtype=torch.uint8), first)
    # Chi-square, 6 degrees of freedom, one in a thousand; keys are fixed.
    assert ((counts - 500 / 7) ** 2 / (500 / 7)).sum() < 22.5


def test_numbers_kept_for_an_epoch_are_those_of_a_batch() -> None:
    index = torch.tensor([7, 0, 39])
    kept, many = EpochUniforms(), EpochUniforms()
    expected = uniforms(index, 5, 1, 2)

    assert torch.equal(expected, kept(index, 5, 1, 2, 40))
    assert torch.equal(expected, many(index, 5, 1, 2, 2**20))
    assert not torch.equal(expected, kept(index, 5, 1, 3, 40))
    assert not torch.equal(expected, kept(index, 5, 2, 2, 40))
    assert torch.equal(expected, kept(index, 5, 1, 2, 40))
    assert (expected >= 0).all()
    assert (expected < 1).all()
    assert len(expected.unique()) == 15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": "strog"}, r"no augmentation policy 'strog'; did you mean strong\b.*"),
        (
            {"augment": True},
            "augment is True; give the name of a policy, its YAML file, an Augmentation or a list of these.",
        ),
        ({"sampler": "equal"}, "sampler is 'equal'; give all or balanced"),
    ],
)
def test_an_unknown_policy_or_sampler_is_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Digits(**options) if "sampler" in options else CIFAR10(**options)


@pytest.mark.parametrize(
    "augment",
    ["strong", {"class_path": "RandAugment", "init_args": {"num_ops": 1, "magnitude": 5}}],
    ids=["name", "object"],
)
def test_an_augmentation_goes_through_yaml_by_name_or_by_class(augment: Any) -> None:
    from lightning_vision.datamodules.augmentation import RandAugment

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    config = parser.parse_object({"data": {"class_path": "CIFAR10", "init_args": {"augment": augment}}})
    again = parser.parse_string(parser.dump(config))
    found = parser.instantiate(again).data.augment_by

    assert config == again
    assert found == "strong" or (isinstance(found, RandAugment) and found.num_ops == 1)


def test_images_of_a_balanced_epoch_are_augmented_copy_by_copy() -> None:
    class Skewed(Numbered):
        def load(self) -> None:
            images = torch.arange(36, dtype=torch.uint8).view(1, 1, 6, 6).expand(40, 1, 6, 6)
            self.train_set = ArrayImages(images, torch.tensor([0] * 39 + [3]))

    data = Skewed(batch_size=40, sampler="balanced", augment=ShiftCrop(2))
    ((image, target),) = fit(data, max_epochs=1).seen["train"]

    assert target.bincount().tolist() == [20, 0, 0, 20]
    # Twenty draws of 25 windows of the one image of class 3.
    assert len(image[target == 3].flatten(1).unique(dim=0)) > 8


def balanced_shard_of_a_fit(folder: str) -> tuple[list[list[float]], list[list[float]], list[float]]:
    """Sums of this rank's images in a straight run, in one resumed at its fifth step, and labels of two epochs."""

    class Uneven(Numbered):
        def load(self) -> None:
            super().load()
            self.train_set.targets = torch.tensor([0] * 25 + [1] * 9 + [2] * 4 + [3] * 2)  # type: ignore[union-attr]  # `load` made it

    def seen(**options: Any) -> tuple[list[list[float]], list[float]]:
        shared = {"strategy": "ddp", "devices": 2, "max_epochs": 2, "limit_val_batches": 0}
        batches = fit(Uneven(batch_size=4, sampler="balanced"), **shared, **options).seen["train"]
        return [image.sum((1, 2, 3)).tolist() for image, _ in batches], torch.cat([y for _, y in batches]).tolist()

    writer = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=7)
    straight, labels = seen(callbacks=[writer])
    resumed, _ = seen(ckpt_path=Path(folder) / "step=7.ckpt")
    return straight, resumed, labels


def shards_of_a_fit() -> tuple[int, list[list[int]]]:
    model = Watcher()
    data = Digits(batch_size=64)
    options = {**QUIET, "strategy": "ddp", "devices": 2, "max_epochs": 1, "limit_train_batches": 1}
    trainer = Trainer(**options, enable_checkpointing=False, num_sanity_val_steps=0)
    trainer.fit(model, datamodule=data)
    loader: ShardedLoader = trainer.val_dataloaders  # type: ignore[assignment]  # ours is no DataLoader
    return len(model.seen["val"]), [index.tolist() for _, _, index in loader]


def shards(folder: str) -> tuple[Any, Any]:
    return shards_of_a_fit(), balanced_shard_of_a_fit(folder)


def test_two_ranks_validate_each_sample_once_and_share_and_resume_balanced_epochs(
    two_ranks: Any, tmp_path: Path
) -> None:
    ((first_count, first), mine), ((second_count, second), theirs) = two_ranks(shards, str(tmp_path))
    own, others = (sorted(itertools.chain(*shard)) for shard in (first, second))

    assert 2 == first_count == second_count
    assert (list(range(0, 180, 2)), list(range(1, 180, 2))) == (own, others)
    for straight, resumed, _ in (mine, theirs):
        assert len(straight) == 10
        assert straight[7:] == resumed
    for epoch in (slice(0, 20), slice(20, 40)):
        counts = torch.tensor(mine[2][epoch] + theirs[2][epoch]).bincount()
        assert counts.tolist() == [10] * 4


def test_a_datamodule_is_written_out_without_fetching_images() -> None:
    assert str(Digits(batch_size=4, seed=2)) == "Digits(batch_size=4, seed=2)"

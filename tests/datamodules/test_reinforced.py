"""Replaying what teachers saw: entries, soft labels, resumption, workers, ranks, and stores that do not belong.

The store is written here with random answers, so that each can be told from the others; what real teachers say, and
that a student learns from it, is proved in `tests/lightning_vision/commands/test_reinforce.py`.
"""

import json
import pickle
import shutil
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import Tensor

from lightning_vision import ImageClassifier
from lightning_vision.datamodules import Digits, ImageFolder, PlacedDigits, Reinforced, from_datasets, soft_targets
from lightning_vision.datamodules.augmentation import RandomErasing, ShiftCrop
from lightning_vision.datamodules.common._answers import AnswerStore
from lightning_vision.datamodules.common.datamodule import VisionDataModule
from support.photos import digit_folder
from support.stores import answered
from support.trainers import quiet_trainer

ENTRIES, KNOWN, SEED = 3, 4, 5


def digits(**options: Any) -> Digits:
    return Digits(**{"batch_size": 64, "shift": 1, "augment": [RandomErasing(1.0)], "seed": SEED} | options)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return answered(tmp_path_factory.mktemp("stores") / "digits", digits(), ENTRIES, KNOWN)


class Seen(LightningModule):
    """Keeps the training batches it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches: list[tuple[Tensor, Tensor]] = []

    def training_step(self, batch: Any) -> Tensor:
        self.batches.append((batch[0], batch[1]))
        return self.weight * batch[0].mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def seen(data: VisionDataModule, ckpt_path: Path | None = None, **options: Any) -> list[tuple[Tensor, Tensor]]:
    module = Seen()
    options = {"enable_checkpointing": "callbacks" in options, "limit_val_batches": 0, **options}
    quiet_trainer(**options).fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return module.batches


def equal(first: list[tuple[Tensor, Tensor]], second: list[tuple[Tensor, Tensor]]) -> bool:
    pairs = list(zip(first, second, strict=True))
    return bool(pairs) and all(torch.equal(*both) for pair in pairs for both in zip(*pair, strict=True))


@pytest.mark.parametrize("known", [1, 2, 7, 10])
def test_row_20_the_stored_probabilities_and_the_spread_remainder_sum_to_1(known: int) -> None:
    whole = torch.randn(50, 10, generator=torch.Generator().manual_seed(known)).softmax(1)
    top = whole.topk(known)
    target = soft_targets(top.indices, top.values, 10)
    others = torch.ones_like(whole, dtype=torch.bool).scatter_(1, top.indices, False)

    assert torch.allclose(target.sum(1), torch.ones(50), rtol=0, atol=1e-6)
    assert torch.equal(target.gather(1, top.indices), top.values)
    assert all(len(row[mask].unique()) <= 1 for row, mask in zip(target, others, strict=True))
    assert known < 10 or torch.equal(target, whole)


def test_probabilities_that_were_rounded_above_1_leave_nothing() -> None:
    target = soft_targets(torch.tensor([[1, 0]]), torch.tensor([[0.75, 0.2500001]]), 4)

    assert target[0, 2:].tolist() == [0.0, 0.0]


def test_an_epoch_draws_each_image_once_with_an_entry_of_its_own_and_its_answers(store: Path) -> None:
    data = Reinforced(digits(), store, seed=1)
    loader, table = data.train_dataloader(), np.load(store / "answers.npy")
    counts, epochs = torch.zeros(ENTRIES, dtype=torch.int64), []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        rows = []
        for _, answers, row in loader:
            rows.append(row)
            assert np.array_equal(table[row.numpy()]["class"], answers[:, 0].numpy())
            assert np.array_equal(table[row.numpy()]["probability"], answers[:, 1].view(torch.float32).numpy())
        entries, sample = torch.cat(rows) // 1258, torch.cat(rows) % 1258
        counts += entries.bincount(minlength=ENTRIES)
        epochs.append(entries[sample.argsort()])

        assert sample.sort().values.tolist() == list(range(1258))
    changed = (epochs[0] != epochs[1]).double().mean()

    # Chi-square, 2 degrees of freedom, one in a thousand; keys are fixed.
    assert ((counts - 2516 / 3) ** 2 / (2516 / 3)).sum() < 13.8
    assert abs(changed - 2 / 3) < 4 * (2 / 9 / 1258) ** 0.5


def test_row_20_a_training_batch_is_the_image_of_the_entry_and_its_soft_label(store: Path) -> None:
    data, plain = Reinforced(digits(), store, seed=1), digits()
    plain.setup()
    loader, batches = data.train_dataloader(), seen(data, max_epochs=1)
    for (_, answers, row), (image, target) in zip(loader, batches, strict=True):
        assert plain.train_set is not None
        alone = plain.augment(plain.train_set.fetch(row).image, row, 0)

        assert torch.equal(plain.normalise(alone), image)
        # Mutant: the draws of the image, whatever its entry.
        assert not torch.equal(plain.normalise(plain.augment(plain.train_set.fetch(row).image, row % 1258, 0)), image)
        classes, bits = answers.unbind(1)
        assert torch.equal(soft_targets(classes.long(), bits.view(torch.float32), 10), target)


def test_row_20_neither_workers_nor_resumption_change_the_samples(store: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_epochs": 2, "limit_train_batches": 5}
    writer = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    straight = seen(Reinforced(digits(), store), callbacks=[writer], **options)
    in_workers = seen(Reinforced(digits(num_workers=2), store), **options)
    at_3 = seen(Reinforced(digits(num_workers=1), store), tmp_path / "step=3.ckpt", **options)
    at_7 = seen(Reinforced(digits(), store), tmp_path / "step=7.ckpt", **options)

    assert equal(straight, in_workers)
    assert equal(straight[3:], at_3)
    assert equal(straight[7:], at_7)
    assert not equal(straight[:5], straight[5:])


@pytest.mark.parametrize("swapped", ["other answers", "labels", "answers for labels"])
def test_resuming_inside_an_epoch_with_other_answers_is_refused(swapped: str, store: Path, tmp_path: Path) -> None:
    other = shutil.copytree(store, tmp_path / "other")
    part = AnswerStore.read(other)
    part.write(torch.tensor([8]), torch.zeros(1, KNOWN, dtype=torch.int64), torch.full((1, KNOWN), 0.25))
    part.save(part.rows)
    ours, moved = Reinforced(digits(), store), Reinforced(digits(), shutil.copytree(store, tmp_path / "moved"))
    first, second = {
        "other answers": (ours, Reinforced(digits(), other)),
        "labels": (ours, digits()),
        "answers for labels": (digits(), ours),
    }[swapped]
    writer = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=3)
    seen(first, max_steps=3, callbacks=[writer])
    message = r"^cannot resume inside epoch 0 with answers \w+, it was saved with answers \w+; use that again or a"
    with pytest.raises(ValueError, match=message):
        seen(second, tmp_path / "step=3.ckpt", max_steps=4)
    if first is ours:
        assert len(seen(moved, tmp_path / "step=3.ckpt", max_steps=4)) == 1


def test_another_seed_draws_other_entries_of_the_same_store(store: Path) -> None:
    first, again, other = (
        torch.cat([row for _, _, row in Reinforced(digits(), store, seed).train_dataloader()]) for seed in (1, 1, 2)
    )

    assert torch.equal(first, again)
    assert not torch.equal(first.sort().values, other.sort().values)
    assert Reinforced(digits(seed=9), store).seed == 9


def shards(store: str) -> list[list[float]]:
    """The largest number of each soft label that this rank is given in an epoch, by batch."""
    options: dict[str, Any] = {"devices": 2, "strategy": "ddp", "max_epochs": 1}
    return [target.amax(1).tolist() for _, target in seen(Reinforced(digits(), store, seed=1), **options)]


def test_two_ranks_share_the_entries_of_an_epoch(store: Path, two_ranks: Callable[..., list[Any]]) -> None:
    mine, theirs = two_ranks(shards, str(store))
    alone = [target.amax(1).tolist() for _, target in seen(Reinforced(digits(), store, seed=1), max_epochs=1)]

    assert sorted(chain(*mine, *theirs)) == sorted(chain(*alone))
    assert len(mine) == len(theirs) == 10


def test_a_balanced_epoch_draws_an_entry_for_every_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Digits, "load", few_of_a_class)
    data = digits(sampler="balanced")
    balanced = Reinforced(data, answered(tmp_path / "store", digits(), 50, KNOWN))
    rows = torch.cat([row for _, _, row in balanced.train_dataloader()])
    rare = rows[rows % len(data.train_set) < 3]  # type: ignore[arg-type]  # loaded by then

    assert int(rows.max()) < 50 * len(data.train_set)  # type: ignore[arg-type]
    assert len(rare.unique()) > 6


def few_of_a_class(data: Digits) -> None:
    """Three zeros and thirty ones to train on."""
    from lightning_vision.datamodules.common._sets import ArrayImages
    from lightning_vision.datamodules.digits import read_digits

    images, targets = read_digits()
    kept = torch.cat([(targets == 0).nonzero()[:3, 0], (targets == 1).nonzero()[:30, 0]])
    data.train_set = data.val_set = data.test_set = data.predict_set = ArrayImages(images[kept], targets[kept])


def toy_datasets(folder: Path) -> VisionDataModule:
    from torchvision.transforms.v2 import ColorJitter

    class Jittered(torch.utils.data.Dataset[Any]):
        targets = torch.arange(20) % 3

        def __len__(self) -> int:
            return 20

        def __getitem__(self, position: int) -> tuple[Image.Image, int]:
            grey = Image.fromarray(np.full((9, 9), 10 * position, np.uint8))
            return ColorJitter(brightness=0.5)(grey), position % 3

    return from_datasets(Jittered(), num_classes=3, batch_size=8, augment="light", seed=SEED)


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: ImageFolder(
            digit_folder(folder / "photos"), image_size=8, train_size=10, channels=1, batch_size=16, seed=SEED
        ),
        lambda folder: PlacedDigits(batch_size=64, seed=SEED),
        toy_datasets,
    ],
    ids=["files", "drawn images", "datasets with random transforms"],
)
def test_row_20_any_datamodule_replays_what_the_teacher_saw(
    make: Callable[[Path], VisionDataModule], tmp_path: Path
) -> None:
    plain = make(tmp_path)
    folder = answered(tmp_path / "store", plain, ENTRIES, 2)
    data = Reinforced(plain, folder, seed=1)
    batches = seen(data, max_epochs=1, limit_train_batches=2)
    loader = data.train_dataloader()
    for (_, _, row), (image, _) in zip(loader, batches, strict=False):
        assert plain.train_set is not None
        assert torch.equal(plain.normalise(plain.augment(plain.train_set.fetch(row).image, row, 0)), image)
    assert tuple(batches[0][0].shape[2:]) == tuple(data.image_size)


def test_validation_test_and_prediction_are_those_of_the_data(store: Path) -> None:
    data, plain = Reinforced(digits(), store), digits()
    for split in ("val", "test", "predict"):
        ours, theirs = (next(iter(getattr(it, f"{split}_dataloader")())) for it in (data, plain))
        ours, theirs = (it.on_after_batch_transfer(batch, 0) for it, batch in ((data, ours), (plain, theirs)))
        pairs = (
            zip(ours.values(), theirs.values(), strict=True) if split == "predict" else zip(ours, theirs, strict=True)
        )

        assert all(torch.equal(*pair) for pair in pairs)
    assert data.preprocessing == plain.preprocessing
    assert data.class_counts == plain.class_counts


def test_evaluation_needs_no_store(tmp_path: Path) -> None:
    data = Reinforced(digits(), tmp_path / "nowhere")
    module = ImageClassifier("resnet8_cifar", num_classes=10, in_channels=1)
    trainer = quiet_trainer(limit_test_batches=1)
    trainer.test(module, datamodule=data, verbose=False)

    with pytest.raises(ValueError, match=r"^there is no store in .*nowhere; make one with `lightning_vision reinforce"):
        quiet_trainer(max_epochs=1).fit(module, datamodule=data)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision_rounds_no_class_and_no_probability(precision: str, store: Path) -> None:
    (image, target), *_ = seen(Reinforced(digits(), store), max_epochs=1, limit_train_batches=1, precision=precision)
    (_, expected), *_ = seen(Reinforced(digits(), store), max_epochs=1, limit_train_batches=1)

    assert image.dtype == (torch.bfloat16 if precision == "bf16-true" else torch.float32)
    assert torch.equal(expected, target)


def test_the_loss_is_the_divergence_from_the_teacher_up_to_its_entropy(store: Path) -> None:
    (image, target), *_ = seen(Reinforced(digits(), store), max_epochs=1, limit_train_batches=1)
    module = ImageClassifier("resnet8_cifar", num_classes=10, in_channels=1)
    logits = module(image)
    entropy = torch.special.entr(target).sum(1).mean()
    divergence = F.kl_div(logits.log_softmax(1), target, reduction="batchmean")

    assert torch.allclose(module.criterion(logits, target), divergence + entropy, rtol=1e-5)


def test_a_sheet_shows_the_replayed_images_under_the_teachers_first_class(store: Path, tmp_path: Path) -> None:
    data = Reinforced(digits(), store, seed=1)
    figure = data.plot("train", count=2, epoch=0, path=tmp_path / "sheet.png")
    first = data.train_set.fetch(torch.zeros(1, dtype=torch.int64)).target  # type: ignore[union-attr]
    top, probability = int(first[0, 0, 0]), float(first[0, 1].view(torch.float32)[0])  # type: ignore[index]

    assert figure.axes[0].get_title() == f"{top} {probability:.2f}"


def test_a_reinforced_datamodule_goes_through_pickle_without_the_table(store: Path) -> None:
    data = Reinforced(digits(), store, seed=1)
    first = next(iter(data.train_dataloader()))
    again = pickle.loads(pickle.dumps(data))

    assert (store / "answers.npy").stat().st_size > 80_000
    assert len(pickle.dumps(data.train_set)) < len(pickle.dumps(data.data.train_set)) + 20_000
    assert all(torch.equal(*pair) for pair in zip(first, next(iter(again.train_dataloader())), strict=True))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"split_seed": 1}, "training images"),
        ({"shift": 2}, "augmentation"),
        ({"augment": [RandomErasing(0.999)]}, "augmentation"),
        ({"augment": [RandomErasing(1.0), ShiftCrop(size=6)]}, "image size"),
    ],
    ids=["split", "shift", "rarely another", "size"],
)
def test_a_store_of_other_data_is_refused_before_training(change: dict[str, Any], named: str, store: Path) -> None:
    message = (
        rf"^the store in \S+ was made with another {named} than Digits gives here \(its data had seed 5\); give the "
        r"data as they were then, or make a store of these$"
    )
    with pytest.raises(ValueError, match=message):
        Reinforced(digits(**change), store).setup("fit")


def test_a_store_of_another_kind_of_processor_is_taken_and_one_of_other_draws_is_not(
    store: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(store, tmp_path / "copy")
    index = json.loads((folder / "store.json").read_text())
    means = index["data"]["augmentation"]["means"]
    means[:] = [mean * 1.003 for mean in means]
    (folder / "store.json").write_text(json.dumps(index))
    Reinforced(digits(), folder).setup("fit")
    (folder / "store.json").write_text(json.dumps(index | {"seed": 6}))
    with pytest.raises(ValueError, match="another augmentation than"):
        Reinforced(digits(), folder).setup("fit")


def test_other_classes_labels_or_statistics_are_refused(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = digits()
    data.setup()
    data.train_set.targets[3] += 1  # type: ignore[union-attr, index]  # an ArrayImages
    with pytest.raises(ValueError, match="another training images than"):
        Reinforced(data, store).setup("fit")
    monkeypatch.setattr(Digits, "statistics", ([0.5], [0.5]))
    with pytest.raises(ValueError, match="another normalisation than"):
        Reinforced(digits(), store).setup("fit")
    monkeypatch.setattr(Digits, "class_names", list("1234567890"))
    with pytest.raises(ValueError, match="another classes than"):
        Reinforced(digits(), store).setup("fit")


def emptied(folder: Path) -> None:
    table = np.load(folder / "answers.npy", mmap_mode="r+")
    table["probability"][7] *= 0.5
    table.flush()


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "no json": lambda folder: (folder / "store.json").write_text("{"),
    "other json": lambda folder: (folder / "store.json").write_text("[]"),
    "no table": lambda folder: (folder / "answers.npy").unlink(),
    "cut table": lambda folder: (folder / "answers.npy").write_bytes((folder / "answers.npy").read_bytes()[:5000]),
    "changed table": emptied,
    "pickled table": lambda folder: np.save(folder / "answers.npy", np.array([print], object)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_store_is_refused(damage: str, store: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(store, tmp_path / "copy")
    Reinforced(digits(), folder).setup("fit")
    DAMAGES[damage](folder)
    with pytest.raises(ValueError, match=r"^the store in \S+copy is damaged; make it again with `lightning_vision "):
        Reinforced(digits(), folder).setup("fit")


def test_an_unfinished_store_is_refused(store: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(store, tmp_path / "copy")
    index = json.loads((folder / "store.json").read_text())
    (folder / "store.json").write_text(json.dumps(index | {"done": 100, "checksum": None}))
    with pytest.raises(ValueError, match=r"is unfinished, 100 of 3774 entries; run the `lightning_vision reinforce`"):
        Reinforced(digits(), folder).setup("fit")


def test_what_cannot_be_reinforced_is_refused(store: Path) -> None:
    with pytest.raises(ValueError, match=r"^Reinforced: data is Reinforced; give a datamodule of this package"):
        Reinforced(Reinforced(digits(), store), store)
    several = digits()
    several.multilabel = True
    with pytest.raises(ValueError, match=r"^Reinforced: Digits has several labels an image; soft labels of a store"):
        Reinforced(several, store).setup("fit")
    with pytest.raises(ValueError, match=r"^Reinforced replays the augmentation of its store; change that of `data`"):
        Reinforced(digits(), store).augmentation = None


def test_an_image_that_the_teachers_could_not_see_is_named(store: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(store, tmp_path / "copy")
    part = AnswerStore.read(folder)
    part.write(torch.tensor([8]), torch.zeros(1, KNOWN, dtype=torch.int64), torch.zeros(1, KNOWN))
    part.save(part.rows)
    data = Reinforced(digits(), folder)
    data.setup("fit")
    with pytest.raises(ValueError, match=r"^training image 8 could not be decoded when the store in \S+copy was made"):
        for epoch in range(9):
            data.train_set.fetch(torch.tensor([7, 8]), epoch)  # type: ignore[union-attr]  # loaded by then


def test_files_that_are_left_out_have_no_part_in_a_store(tmp_path: Path) -> None:
    data = ImageFolder(
        digit_folder(tmp_path / "photos"), 8, train_size=10, channels=1, batch_size=16, seed=SEED, on_bad_image="skip"
    )
    data.setup()
    Path(data.train_set.paths[0]).write_bytes(b"no image")  # type: ignore[union-attr]  # FileImages
    folder = answered(tmp_path / "store", data, ENTRIES, 2)
    with pytest.warns(UserWarning, match="left out 1 of"):
        batches = seen(Reinforced(data, folder), max_epochs=1)

    assert sum(len(image) for image, _ in batches) == len(data.train_set) - 1  # type: ignore[arg-type]

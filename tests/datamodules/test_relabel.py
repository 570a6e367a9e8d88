"""Labels of crops out of label maps: pooling, exact and by hand, and the datamodule around it.

The stores are written here, from maps that are known; what real teachers say is proved in
`tests/lightning_vision/commands/test_relabel.py`.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor
from torchvision.ops import roi_align

from lightning_vision import ImageClassifier
from lightning_vision.callbacks import CutMix
from lightning_vision.datamodules import (
    Digits,
    Reinforced,
    ReLabel,
    cell_shares,
    label_pooling,
    top_label_pooling,
    top_scores,
)
from lightning_vision.datamodules.augmentation import ResizedCrop, ShiftCrop
from lightning_vision.datamodules.common._answers import AnswerStore
from lightning_vision.datamodules.common._sets import ArrayImages
from lightning_vision.datamodules.common.datamodule import VisionDataModule
from support.stores import answered, mapped
from support.trainers import quiet_trainer

CELLS, KNOWN, SEED = (4, 4), 3, 5
SIZE = (32, 48)


def digits(**options: Any) -> Digits:
    return Digits(**{"batch_size": 64, "augment": ResizedCrop(scale=(0.2, 1.0)), "seed": SEED} | options)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mapped(tmp_path_factory.mktemp("stores") / "digits", digits(), CELLS, KNOWN)


def random_maps(count: int = 40, classes: int = 12, cells: tuple[int, int] = (5, 7)) -> Tensor:
    return 4 * torch.randn(count, classes, *cells, generator=torch.Generator().manual_seed(0))


def random_boxes(count: int = 40) -> Tensor:
    """Boxes in an image of `SIZE`, a third mirrored, some over the border."""
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(1)).sort(1).values
    corners[:, 1] += 0.1
    boxes = (corners.mul_(1.2).sub_(0.1) * torch.tensor([SIZE[1], SIZE[0]])).flatten(1)
    boxes[::3] = boxes[::3][:, [2, 1, 0, 3]]
    return boxes


@pytest.mark.parametrize("top_k", [12, 4])
def test_row_26_the_whole_image_has_the_softmax_of_the_maps_mean(top_k: int) -> None:
    # Cells agree somewhat, as those of an image do.
    maps = random_maps() + 4 * torch.randn(40, 12, 1, 1, generator=torch.Generator().manual_seed(3))
    whole = torch.tensor([[0.0, 0.0, SIZE[1], SIZE[0]]]).expand(40, 4)
    expected = maps.mean((2, 3)).softmax(1)
    pooled = top_label_pooling(*top_scores(maps, top_k), whole, SIZE, 12)

    assert torch.allclose(label_pooling(maps, whole, SIZE), expected, atol=1e-7)
    if top_k == 12:
        assert torch.allclose(pooled, expected, atol=1e-6)
    else:
        assert (pooled - expected).abs().max() > 1e-3
        assert (pooled.argmax(1) == expected.argmax(1)).double().mean() > 0.9


def test_row_26_a_crop_of_one_half_has_the_label_of_its_object() -> None:
    maps = torch.zeros(1, 5, 6, 6)
    maps[:, 3, :, :3], maps[:, 1, :, 3:] = 8.0, 8.0
    maps = maps.expand(4, 5, 6, 6)
    boxes = torch.tensor([[0.0, 4, 20, 30], [25, 4, 48, 30], [20, 4, 0, 30], [12, 0, 36, 32]])
    for pooled in (label_pooling(maps, boxes, SIZE), top_label_pooling(*top_scores(maps, 2), boxes, SIZE, 5)):
        assert pooled.argmax(1).tolist()[:3] == [3, 1, 3]
        assert pooled[:3].amax(1).min() > 0.99
        # Half of each: both, alike.
        assert torch.allclose(pooled[3, [1, 3]], torch.tensor([0.4742, 0.4742]), atol=5e-2)
        assert abs(float(pooled[3, 1] - pooled[3, 3])) < 1e-6


def test_row_26_a_mirrored_image_has_its_mirrored_box() -> None:
    maps, boxes = random_maps(), random_boxes()
    across = boxes * torch.tensor([-1, 1, -1, 1]) + torch.tensor([SIZE[1], 0, SIZE[1], 0])
    pooled = label_pooling(maps, boxes, SIZE)

    assert torch.allclose(label_pooling(maps.flip(3), across, SIZE), pooled, atol=1e-6)
    # Read from right to left it is the same box.
    assert torch.equal(label_pooling(maps, boxes[:, [2, 1, 0, 3]], SIZE), pooled)
    # Mutant: the map is mirrored and the box is not.
    assert (label_pooling(maps.flip(3), boxes, SIZE) - pooled).abs().max() > 0.1


def test_row_26_a_constant_map_has_one_label_whatever_the_crop() -> None:
    cell = 3 * torch.randn(1, 12, 1, 1, generator=torch.Generator().manual_seed(2))
    maps = cell.expand(40, 12, 5, 7)
    for pooled in (
        label_pooling(maps, random_boxes(), SIZE),
        top_label_pooling(*top_scores(maps, 12), random_boxes(), SIZE, 12),
    ):
        assert torch.allclose(pooled, cell.flatten(1).softmax(1).expand(40, 12), atol=1e-6)


def test_pooling_is_torchvisions_on_each_map_by_itself() -> None:
    maps, boxes = random_maps(), random_boxes()
    shares = cell_shares(boxes, SIZE, (5, 7))
    for number, (left, top, right, bottom) in enumerate(boxes.tolist()):
        across = sorted(min(max(x / SIZE[1] * 7, 0), 7) for x in (left, right))
        down = sorted(min(max(y / SIZE[0] * 5, 0), 5) for y in (top, bottom))
        box = torch.tensor([[0, across[0], down[0], across[1], down[1]]])
        alone = roi_align(maps[number : number + 1], box, 1, aligned=True)[0, :, 0, 0]

        assert torch.allclose(label_pooling(maps, boxes, SIZE)[number], alone.softmax(0), atol=1e-5)
        assert torch.allclose((maps[number] * shares[number]).sum((1, 2)), alone, atol=1e-5)
    assert torch.allclose(shares.sum((1, 2)), torch.ones(40), atol=1e-6)
    pooled = top_label_pooling(*top_scores(maps, 12), boxes, SIZE, 12)
    assert torch.allclose(pooled, label_pooling(maps, boxes, SIZE), atol=1e-6)


def test_nothing_of_an_image_has_no_class() -> None:
    beyond = torch.tensor([[-9.0, -9.0, -2.0, -1.0]])

    assert torch.equal(label_pooling(random_maps(1), beyond, SIZE), torch.full((1, 12), 1 / 12))
    assert torch.equal(top_label_pooling(*top_scores(random_maps(1), 3), beyond, SIZE, 12), torch.full((1, 12), 1 / 12))


def test_what_is_left_out_counts_as_its_mean_whatever_the_teacher_adds_to_all() -> None:
    maps = random_maps()
    classes, scores = top_scores(maps, 3)
    again, shifted = top_scores(maps + 100, 3)
    others = maps.permute(0, 2, 3, 1).sort(3).values[..., :-3]

    assert torch.equal(classes, again)
    assert torch.allclose(scores, shifted, atol=1e-4)
    assert torch.allclose(scores, maps.permute(0, 2, 3, 1).topk(3).values - others.mean(3, keepdim=True), atol=1e-5)


class Seen(Callback):
    """Keeps the training batches after all that changes them."""

    def __init__(self) -> None:
        self.batches: list[tuple[Tensor, Tensor]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append((batch[0], batch[1]))


def seen(data: VisionDataModule, ckpt_path: Path | None = None, **options: Any) -> list[tuple[Tensor, Tensor]]:
    module = ImageClassifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), 10, 1)
    watch = Seen()
    callbacks = [watch, *options.pop("callbacks", [])]
    options = {"enable_checkpointing": len(callbacks) > 1, "limit_val_batches": 0, "max_epochs": 1, **options}
    trainer = quiet_trainer(callbacks=callbacks, **options)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return watch.batches


def equal(first: list[tuple[Tensor, Tensor]], second: list[tuple[Tensor, Tensor]]) -> bool:
    pairs = list(zip(first, second, strict=True))
    return bool(pairs) and all(torch.equal(*both) for pair in pairs for both in zip(*pair, strict=True))


def by_hand(data: Digits, store: Path, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
    """Images and labels of samples, one after the other."""
    data.setup()
    assert data.train_set is not None
    assert data.augmentation is not None
    table, fetched = np.load(store / "answers.npy"), data.train_set.fetch(index)
    uniform = data._uniforms(index, data.augmentation.draws, data.seed, epoch, 0)
    boxes = data.augmentation.source_boxes(uniform, (8, 8))
    labels = []
    for number, box in zip(index.tolist(), boxes, strict=True):
        record = table[number]
        maps = torch.zeros(10, *CELLS)
        for row, column, rank in np.ndindex(record.shape):
            cell = record[row, column, rank]
            maps[int(cell["class"]), row, column] = float(cell["score"])
        labels.append(label_pooling(maps[None], box[None], (8, 8))[0])
    return data.normalise(data.augment(fetched.image, index, epoch)), torch.stack(labels)


@pytest.mark.parametrize(
    "augment", [ResizedCrop(scale=(0.2, 1.0)), [ShiftCrop(2, flip=True), "standard"]], ids=["crop", "chain"]
)
def test_row_26_a_batch_is_the_augmented_image_and_the_label_of_its_own_box(augment: Any, store: Path) -> None:
    data = ReLabel(digits(augment=augment), store)
    batches = seen(data, limit_train_batches=2, max_epochs=2)
    loader = data.train_dataloader()
    labels: list[Tensor] = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        for (_, _, index), (image, target) in zip(loader, batches[2 * epoch : 2 * epoch + 2], strict=False):
            expected = by_hand(digits(augment=augment), store, index, epoch)
            # Mutant: the box of another epoch.
            other = by_hand(digits(augment=augment), store, index, epoch + 1)[1]
            labels.append(target)

            assert torch.equal(image, expected[0])
            assert torch.allclose(target, expected[1], atol=1e-6)
            assert (target - other).abs().max() > 0.1
    assert len(labels) == 4


def test_without_augmentation_the_label_is_that_of_the_whole_image(store: Path) -> None:
    data = ReLabel(Digits(batch_size=64), store)
    (_, target), *_ = seen(data, limit_train_batches=1)
    _, maps, _ = next(iter(data.train_dataloader()))
    whole = torch.tensor([[0.0, 0, 8, 8]]).expand(64, 4)
    scores = maps[:, 1].contiguous().view(torch.float32)

    assert torch.equal(target, top_label_pooling(maps[:, 0].long(), scores, whole, (8, 8), 10))


def test_neither_workers_nor_resumption_change_the_samples(store: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_epochs": 2, "limit_train_batches": 3}
    writer = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    straight = seen(ReLabel(digits(), store), callbacks=[writer], **options)
    in_workers = seen(ReLabel(digits(num_workers=1), store), **options)
    resumed = seen(ReLabel(digits(), store), tmp_path / "step=4.ckpt", **options)

    assert equal(straight, in_workers)
    assert equal(straight[4:], resumed)
    with pytest.raises(ValueError, match=r"^cannot resume inside epoch 1 with answers none, it was saved with answers"):
        seen(digits(), tmp_path / "step=4.ckpt", **options)


def shards(store: str) -> list[list[float]]:
    """The largest number of each soft label that this rank is given in an epoch, by batch."""
    options: dict[str, Any] = {"devices": 2, "strategy": "ddp"}
    return [target.amax(1).tolist() for _, target in seen(ReLabel(digits(), store), **options)]


def test_two_ranks_share_the_labels_of_an_epoch(store: Path, two_ranks: Callable[..., list[Any]]) -> None:
    mine, theirs = two_ranks(shards, str(store))
    alone = [target.amax(1) for _, target in seen(ReLabel(digits(), store))]
    both = torch.tensor([value for rank in (mine, theirs) for batch in rank for value in batch])

    assert torch.allclose(both.sort().values, torch.cat(alone).sort().values, atol=1e-6)


def test_copies_of_a_balanced_epoch_have_the_map_of_their_image(store: Path) -> None:
    data = ReLabel(digits(sampler="balanced"), store)
    table = np.load(store / "answers.npy")
    for _, maps, index in data.train_dataloader():
        assert np.array_equal(table[index.numpy() % 1258]["class"], maps[:, 0].numpy())


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision_rounds_no_label(precision: str, store: Path) -> None:
    (_, target), *_ = seen(ReLabel(digits(), store), limit_train_batches=1, precision=precision)
    (_, expected), *_ = seen(ReLabel(digits(), store), limit_train_batches=1)

    assert torch.equal(expected, target)


@pytest.mark.parametrize("targets", ["loss", "soft"])
def test_row_26_cutmix_mixes_the_labels_of_crops(targets: Any, store: Path) -> None:
    cutmix = CutMix(targets=targets, seed=3)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    start = {name: value.clone() for name, value in network.state_dict().items()}
    module = ImageClassifier(network, 10, 1, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.5))
    quiet_trainer(max_epochs=1, limit_train_batches=4, limit_val_batches=0, callbacks=[cutmix]).fit(
        module, datamodule=ReLabel(digits(), store)
    )
    trained = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(start)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    again = CutMix(seed=3)
    for number, (image, target) in enumerate(seen(ReLabel(digits(), store), limit_train_batches=4)):
        random = np.random.default_rng((3, 0, number))
        random.random()
        mix = again.mix(image, again.draw(image.shape, random))
        label = mix.lam * target + (1 - mix.lam) * target[mix.partner]
        optimizer.zero_grad()
        F.cross_entropy(network(mix.images), label).backward()
        optimizer.step()
    for name, value in network.state_dict().items():
        assert torch.allclose(value, trained[name], atol=1e-5)
        assert (value - start[name]).abs().max() > 1e-2


def test_what_turns_images_is_refused_before_training(store: Path) -> None:
    message = (
        r"^ReLabel pools the box that a crop shows, but RandAugment moves pixels and tells no box of what an image "
    )
    with pytest.raises(ValueError, match=message):
        ReLabel(digits(augment="strong"), store).setup("fit")


def test_another_augmentation_takes_the_same_store_and_other_images_do_not(store: Path) -> None:
    ReLabel(digits(augment="light", shift=1, seed=9), store).setup("fit")
    message = r"^the store in \S+ was made with another training images than Digits gives here; give the data as they "
    with pytest.raises(ValueError, match=message):
        ReLabel(digits(split_seed=1), store).setup("fit")


def test_a_store_of_the_other_command_is_refused(store: Path, tmp_path: Path) -> None:
    other = answered(tmp_path / "other", Digits(shift=1), 1, 2)
    with pytest.raises(
        ValueError, match=r"^the store in \S+other was made by `lightning_vision reinforce`, not by `lig"
    ):
        ReLabel(digits(), other).setup("fit")
    with pytest.raises(
        ValueError, match=r"was made by `lightning_vision relabel`, not by `lightning_vision reinforce`"
    ):
        Reinforced(digits(), store).setup("fit")
    with pytest.raises(ValueError, match=r"^ReLabel: data is Reinforced; give a datamodule of this package, not one"):
        ReLabel(Reinforced(Digits(), other), store)


@pytest.mark.parametrize("damage", ["cut table", "changed table", "no store"])
def test_a_damaged_store_is_refused(damage: str, store: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(store, tmp_path / "copy")
    table = folder / "answers.npy"
    content = table.read_bytes()
    if damage == "no store":
        shutil.rmtree(folder)
    else:
        table.write_bytes(content[:5000] if damage == "cut table" else content[:-1] + bytes([content[-1] ^ 1]))
    start = "there is no" if damage == "no store" else "the"
    with pytest.raises(ValueError, match=rf"^{start} store in \S+copy.*`lightning_vision relabel "):
        ReLabel(digits(), folder).setup("fit")


def test_an_image_that_the_teacher_could_not_see_is_named(store: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(store, tmp_path / "copy")
    part = AnswerStore.read(folder, "relabel")
    part.leave_out(torch.tensor([8]))
    part.save(part.rows)
    data = ReLabel(digits(), folder)
    data.setup("fit")
    assert data.train_set is not None
    data.train_set.fetch(torch.tensor([7, 9]))
    with pytest.raises(ValueError, match=r"^training image 8 could not be decoded when the store in \S+copy was made"):
        data.train_set.fetch(torch.tensor([7, 8]))


def test_a_sheet_shows_the_class_of_the_whole_image(store: Path) -> None:
    data = ReLabel(digits(), store)
    figure = data.plot("train", count=2, epoch=0)
    whole = torch.tensor([[0.0, 0, 8, 8]])
    maps = data.train_set.fetch(torch.zeros(1, dtype=torch.int64)).target  # type: ignore[union-attr]
    assert isinstance(maps, Tensor)
    scores = maps[:, 1].contiguous().view(torch.float32)
    pooled = top_label_pooling(maps[:, 0].long(), scores, whole, (8, 8), 10)[0]

    assert figure.axes[0].get_title() == f"{int(pooled.argmax())} {float(pooled.max()):.2f}"


def test_evaluation_needs_no_store_and_is_that_of_the_data(tmp_path: Path) -> None:
    data = ReLabel(digits(), tmp_path / "nowhere")
    ours, theirs = next(iter(data.val_dataloader())), next(iter(digits().val_dataloader()))  # type: ignore[arg-type]

    assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))
    assert isinstance(data.val_set, ArrayImages)

"""Scenes of digits: functions of (seed, epoch, sample), tight boxes, bounded overlap, nothing shared by two splits.

That the shipped run learns from them is proved in `tests/cli_configs/test_digits_detection.py`.
"""

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_sample_images

from lightning_vision.datamodules.detection._scenes import SceneImages, _extent, _opacity
from lightning_vision.datamodules.detection.annotations import Annotations
from lightning_vision.datamodules.digit_scenes import DigitScenes
from lightning_vision.datamodules.digits import Digits
from support.trainers import quiet_trainer

SPLITS = ("train", "val", "test")


def images_of(split: str = "train", **options: Any) -> SceneImages:
    data = DigitScenes(**options)
    data.setup()
    images = getattr(data, f"{split}_set")
    assert isinstance(images, SceneImages)
    return images


def drawn(images: SceneImages, index: torch.Tensor, epoch: int = 0) -> tuple[torch.Tensor, Annotations]:
    fetched = images.fetch(index, epoch)
    assert isinstance(fetched.target, Annotations)
    return fetched.image, fetched.target


def objects_of(count: int = 150, **options: Any) -> Annotations:
    return images_of(**options).annotations(torch.arange(count))


def same(one: Annotations, other: Annotations) -> bool:
    return all(vars(one)[name].equal(vars(other)[name]) for name in ("boxes", "labels", "sample", "area"))


def shares(boxes: torch.Tensor) -> list[float]:
    """How much of the smaller of each two boxes lies in the other, pixel by pixel."""
    masks = torch.zeros(len(boxes), 128, 128, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes.long().tolist(), strict=True):
        mask[top:bottom, left:right] = True
    pairs = torch.combinations(torch.arange(len(boxes)))
    both = (masks[pairs[:, 0]] & masks[pairs[:, 1]]).sum((1, 2))
    return (both / masks.sum((1, 2))[pairs].amin(1)).tolist()


def test_shapes_labels_and_sizes_agree() -> None:
    data = DigitScenes(train_images=40, batch_size=16)
    image, found, index = next(iter(data.train_dataloader()))

    assert ((16, 3, 128, 128), torch.uint8) == (tuple(image.shape), image.dtype)
    assert (data.in_channels, *data.image_size) == (3, 128, 128)
    assert (10, list(range(1, 11))) == (data.num_classes, data.category_ids)
    assert len(found) == 16
    assert torch.equal(index, found.image_id)
    assert found.masks is None
    assert torch.equal(torch.tensor([[128, 128]] * 16), found.size)
    assert [len(it) for it in (data.train_set, data.val_set, data.test_set) if it is not None] == [40, 256, 512]
    assert data.predict_set is data.test_set


def test_a_scene_is_a_function_of_seed_epoch_and_sample() -> None:
    images, index = images_of(), torch.tensor([5, 2900, 31])
    first, found = drawn(images, index, 2)
    again, found_again = drawn(images_of(), index, 2)
    among_others, found_among = drawn(images, torch.arange(20, 40), 2)

    assert torch.equal(first, again)
    assert same(found, found_again)
    assert torch.equal(first[2], among_others[11])
    assert torch.equal(found.targets()[2]["boxes"], found_among.targets()[11]["boxes"])
    for other, _ in (drawn(images, index, 3), drawn(images_of(seed=1), index, 2)):
        assert not (first == other).flatten(1).all(1).any()


def test_loaders_tell_the_epoch_to_the_scenes() -> None:
    data = DigitScenes(train_images=20, batch_size=20)
    loader = data.train_dataloader()
    for epoch in range(2):
        image, _, index = next(iter(loader))
        assert torch.equal(drawn(images_of(train_images=20), index, epoch)[0], image)
        loader.sampler.set_epoch(1)


def test_objects_are_known_without_drawing_the_scene() -> None:
    images, index = images_of(), torch.arange(7, 27)

    assert same(drawn(images, index, 4)[1], images.annotations(index, 4))


def test_validation_and_test_scenes_are_fixed() -> None:
    for split in SPLITS[1:]:
        images, index = images_of(split), torch.arange(5)

        assert torch.equal(drawn(images, index, 0)[0], drawn(images, index, 7)[0])
    # Nor does the number of a scene alone fix its draws.
    assert images_of("val")._numbers(index, 0) != images_of("test")._numbers(index, 0)


def test_digits_are_split_as_in_digits_and_shared_by_no_two_splits() -> None:
    plain = Digits(split_seed=3)
    plain.setup()
    sets = [images_of(split, split_seed=3) for split in SPLITS]
    hashes = [{hashlib.sha256(digit.tobytes()).hexdigest() for digit in it.digits} for it in sets]

    assert len(set.union(*hashes)) == sum(map(len, hashes)) == 1797
    for split, images in zip(SPLITS, sets, strict=True):
        assert torch.equal(getattr(plain, f"{split}_set").images[:, 0], torch.from_numpy(images.digits))
        assert torch.equal(getattr(plain, f"{split}_set").targets + 1, torch.tensor(images.labels))


def test_side_by_side_the_backgrounds_of_the_splits_are_the_photographs() -> None:
    strips = [images_of(split).photos for split in SPLITS]

    # Every pixel once: no two splits share one.
    for number, photo in enumerate(load_sample_images().images):
        assert torch.equal(torch.from_numpy(photo.copy()).permute(2, 0, 1), torch.cat([it[number] for it in strips], 2))
    assert [photos[0].shape[2] for photos in strips] == [384, 128, 128]


def test_a_background_is_a_window_of_its_strip() -> None:
    images = images_of("val")
    numbers = [0.0, 127.9 / 128, 0.5, 0.0, 0.9]
    scene = images._painted(numbers + [0.0] * 400, [])

    # The largest window, 128 pixels, is not resized; half way down are 150 of the 300 places.
    assert torch.equal(images.photos[0][:, 150:278, :128], scene)
    assert torch.equal(scene.flip(2), images._painted([*numbers[:4], 0.4], []))


def test_a_box_is_the_extent_of_the_pixels_that_ink_covers_by_more_than_half() -> None:
    # One each, because the faint edge of another might lie over it.
    images, index = images_of(masks=True, objects=(1, 1)), torch.arange(120)
    scenes, found = drawn(images, index, 1)
    checked = 0
    for numbers, image, target in zip(images._numbers(index, 1), scenes, found, strict=True):
        (box,), mask = target["boxes"].long().tolist(), target["masks"][0] > 0
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()

        assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == box
        assert target["area"] == mask.sum()
        # What is wholly covered has the ink's colour, from which every pixel's share can be read off the picture.
        bare = images._painted(numbers, [])
        changed = (image.float() - bare.float()).abs().sum(0)
        colour = image[:, mask][:, changed[mask].argmax()].float()
        distance = (colour[:, None, None] - bare.float()).abs().sum(0)
        share = changed / distance
        # Rounded to bytes, a share is the better known the more the two colours differ.
        clear = ((share - 0.5).abs() > 0.05) & (distance > 60)
        assert torch.equal((share > 0.5)[clear], mask[clear])
        checked += int((clear & mask).sum())

    assert checked > 40_000


def test_boxes_lie_within_the_scene_and_count_as_asked() -> None:
    found = objects_of(600)
    counts = found.sample.bincount(minlength=600)
    width, height = found.boxes[:, 2] - found.boxes[:, 0], found.boxes[:, 3] - found.boxes[:, 1]

    assert {1, 2, 3, 4, 5, 6} == set(counts.tolist())
    # Drawn uniformly, mean 3.5; where all tries fail there is one fewer.
    assert 3.2 < counts.double().mean() < 3.6
    assert found.boxes.min() >= 0
    assert found.boxes.max() <= 128
    assert width.min() >= 4
    assert 40 < height.max() <= 56
    # Half of the squares have sides below the geometric mean of 14 and 56, and digits are nearly as tall as theirs.
    assert 0.45 < (height < 28).double().mean() < 0.58
    assert found.labels.bincount()[1:].min() > 0.07 * len(found.labels)


def test_objects_are_as_many_and_as_large_as_asked_but_never_none() -> None:
    found = objects_of(80, objects=(2, 3), sizes=(0.25, 0.25), image_size=64)
    crowded = objects_of(40, objects=(4, 4), sizes=(0.9, 1.0)).sample.bincount(minlength=40)

    assert set(found.sample.bincount(minlength=80).tolist()) == {2, 3}
    assert (found.boxes[:, 3] - found.boxes[:, 1]).max() <= 16
    assert found.boxes.max() <= 64
    assert set(crowded.tolist()) == {1}


def test_boxes_overlap_no_more_than_allowed() -> None:
    crowded = {"objects": (6, 6), "sizes": (0.2, 0.4)}
    most = {
        overlap: max(max(shares(it["boxes"]), default=0.0) for it in objects_of(60, overlap=overlap, **crowded))
        for overlap in (0.0, 0.3, 0.9)
    }

    assert most[0.0] == 0
    assert 0.2 < most[0.3] <= 0.3 < most[0.9] <= 0.9


def test_a_later_digit_covers_an_earlier_one_and_both_keep_their_boxes() -> None:
    images = images_of(overlap=0.9, objects=(6, 6), masks=True)
    _, found = drawn(images, torch.arange(30))

    assert found.masks is not None
    assert torch.equal(found.area, found.masks.sum((1, 2)).float())
    twice = [int((it["masks"].sum(0) > 1).sum()) for it in found]
    assert max(twice) > 50


def test_every_digit_has_ink_at_the_smallest_and_largest_size() -> None:
    digits = images_of("val").digits
    for square in (8, 14, 56):
        heights = [bottom - top for _, top, _, bottom in (_extent(_opacity(digit, square)) for digit in digits)]

        assert min(heights) > 0.6 * square


def test_spawned_workers_draw_the_same_scenes() -> None:
    sizes = {"val_images": 9, "batch_size": 4, "masks": True}
    here = list(DigitScenes(**sizes).val_dataloader())
    there = list(DigitScenes(**sizes, num_workers=1, multiprocessing_context="spawn").val_dataloader())

    for (image, found, index), (other_image, other_found, other_index) in zip(here, there, strict=True):
        assert torch.equal(image, other_image)
        assert torch.equal(index, other_index)
        assert same(found, other_found)
        assert torch.equal(found.masks, other_found.masks)


class Watcher(LightningModule):
    """Keeps the image and the boxes of every training batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[torch.Tensor, ...]] = []

    def training_step(self, batch: Any) -> torch.Tensor:
        images, targets = batch
        self.seen.append((images, *(target["boxes"] for target in targets)))
        return self.weight * images.mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def seen_in_a_fit(data: DigitScenes, **options: Any) -> list[tuple[torch.Tensor, ...]]:
    """Batches of two epochs; `ckpt_path` goes on from a file."""
    ckpt_path, module = options.pop("ckpt_path", None), Watcher()
    trainer = quiet_trainer(max_epochs=2, enable_checkpointing="callbacks" in options, **options)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return module.seen


def on_a_rank(folder: str) -> list[list[Any]]:
    """Sums of the pixels and boxes of the scenes that one of two ranks sees, straight and from the third step on."""
    shared: dict[str, Any] = {"strategy": "ddp", "devices": 2, "limit_val_batches": 0}
    writer = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=3)
    data = [DigitScenes(train_images=20, batch_size=2) for _ in range(2)]
    sides = [
        seen_in_a_fit(data[0], **shared, callbacks=[writer]),
        seen_in_a_fit(data[1], **shared, ckpt_path=f"{folder}/step=3.ckpt"),
    ]
    return [[[images.sum((1, 2, 3)).tolist(), [it.tolist() for it in boxes]] for images, *boxes in it] for it in sides]


def equal(one: list[tuple[torch.Tensor, ...]], other: list[tuple[torch.Tensor, ...]]) -> bool:
    return len(one) == len(other) > 0 and all(
        len(a) == len(b) and all(map(torch.equal, a, b)) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_run_resumed_in_mid_epoch_by_two_workers_is_given_the_same_scenes(tmp_path: Path) -> None:
    options: dict[str, Any] = {"train_images": 20, "batch_size": 4, "augment": "standard"}
    writer = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=7)
    straight = seen_in_a_fit(DigitScenes(**options), limit_val_batches=0, callbacks=[writer])
    resumed = seen_in_a_fit(
        DigitScenes(**options, num_workers=2), limit_val_batches=0, ckpt_path=tmp_path / "step=7.ckpt"
    )

    assert len(straight) == 10
    assert equal(straight[7:], resumed)


def test_two_ranks_see_each_scene_of_an_epoch_once_and_go_on_where_they_were(two_ranks: Any, tmp_path: Path) -> None:
    mine, theirs = two_ranks(on_a_rank, str(tmp_path))
    images = images_of(train_images=20)
    for straight, resumed in (mine, theirs):
        assert len(straight) == 10
        assert straight[3:] == resumed
    for epoch in range(2):
        seen = [boxes for side in (mine, theirs) for batch in side[0][5 * epoch :][:5] for boxes in batch[1]]
        known = [it["boxes"].tolist() for it in images.annotations(torch.arange(20), epoch)]

        assert sorted(known) == sorted(seen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_images": 0}, "train_images is 0; give at least 1 scene"),
        ({"objects": (0, 3)}, "objects is 0 to 3; give the fewest digits, at least 1, then the most"),
        ({"objects": (4, 3)}, "objects is 4 to 3; give the fewest digits, at least 1, then the most"),
        (
            {"sizes": (0.01, 0.5)},
            "sizes 0.01 to 0.5 of image_size 128 are 1 to 64 pixels; give a smallest of at least 8 pixels, or larger "
            "scenes",
        ),
        *[
            (
                {"sizes": sizes},
                f"sizes is {sizes[0]} to {sizes[1]}; give fractions of image_size, at most 1, the smaller first",
            )
            for sizes in ((0.5, 0.2), (0.1, 2), (float("nan"), 0.5))
        ],
        ({"image_size": 0}, "image_size is 0; give at least 8 pixels"),
        ({"overlap": 1.0}, "overlap is 1.0; give a fraction of at least 0 and below 1"),
    ],
)
def test_what_cannot_be_drawn_is_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        DigitScenes(**options)

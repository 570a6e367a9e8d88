"""Placed digits: functions of (seed, epoch, sample), never a shared digit or background, boxes that hold the ink."""

import hashlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lightning_vision.datamodules.digits import Digits
from lightning_vision.datamodules.placed_digits import BLOCK, SIZES, PlacedDigits, PlacedImages, place

SPLITS = ("train", "val", "test")
CANVASES = pytest.mark.parametrize("canvas", ["plain", "photo"])


def images_of(data: PlacedDigits, split: str) -> PlacedImages:
    data.setup()
    images = getattr(data, f"{split}_set")
    assert isinstance(images, PlacedImages)
    return images


def digests(images: torch.Tensor) -> set[str]:
    return {hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest() for image in images}


@pytest.mark.parametrize(("canvas", "shape"), [("plain", (1, 24, 24)), ("photo", (3, 32, 32))])
def test_shapes_and_sizes_agree(canvas: Any, shape: tuple[int, ...]) -> None:
    data = PlacedDigits(canvas)
    image, target, _ = next(iter(data.train_dataloader()))

    assert (64, *shape) == tuple(image.shape)
    assert torch.uint8 == image.dtype
    assert shape == (data.in_channels, *data.image_size)
    assert tuple(target.shape) == (64,)


@CANVASES
def test_a_training_image_is_a_function_of_seed_epoch_and_sample(canvas: Any) -> None:
    images, index = images_of(PlacedDigits(canvas), "train"), torch.tensor([5, 900, 31])
    first = images.fetch(index, epoch=2).image

    assert torch.equal(first, images_of(PlacedDigits(canvas), "train").fetch(index, epoch=2).image)
    assert torch.equal(first[1:2], images.fetch(torch.tensor([900]), epoch=2).image)
    assert torch.equal(first[1], images.fetch(torch.arange(870, 940), epoch=2).image[30])
    assert not (first == images.fetch(index, epoch=3).image).flatten(1).all(1).any()
    assert not (first == images_of(PlacedDigits(canvas, seed=1), "train").fetch(index, 2).image).flatten(1).all(1).any()


@CANVASES
def test_validation_and_test_images_are_fixed(canvas: Any) -> None:
    data, index = PlacedDigits(canvas), torch.arange(20)
    for split in ("val", "test"):
        images = images_of(data, split)

        assert torch.equal(images.fetch(index, epoch=0).image, images.fetch(index, epoch=7).image)
        assert torch.equal(data.boxes(split, index), data.boxes(split, index, epoch=7))  # type: ignore[arg-type]


def test_loaders_tell_the_epoch_to_the_images() -> None:
    data = PlacedDigits(batch_size=1258)
    loader = data.train_dataloader()
    for epoch in range(2):
        image, _, index = next(iter(loader))

        assert torch.equal(images_of(data, "train").fetch(index, epoch).image, image)
        loader.sampler.set_epoch(1)


def test_digits_are_split_as_in_digits_and_shared_by_no_two_splits() -> None:
    plain, placed = Digits(split_seed=3), PlacedDigits(split_seed=3)
    plain.setup()
    hashes = [digests(images_of(placed, split).digits) for split in SPLITS]

    assert 1797 == len(set.union(*hashes)) == sum(map(len, hashes))
    for split in SPLITS:
        assert torch.equal(getattr(plain, f"{split}_set").images, images_of(placed, split).digits)


def test_no_piece_of_photograph_is_shared_by_two_splits() -> None:
    data = PlacedDigits("photo")
    tiles = []
    for split in SPLITS:
        blocks = images_of(data, split).blocks
        assert blocks is not None
        # Every crop of 32 pixels holds whole tiles of 8, so disjoint tiles mean disjoint crops.
        cut = blocks.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 8, 8)
        tiles.append(digests(cut[cut.flatten(1).float().std(1) > 8]))
    train, val, test = tiles

    assert min(map(len, tiles)) > 500
    assert set() == train & val == train & test == val & test


def test_blocks_of_the_photographs_do_not_overlap() -> None:
    blocks = [images_of(PlacedDigits("photo"), split).blocks for split in SPLITS]

    assert [len(part) for part in blocks if part is not None] == [72, 24, 24]
    assert (427 // BLOCK) * (640 // BLOCK) * 2 == 120


@CANVASES
def test_all_the_ink_lies_in_the_box(canvas: Any) -> None:
    data, index = PlacedDigits(canvas), torch.arange(600)
    images, boxes = images_of(data, "train"), data.boxes("train", torch.arange(600), epoch=1)
    ink = place(images.digits[index, 0].float(), boxes, images.side)
    line = torch.arange(images.side)
    down = (line >= boxes[:, :1]) & (line < boxes[:, 2:3])
    across = (line >= boxes[:, 1:2]) & (line < boxes[:, 3:])
    inside = down[:, :, None] & across[:, None, :]
    low, high = SIZES[canvas]

    # Bilinear ink of the outermost pixels reaches half a source pixel beyond the box, at less than half strength.
    assert (ink * ~inside).amax() < 128
    assert ((ink * inside).sum((1, 2)) / ink.sum((1, 2))).min() > 0.9
    assert boxes.min() >= 0
    assert boxes.max() <= images.side
    assert list(range(low, high + 1)) == (boxes[:, 2] - boxes[:, 0]).unique().tolist()
    assert torch.equal(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])


def test_places_sizes_and_contrasts_are_uniform() -> None:
    data, index = PlacedDigits("photo"), torch.arange(1258)
    boxes = torch.cat([data.boxes("train", index, epoch) for epoch in range(4)]).double()
    size = boxes[:, 2] - boxes[:, 0]
    free = 32 - size + 1
    # A uniform place is on average in the middle of its range, whose variance is (free^2 - 1) / 12.
    for side in (0, 1):
        score = (boxes[:, side] - (free - 1) / 2) / ((free**2 - 1) / 12) ** 0.5

        assert abs(score.mean()) < 4 / len(score) ** 0.5
        assert abs(score.var() - 1) < 0.1
    counts = size.long().bincount()[12:].double()

    # Chi-square, 10 degrees of freedom, one in a thousand; keys are fixed.
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 29.6
    assert torch.corrcoef(torch.stack([boxes[:, 0] / free, boxes[:, 1] / free]))[0, 1].abs() < 4 / len(size) ** 0.5


def test_stretching_equals_torchs_bilinear_resize() -> None:
    digit = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[3, 5, 19, 21]])
    inner = place(digit, boxes, 24)[0, 3:19, 5:21]
    framed = F.pad(digit[None], (1, 1, 1, 1))
    expected = F.interpolate(framed, size=(20, 20), mode="bilinear", align_corners=False)[0, 0, 2:18, 2:18]

    assert torch.allclose(expected, inner, atol=1e-6)


def test_an_unmoved_digit_of_its_own_size_is_itself() -> None:
    digit = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0))

    assert torch.equal(digit, place(digit, torch.tensor([[0, 0, 8, 8]] * 2), 8))


def test_noise_is_new_in_each_pixel_and_image() -> None:
    noise = images_of(PlacedDigits(), "train")._noise(torch.arange(200), (0, 0))
    flat = noise.flatten(1)

    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    assert torch.corrcoef(torch.stack([flat[:, :-1].flatten(), flat[:, 1:].flatten()]))[0, 1].abs() < 0.015
    assert torch.corrcoef(torch.stack([flat[:-1].flatten(), flat[1:].flatten()]))[0, 1].abs() < 0.015


def test_digits_on_photographs_stand_out_from_what_is_behind_them() -> None:
    data, index = PlacedDigits("photo"), torch.arange(300)
    images = images_of(data, "test")
    with_digit = images.fetch(index).image.float()
    background = images._crops(index, images._keys(0)) * 255
    difference = (with_digit - background).abs().amax((1, 2, 3))

    assert difference.min() > 60


def test_normalised_training_images_have_mean_0_and_deviation_1() -> None:
    data = PlacedDigits("photo")
    image = data.normalise(images_of(data, "train").fetch(torch.arange(1258)).image)

    assert image.mean((0, 2, 3)).abs().max() < 1e-4
    assert (image.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-4


def test_an_unknown_canvas_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^canvas 'oil' must be 'plain' or 'photo'$"):
        PlacedDigits("oil")  # type: ignore[arg-type]  # that is the point


def test_spawned_workers_draw_the_same_images() -> None:
    inside = list(PlacedDigits("photo").val_dataloader())
    spawned = list(PlacedDigits("photo", num_workers=1, multiprocessing_context="spawn").val_dataloader())

    assert all(torch.equal(*pair) for pairs in zip(inside, spawned, strict=True) for pair in zip(*pairs, strict=True))

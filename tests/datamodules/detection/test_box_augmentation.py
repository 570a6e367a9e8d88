"""What holds for every box augmentation: boxes follow pixels, neighbours do not matter, inputs are left alone.

An object is a white rectangle, so that its box can be read off the pixels.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lightning_vision.datamodules.augmentation import ColorJitter
from lightning_vision.datamodules.detection import (
    Annotations,
    BoxAugmentation,
    BoxChain,
    BoxMixUp,
    HorizontalFlip,
    Mosaic,
    ObjectCrop,
    PhotometricDistortion,
    PixelsOnly,
    ScaleJitter,
    box_policy,
    pack_boxes,
)
from support.boxes import extent, rectangles

SIZE = (48, 64)
ALONE = {
    "flip": HorizontalFlip(),
    "scale_jitter": ScaleJitter((0.3, 2.0), fill=0),
    "zoom_out": ScaleJitter((0.25, 1.0), prob=0.5, fill=0),
    "other_size": ScaleJitter((0.5, 2.0), size=(60, 40), fill=0),
    "object_crop": ObjectCrop(),
    "jitter": PixelsOnly(ColorJitter((0.7, 1.0))),
    "chain": BoxChain([HorizontalFlip(), ScaleJitter((0.5, 1.5), fill=0)]),
    "nothing": BoxChain([]),
}
MIXING = {
    "mosaic": Mosaic(prob=0.8, min_visible=0.0, fill=0),
    "quadrants": Mosaic(scale=(1.0, 1.0), min_visible=0.0, fill=0),
    "mixup": BoxMixUp(prob=0.8),
    "policy": box_policy("mosaic", SIZE),
}
BY_THEMSELVES = pytest.mark.parametrize("augmentation", ALONE.values(), ids=ALONE)
EACH = pytest.mark.parametrize("augmentation", (ALONE | MIXING).values(), ids=ALONE | MIXING)


def batch(augmentation: BoxAugmentation, count: int = 12) -> tuple[Tensor, Annotations, Tensor]:
    images, annotations = rectangles(count, SIZE)
    return images, annotations, torch.rand(count, augmentation.draws, generator=torch.Generator().manual_seed(1))


@BY_THEMSELVES
@pytest.mark.parametrize("seed", range(3))
def test_boxes_and_masks_end_where_the_bright_pixels_do(augmentation: BoxAugmentation, seed: int) -> None:
    images, annotations = rectangles(32, SIZE, seed)
    pixels, moved = augmentation(images, annotations, torch.Generator().manual_seed(seed))
    tolerance = 0 if isinstance(augmentation, HorizontalFlip) else 1

    assert len(moved.boxes) > 8
    for box, mask, sample in zip(moved.boxes, moved.masks, moved.sample, strict=True):
        assert (box - extent(pixels[sample, 0] >= 88)).abs().max() <= tolerance
        assert (box - extent(mask)).abs().max() <= tolerance


@EACH
def test_objects_are_in_order_and_inside_their_images(augmentation: BoxAugmentation) -> None:
    images, annotations, uniform = batch(augmentation)
    pixels, moved = augmentation.apply(images, annotations, uniform)
    height, width = pixels.shape[2:]

    assert (pixels.dtype, moved.boxes.dtype, moved.placement.dtype) == (torch.uint8, torch.float32, torch.float32)
    assert (moved.sample.diff() >= 0).all()
    assert (moved.boxes >= 0).all() and (moved.boxes <= torch.tensor([width, height] * 2)).all()
    assert (moved.boxes[:, 2:] - moved.boxes[:, :2] >= 1).all()
    assert moved.masks.shape == (len(moved.boxes), height, width)
    assert torch.equal(annotations.image_id, moved.image_id) and torch.equal(annotations.size, moved.size)


@BY_THEMSELVES
def test_an_image_does_not_depend_on_its_neighbours(augmentation: BoxAugmentation) -> None:
    images, annotations, uniform = batch(augmentation)
    pixels, moved = augmentation.apply(images, annotations, uniform)
    for k, together in enumerate(moved.targets()):
        one = replace(annotations.keep(annotations.sample == k), sample=torch.zeros(1).long())
        one = replace(one, **{name: getattr(one, name)[k : k + 1] for name in ("image_id", "placement", "size")})
        alone, own = augmentation.apply(images[k : k + 1], one, uniform[k : k + 1])

        assert torch.equal(alone[0], pixels[k])
        assert all(torch.equal(value, together[name]) for name, value in own.targets()[0].items())


@BY_THEMSELVES
def test_placement_says_where_a_point_of_the_original_went(augmentation: BoxAugmentation) -> None:
    """Boxes of originals three times as wide and twice as high, whose pixels came 6 to the right and 4 lower."""
    images, annotations, uniform = batch(augmentation)
    placement = torch.tensor([1 / 3, 1 / 2, 6.0, 4.0])
    original = (annotations.boxes - placement[2:].repeat(2)) / placement[:2].repeat(2)
    numbered = replace(annotations, placement=placement.repeat(len(images), 1), labels=annotations.sample)
    pixels, moved = augmentation.apply(images, numbered, uniform)
    place = moved.placement[moved.sample]
    corners = (original[moved.labels].view(-1, 2, 2) * place[:, None, :2] + place[:, None, 2:]).sort(1).values
    edges = torch.tensor([pixels.shape[3], pixels.shape[2]])

    torch.testing.assert_close(
        corners.clamp(min=0).minimum(edges).view(-1, 4), moved.boxes, rtol=0, atol=1e-3, check_dtype=False
    )


@EACH
def test_nothing_is_changed_in_place(augmentation: BoxAugmentation) -> None:
    images, annotations, uniform = batch(augmentation)
    before = images.clone(), annotations.to("cpu"), uniform.clone()
    kept = {name: value.clone() for name, value in vars(before[1]).items() if value is not None}
    augmentation.apply(images, annotations, uniform)

    assert torch.equal(before[0], images) and torch.equal(before[2], uniform)
    assert all(torch.equal(value, getattr(annotations, name)) for name, value in kept.items())


@EACH
def test_images_without_objects_and_batches_without_images(augmentation: BoxAugmentation) -> None:
    images, annotations, uniform = batch(augmentation)
    for masks in (annotations.masks[:0], None):
        none = replace(annotations.keep(annotations.labels == 0), masks=masks)
        pixels, moved = augmentation.apply(images, none, uniform)

        assert (len(moved.boxes), len(moved), moved.masks is None) == (0, 12, masks is None)
        assert len(pixels) == 12
    nobody = pack_boxes([], [], SIZE)
    pixels, moved = augmentation.apply(images[:0], nobody, uniform[:0])

    assert (len(pixels), len(moved), len(moved.boxes)) == (0, 0, 0)


@EACH
def test_boxes_do_not_depend_on_masks_and_crowds_move_along(augmentation: BoxAugmentation) -> None:
    images, annotations, uniform = batch(augmentation)
    _, with_masks = augmentation.apply(images, annotations, uniform)
    crowds = replace(annotations, masks=None, crowd=annotations.labels % 2 == 0)
    _, without = augmentation.apply(images, crowds, uniform)

    assert torch.equal(with_masks.boxes, without.boxes) and torch.equal(with_masks.labels, without.labels)
    assert without.crowd.tolist() == (without.labels % 2 == 0).tolist()


@EACH
def test_calling_it_draws_from_the_generator_alone(augmentation: BoxAugmentation) -> None:
    images, annotations, _ = batch(augmentation)
    before = torch.get_rng_state()
    (first, one), (second, other) = (
        augmentation(images, annotations, torch.Generator().manual_seed(7)) for _ in range(2)
    )

    assert torch.equal(first, second) and torch.equal(one.boxes, other.boxes)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "neutral",
    [
        HorizontalFlip(prob=0),
        ScaleJitter(prob=0),
        ScaleJitter(scale=(1, 1)),
        ObjectCrop(prob=0),
        Mosaic(prob=0),
        BoxMixUp(prob=0),
        PixelsOnly(PhotometricDistortion(prob=0)),
        BoxChain([]),
    ],
    ids=lambda augmentation: type(augmentation).__name__,
)
def test_neutral_settings_return_the_very_batch(neutral: BoxAugmentation) -> None:
    images, annotations, uniform = batch(neutral)
    result = neutral.apply(images, annotations, uniform)

    assert result[0] is images and result[1] is annotations


def test_stages_act_one_after_the_other_with_numbers_of_their_own() -> None:
    jitter, flip = ScaleJitter((0.5, 1.5)), HorizontalFlip()
    chain = BoxChain([jitter, flip])
    images, annotations, uniform = batch(chain)
    expected = flip.apply(*jitter.apply(images, annotations, uniform[:, :4]), uniform[:, 4:])
    result = chain.apply(images, annotations, uniform)

    assert chain.draws == 5
    assert torch.equal(expected[0], result[0]) and torch.equal(expected[1].boxes, result[1].boxes)


def test_what_is_no_batch_is_refused() -> None:
    images, annotations, uniform = batch(HorizontalFlip())
    with pytest.raises(ValueError, match=r"HorizontalFlip: images is float32; give bytes"):
        HorizontalFlip().apply(images.float(), annotations, uniform)
    with pytest.raises(ValueError, match=r"annotations is of 12 images and images of 5; give those of the same batch"):
        HorizontalFlip().apply(images[:5], annotations, uniform[:5])
    with pytest.raises(ValueError, match=r"BoxChain: stages has ColorJitter in it; give augmentations that move boxes"):
        BoxChain([ColorJitter()])

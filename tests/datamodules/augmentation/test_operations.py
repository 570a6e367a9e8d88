"""Each operation equals torchvision's at the same magnitude, bit for bit, a batch and an image at a time."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from lightning_vision.datamodules.augmentation import RandAugment, _affine
from lightning_vision.datamodules.augmentation._affine import GEOMETRIC, source_pixels
from lightning_vision.datamodules.augmentation._steps import apply_by_batch, apply_by_sample
from lightning_vision.datamodules.augmentation.operations import OPERATIONS
from support.photos import sample_photo

REFERENCE = v2.AutoAugment()
SPACES = {"AutoAugment": (v2.AutoAugment, 10), "TrivialAugment": (v2.TrivialAugmentWide, 31), "AugMix": (v2.AugMix, 10)}
PATHS = pytest.mark.parametrize("apply", [apply_by_sample, apply_by_batch])


def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)

    def noise(low: int, high: int, *form: int) -> Tensor:
        return torch.randint(low, high, form, dtype=torch.uint8, generator=generator)

    return [
        sample_photo(0, 40, 40),
        sample_photo(0, 37, 53),
        sample_photo(0, 40, 30)[:1],
        noise(0, 256, 3, 32, 32),
        noise(100, 103, 3, 21, 20),
        noise(0, 256, 1, 8, 8),
        noise(0, 256, 3, 2, 5),
        torch.full((3, 12, 12), 77, dtype=torch.uint8),
        torch.cat([torch.full((2, 9, 9), 255, dtype=torch.uint8), noise(0, 256, 1, 9, 9)]),
    ]


def magnitudes(name: str, space: str, height: int, width: int) -> list[float]:
    """All that torchvision's space has for the operation, with both signs."""
    kind, bins = SPACES[space]
    make, signed = kind._AUGMENTATION_SPACE.get(name, (lambda *_: None, False))
    values = make(bins, height, width)
    found = [0.0] if values is None else [float(value) for value in values]
    return found + [-value for value in found] if signed else found


def by_torchvision(image: Tensor, name: str, magnitude: float, interpolation: str = "nearest", fill: object = None):
    return REFERENCE._apply_image_or_video_transform(
        image, name, magnitude, interpolation=v2.InterpolationMode(interpolation), fill={Tensor: fill}
    )


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_torchvisions_at_every_magnitude(name: str, space: str) -> None:
    wrong = []
    for image in images():
        strengths = magnitudes(name, space, *image.shape[1:])
        batch = image.repeat(len(strengths), 1, 1, 1)
        plans = [[(name, strength)] for strength in strengths]
        expected = torch.stack([by_torchvision(image, name, strength) for strength in strengths])
        found = OPERATIONS[name](batch, torch.tensor(strengths))
        wrong += [] if torch.equal(expected, found) else [("batch", image.shape)]
        wrong += [] if torch.equal(expected, apply_by_sample(batch, plans, "nearest", 0)) else [("image", image.shape)]

    assert wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_torchvisions_on_photographs_of_full_size(name: str) -> None:
    image = sample_photo(0, 224, 224)
    strengths = [it for space in SPACES for it in magnitudes(name, space, 224, 224)]
    expected = torch.stack([by_torchvision(image, name, strength) for strength in strengths])
    plans = [[(name, strength)] for strength in strengths]
    batch = image.repeat(len(strengths), 1, 1, 1)

    assert torch.equal(expected, apply_by_sample(batch, plans, "nearest", 0))
    assert torch.equal(expected, apply_by_batch(batch, plans, "nearest", 0))


@PATHS
@pytest.mark.parametrize("fill", [0, 128, [10, 20, 30]])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("name", GEOMETRIC)
def test_what_comes_from_outside_has_the_asked_values(name: str, interpolation: str, fill: object, apply) -> None:
    image = sample_photo(0, 37, 41)
    strengths = magnitudes(name, "TrivialAugment", 37, 41)[::5]
    values = [fill] * 3 if isinstance(fill, int) else fill
    expected = [by_torchvision(image, name, it, interpolation, values if any(values) else None) for it in strengths]
    plans = [[(name, strength)] for strength in strengths]

    assert torch.equal(torch.stack(expected), apply(image.repeat(len(strengths), 1, 1, 1), plans, interpolation, fill))


def test_a_place_between_two_pixels_is_given_to_the_one_that_torchvision_gives_it() -> None:
    """At a shear of 0.2 every fifth row lies halfway; rounding the exact coordinate gives some of it to the other."""
    height = width = 40
    row = torch.arange(height, dtype=torch.float64)[:, None].expand(height, width)
    column = torch.arange(width) + 0.2 * (row + 0.5)
    nearest = torch.where(column.round() < width, row * width + column.round(), height * width).long().flatten()
    image = torch.arange(height * width, dtype=torch.float32).view(1, height, width) + 1
    expected = by_torchvision(image, "ShearX", float(torch.tensor(0.2))).flatten().long()
    found = (source_pixels("ShearX", float(torch.tensor(0.2)), height, width) + 1) % (height * width + 1)

    assert expected.tolist() == found.tolist()
    assert 0 < ((nearest + 1) % (height * width + 1) != expected).sum() <= 8 * width


@PATHS
def test_long_chains_of_operations_are_torchvisions(apply) -> None:
    """With tables that wait for the pixels and histograms that are carried through them."""
    image, augment = sample_photo(0, 32, 45), RandAugment(num_ops=6, magnitude=17)
    uniform = torch.rand(150, augment.draws, generator=torch.Generator().manual_seed(1))
    plans = [[*plan, ("Invert", 0.0), ("Equalize", 0.0)] for plan in augment.plans(uniform, (32, 45))]
    expected = []
    for plan in plans:
        changed = image
        for name, magnitude in plan:
            changed = by_torchvision(changed, name, magnitude)
        expected.append(changed)

    assert torch.equal(torch.stack(expected), apply(image.repeat(150, 1, 1, 1), plans, "nearest", 0))


@PATHS
def test_an_image_is_changed_alike_alone_and_among_others_and_the_input_stays(apply) -> None:
    generator = torch.Generator().manual_seed(2)
    batch = torch.randint(0, 256, (40, 3, 16, 18), dtype=torch.uint8, generator=generator)
    augment = RandAugment(num_ops=2, magnitude=25)
    plans = augment.plans(torch.rand(40, augment.draws, generator=generator), (16, 18))
    before = batch.clone()
    together = apply(batch, plans, "nearest", 0)
    alone = [apply(batch[number : number + 1], plans[number : number + 1], "nearest", 0) for number in range(40)]

    assert torch.equal(torch.cat(alone), together)
    assert torch.equal(before, batch)


@PATHS
def test_an_image_without_steps_stays_and_is_copied(apply) -> None:
    batch = sample_photo(0, 8, 8)[None]
    result = apply(batch, [[]], "nearest", 0)

    assert torch.equal(batch, result)
    assert batch.data_ptr() != result.data_ptr()


@PATHS
def test_images_that_are_not_contiguous_and_empty_batches_are_taken(apply) -> None:
    batch = sample_photo(0, 24, 32)[None].to(memory_format=torch.channels_last)
    plans = [[("Rotate", 20.0), ("Equalize", 0.0)]]

    assert torch.equal(apply(batch.contiguous(), plans, "nearest", 0), apply(batch, plans, "nearest", 0))
    assert apply(batch[:0], [], "nearest", 0).shape == (0, 3, 24, 32)


@PATHS
def test_a_translation_beyond_the_image_leaves_nothing_of_it(apply) -> None:
    batch = sample_photo(0, 8, 6)[None].repeat(4, 1, 1, 1)
    plans = [[("TranslateX", 7.0)], [("TranslateX", -32.0)], [("TranslateY", 9.0)], [("TranslateY", -8.0)]]

    assert apply(batch, plans, "nearest", 5).unique().tolist() == [5]


@PATHS
def test_a_fill_for_another_number_of_channels_is_refused(apply) -> None:
    with pytest.raises(ValueError) as error:
        apply(sample_photo(0, 8, 8)[None, :1], [[("Rotate", 10.0)]], "nearest", [1, 2, 3])

    assert str(error.value) == "fill has 3 values and the images 1 channels; give one value for all."


def test_maps_of_pixels_are_kept_within_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_affine, "_maps", _affine._Maps())
    monkeypatch.setattr(_affine, "_BYTES", 3 * 8 * 20 * 20)
    maps = [source_pixels("Rotate", float(degrees), 20, 20) for degrees in range(1, 9)]

    assert len(_affine._maps._held) == 3
    assert source_pixels("Rotate", 8.0, 20, 20) is maps[-1]
    assert source_pixels("Rotate", 1.0, 20, 20) is not maps[0]
    assert torch.equal(source_pixels("Rotate", 1.0, 20, 20), maps[0])

"""Named policies: what they are made of, equal to torchvision's recipe, at every size."""

from pathlib import Path

import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from lightning_vision.datamodules.augmentation import Augmentation, Chain, ColorJitter, ShiftCrop
from lightning_vision.datamodules.augmentation.policies import POLICIES, augmentation_for, policy

NAMED = [name for name in POLICIES if name != "none"]
STAGES = {
    "standard": ["ResizedCrop", "ColorJitter"],
    "strong": ["ResizedCrop", "RandAugment", "RandomErasing"],
    "auto": ["ResizedCrop", "AutoAugment"],
    "auto_cifar10": ["ShiftCrop", "AutoAugment"],
    "auto_svhn": ["ShiftCrop", "AutoAugment"],
    "randaugment": ["ResizedCrop", "RandAugment"],
    "trivialaugment": ["ResizedCrop", "TrivialAugment"],
    "augmix": ["ResizedCrop", "AugMix"],
    "erasing": ["ResizedCrop", "RandomErasing"],
}


def stages_of(name: str) -> list[Augmentation]:
    chain = policy(name, (24, 16))
    assert isinstance(chain, Chain)
    return chain.stages


@pytest.mark.parametrize("name", STAGES)
def test_a_policy_is_made_of_these_stages(name: str) -> None:
    assert [type(stage).__name__ for stage in stages_of(name)] == STAGES[name]


def test_every_policy_is_known() -> None:
    assert sorted(POLICIES) == sorted(["none", "light", *STAGES])
    assert policy("none", (24, 16)) is None


def test_settings_are_those_of_the_documentation() -> None:
    _, jitter = stages_of("standard")
    _, rand, erasing = stages_of("strong")

    assert vars(jitter) == vars(ColorJitter(0.4, 0.4, 0.4))
    assert (rand.num_ops, rand.magnitude, erasing.prob) == (2, 9, 0.25)
    assert stages_of("auto_cifar10")[0].flip and not stages_of("auto_svhn")[0].flip


def test_a_file_is_the_policy_in_it_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("policy: [[[Invert, 1.0, null]]]")
    images = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)

    assert torch.equal(policy(str(tmp_path / "mine.yaml"), (8, 8))(images), 255 - images)


def test_a_list_acts_in_its_order_and_what_changes_nothing_is_left_out() -> None:
    jitter = ColorJitter(0.4)
    chain = augmentation_for(["light", "none", jitter], (24, 16))

    assert isinstance(chain, Chain)
    assert [type(stage) for stage in chain.stages] == [ShiftCrop, ColorJitter]
    assert augmentation_for([jitter, "none"], (24, 16)) is jitter
    assert augmentation_for(["none"], (24, 16)) is augmentation_for([], (24, 16)) is None


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "colour"])
@pytest.mark.parametrize("here", [(24, 16), (40, 33)], ids=["as large", "larger"])
def test_images_come_out_at_the_size_asked_for(name: str, channels: int, here: tuple[int, int]) -> None:
    images = torch.randint(256, (3, channels, *here), dtype=torch.uint8)
    augmentation = policy(name, (24, 16))
    result = augmentation(images, torch.Generator().manual_seed(0))

    assert (result.shape, result.dtype) == ((3, channels, 24, 16), torch.uint8)
    assert not torch.equal(result, images[..., :24, :16])


@pytest.mark.parametrize("name", NAMED)
def test_an_image_does_not_depend_on_its_neighbours(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (8, 3, 30, 22), dtype=torch.uint8, generator=generator)
    augmentation = policy(name, (24, 16))
    uniform = torch.rand(8, augmentation.draws, generator=generator)
    together = augmentation.apply(images, uniform)

    for k in range(8):
        assert torch.equal(augmentation.apply(images[k : k + 1], uniform[k : k + 1])[0], together[k])


def test_standard_is_torchvisions_recipe_bit_for_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (24, 3, 90, 70), dtype=torch.uint8, generator=generator)
    standard = policy("standard", (64, 64))
    uniform = torch.rand(24, standard.draws, generator=generator)
    crop, jitter = standard.stages
    boxes, flip = crop.boxes(uniform[:, : crop.draws], (90, 70)), uniform[:, crop.draws - 1] < 0.5
    factors, order = jitter.factors(uniform[:, crop.draws :], 3)
    changes = (reference.adjust_brightness, reference.adjust_contrast, reference.adjust_saturation)
    expected = []
    for image, box, flipped, own, steps in zip(images, boxes, flip, factors, order, strict=True):
        image = reference.resized_crop(image, *box.tolist(), [64, 64], antialias=True)
        image = reference.horizontal_flip(image) if flipped else image
        for step in steps[steps < 3].tolist():
            image = changes[step](image, own[step].item())
        expected.append(image)

    assert torch.equal(torch.stack(expected), standard.apply(images, uniform))


def test_light_pads_an_eighth_or_cuts_what_is_larger() -> None:
    light = policy("light", (16, 16))
    padded = ShiftCrop(padding=2, flip=True)
    images = torch.randint(1, 256, (20, 3, 16, 16), dtype=torch.uint8)
    uniform = torch.rand(20, light.draws)

    assert torch.equal(padded.apply(images, uniform), light.apply(images, uniform))
    assert light(images.repeat(1, 1, 2, 2)).min() > 0


def test_an_unknown_name_is_refused_with_its_neighbour() -> None:
    with pytest.raises(
        ValueError, match=r"no augmentation policy 'standart'; did you mean standard.*there are none, li"
    ):
        policy("standart", (32, 32))

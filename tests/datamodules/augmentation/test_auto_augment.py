"""AutoAugment: the published tables, torchvision's images from torchvision's draws, and policies of one's own."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torchvision.transforms import AutoAugmentPolicy, v2

from lightning_vision.datamodules.augmentation import AutoAugment, read_policy, write_policy
from lightning_vision.datamodules.augmentation._spaces import LEARNED
from lightning_vision.datamodules.augmentation._steps import apply_by_batch
from lightning_vision.datamodules.augmentation.operations import OPERATIONS
from support.photos import sample_photo

NAMED = pytest.mark.parametrize("name", ["imagenet", "cifar10", "svhn"])
OWN = [
    [["ShearX", 0.9, 4], ["Invert", 0.2, 3], ["Rotate", 0.00001, 9]],
    [["Equalize", 1.0, None]],
    [["Identity", 0.5, None], ["Posterize", 0.25, 0]],
]


def draws_of_torchvision(seed: int, augment: AutoAugment) -> list[float]:
    """What torchvision draws from torch's global stream with this seed, as the numbers that `augment` takes."""
    torch.manual_seed(seed)
    which = int(torch.randint(len(augment.policy), ()))
    row = [(which + 0.5) / len(augment.policy)]
    for name, probability, _ in augment.policy[which]:
        taken = float(torch.rand(()))
        signed = taken <= probability and v2.AutoAugment._AUGMENTATION_SPACE[name][1]
        row += [taken, float(torch.rand(())) if signed else 0.0]
    return row


@NAMED
def test_row_239_the_policy_tables_are_torchvisions(name: str) -> None:
    assert v2.AutoAugment(AutoAugmentPolicy(name))._policies == list(AutoAugment(name).policy)


@NAMED
def test_row_239_a_policy_of_probability_zero_is_the_identity(name: str) -> None:
    policy = [[[name, 0.0, number] for name, _, number in steps] for steps in AutoAugment(name).policy]
    batch = sample_photo(0, 96, 128).repeat(50, 1, 1, 1)

    assert torch.equal(batch, AutoAugment(policy)(batch, torch.Generator().manual_seed(0)))


@NAMED
def test_row_239_the_same_seed_gives_torchvisions_image_of_a_photo(name: str) -> None:
    augment, reference = AutoAugment(name), v2.AutoAugment(AutoAugmentPolicy(name))
    image = sample_photo(0, 96, 128)
    uniform = torch.tensor([draws_of_torchvision(seed, augment) for seed in range(60)])
    expected = []
    for seed in range(60):
        torch.manual_seed(seed)
        expected.append(reference(image))

    assert torch.equal(torch.stack(expected), augment.apply(image.repeat(60, 1, 1, 1), uniform))


def test_row_239_a_policy_of_ones_own_goes_through_yaml_and_back(tmp_path: Path) -> None:
    batch, generator = sample_photo(1, 96, 128).repeat(64, 1, 1, 1), torch.Generator()
    write_policy(OWN, tmp_path / "own.yaml")
    written = (tmp_path / "own.yaml").read_text()
    own, read = AutoAugment(OWN), AutoAugment(str(tmp_path / "own.yaml"))
    write_policy(read.policy, tmp_path / "again.yaml")

    assert own.policy == read.policy == read_policy(tmp_path / "own.yaml")
    assert written == (tmp_path / "again.yaml").read_text()
    assert written.splitlines()[:2] == ["policy:", "  - [[ShearX, 0.9, 4], [Invert, 0.2, 3], [Rotate, 1.0e-05, 9]]"]
    assert torch.equal(own(batch, generator.manual_seed(3)), read(batch, generator.manual_seed(3)))


@NAMED
def test_the_published_policies_go_through_yaml_and_back(name: str, tmp_path: Path) -> None:
    write_policy(AutoAugment(name).policy, tmp_path / "policy.yaml")

    assert AutoAugment(name).policy == read_policy(tmp_path / "policy.yaml")


@pytest.mark.parametrize("sides", [(32, 32), (224, 160)], ids=str)
@pytest.mark.parametrize("name", v2.AutoAugment._AUGMENTATION_SPACE)
def test_magnitudes_and_signs_are_torchvisions(name: str, sides: tuple[int, int]) -> None:
    make, signed = v2.AutoAugment._AUGMENTATION_SPACE[name]
    values = make(10, *sides)
    expected = [0.0] * 10 if values is None else [float(value) for value in values]

    assert expected == [LEARNED.step(name, number, 10, 0.5, sides)[1] for number in range(10)]
    assert [-it if signed else it for it in expected] == [
        LEARNED.step(name, number, 10, 0.499, sides)[1] for number in range(10)
    ]


def test_sub_policies_and_signs_are_equally_likely_and_steps_as_likely_as_they_say() -> None:
    """Counted over a grid of all numbers, so exactly."""
    augment = AutoAugment([[["Rotate", 0.3, 9]], [["Invert", 1.0, None]], [["Color", 0.0, 5]], [["Solarize", 0.5, 4]]])
    grid = (torch.arange(20) + 0.5) / 20
    plans = augment.plans(torch.cartesian_prod(grid, grid, grid), (32, 32))
    counts = Counter(step for plan in plans for step in plan)

    solarized = next(step for step in counts if step[0] == "Solarize")

    assert counts == {("Rotate", 30.0): 300, ("Rotate", -30.0): 300, ("Invert", 0.0): 2000, solarized: 1000}


def test_more_sub_policies_and_steps_than_the_paper_has_work_and_all_are_taken() -> None:
    policy = [[["Invert", 1.0, None]] * steps for steps in range(1, 8)]
    augment = AutoAugment(policy)
    uniform = torch.rand(7, augment.draws, generator=torch.Generator().manual_seed(0))
    uniform[:, 0] = (torch.arange(7) + 0.5) / 7
    result = augment.apply(torch.zeros(7, 1, 4, 4, dtype=torch.uint8), uniform)

    assert augment.draws == 15
    assert result[:, 0, 0, 0].tolist() == [255, 0, 255, 0, 255, 0, 255]


@NAMED
@pytest.mark.parametrize("channels", [1, 3])
def test_the_way_of_other_devices_gives_the_same_images(name: str, channels: int) -> None:
    augment = AutoAugment(name)
    batch = sample_photo(0, 96, 128)[:channels].repeat(80, 1, 1, 1)
    uniform = torch.rand(80, augment.draws, generator=torch.Generator().manual_seed(4))

    assert torch.equal(
        augment.apply(batch, uniform), apply_by_batch(batch, augment.plans(uniform, (96, 128)), "nearest", 0)
    )


def test_the_global_stream_is_left_alone() -> None:
    before = torch.get_rng_state()
    AutoAugment()(sample_photo(0, 96, 128)[None], torch.Generator().manual_seed(0))

    assert torch.equal(before, torch.get_rng_state())


OPS = ", ".join(OPERATIONS)
STEPS = "give a list of steps [operation, probability, bin], at least one."
BAD: list[tuple[Any, str]] = [
    ([], " is []; give a list of sub-policies, at least one."),
    ({"a": 1}, " is {'a': 1}; give a list of sub-policies, at least one."),
    ([[]], f": sub-policy 1 is []; {STEPS}"),
    ([[["Invert", 1, None]], "Invert"], f": sub-policy 2 is 'Invert'; {STEPS}"),
    ([["Invert", 1, None]], ": sub-policy 1, step 1 is 'Invert'; give [operation, probability, bin]."),
    ([[["Invert", 1]]], ": sub-policy 1, step 1 is ['Invert', 1]; give [operation, probability, bin]."),
    (
        [[["Invert", 1, None], ["Shear", 1, 3]]],
        f": sub-policy 1, step 2 has the operation 'Shear'; did you mean ShearY or ShearX?; there are {OPS}.",
    ),
    (
        [[[["Invert"], 1, 3]]],
        f": sub-policy 1, step 1 has the operation ['Invert']; did you mean Invert?; there are {OPS}.",
    ),
    ([[["Rotate", 1.5, 3]]], ": sub-policy 1, step 1 has the probability 1.5; give a number from 0 to 1."),
    ([[["Rotate", -0.1, 3]]], ": sub-policy 1, step 1 has the probability -0.1; give a number from 0 to 1."),
    ([[["Rotate", True, 3]]], ": sub-policy 1, step 1 has the probability True; give a number from 0 to 1."),
    ([[["Rotate", "1", 3]]], ": sub-policy 1, step 1 has the probability '1'; give a number from 0 to 1."),
    ([[["Rotate", 0.5, 10]]], ": sub-policy 1, step 1 has the bin 10; give a whole number from 0 to 9."),
    ([[["Rotate", 0.5, -1]]], ": sub-policy 1, step 1 has the bin -1; give a whole number from 0 to 9."),
    ([[["Rotate", 0.5, None]]], ": sub-policy 1, step 1 has the bin None; give a whole number from 0 to 9."),
    ([[["Rotate", 0.5, 2.0]]], ": sub-policy 1, step 1 has the bin 2.0; give a whole number from 0 to 9."),
]


@pytest.mark.parametrize(("policy", "message"), BAD, ids=lambda it: str(it)[:40])
def test_a_bad_policy_is_refused_wherever_it_comes_from(policy: Any, message: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump({"policy": policy}))
    with pytest.raises(ValueError) as given:
        AutoAugment(policy)
    with pytest.raises(ValueError) as read:
        AutoAugment(str(file))
    with pytest.raises(ValueError) as written:
        write_policy(policy, tmp_path / "out.yaml")

    assert str(given.value) == f"AutoAugment: the policy{message}"
    assert str(read.value) == f"{file}: the policy{message}"
    assert str(written.value) == f"write_policy: the policy{message}"
    assert not (tmp_path / "out.yaml").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- [[Invert, 1, null]]", "{file} has no entry `policy`; give it one with a list of sub-policies."),
        ("", "{file} has no entry `policy`; give it one with a list of sub-policies."),
        ("policy: [", "{file} is no YAML file: "),
        ("policy: \x00", "{file} is no YAML file: "),
    ],
)
def test_a_file_without_a_policy_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ValueError) as error:
        AutoAugment(str(file))

    assert str(error.value).startswith(message.format(file=file))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"policy": "imagnet"},
            "AutoAugment: there is no policy and no file called 'imagnet'; did you mean imagenet?; give one of "
            "imagenet, cifar10, svhn, a YAML file or a list of sub-policies.",
        ),
        (
            {"interpolation": "bicubic"},
            "AutoAugment: interpolation is 'bicubic'; give nearest or bilinear.",
        ),
        (
            {"fill": 256},
            "AutoAugment: fill is 256; give a whole number from 0 to 255, or a list of one a channel.",
        ),
        (
            {"fill": [1, 2]},
            "AutoAugment: fill is [1, 2]; give a whole number from 0 to 255, or a list of one a channel.",
        ),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        AutoAugment(**arguments)

    assert str(error.value) == message


def test_images_that_are_no_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match="AutoAugment: images is float32; give bytes"):
        AutoAugment()(torch.zeros(1, 3, 8, 8))

"""AugMix: torchvision's images from torchvision's draws, and the distribution of the shares."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from lightning_vision.datamodules.augmentation import AugMix, augmix_weights
from support.photos import sample_photo


class WithShares(v2.AugMix):
    """torchvision's AugMix with given shares; it asks for the image's with the chains' factor, then for the chains'."""

    def mix(self, image: Tensor, shares: Tensor) -> Tensor:
        self.shares = [torch.tensor([[shares[0], 1.0]]), shares[None, 1:]]
        return self(image)

    def _sample_dirichlet(self, params: Tensor) -> Tensor:
        return self.shares.pop(0)


def draws_of_torchvision(seed: int, severity: int, width: int, depth: int, all_ops: bool) -> list[float]:
    """What torchvision draws from torch's global stream beside the shares, as the numbers that `apply` takes."""
    torch.manual_seed(seed)
    space = v2.AugMix._AUGMENTATION_SPACE if all_ops else v2.AugMix._PARTIAL_AUGMENTATION_SPACE
    row = []
    for _ in range(width):
        length = depth if depth > 0 else int(torch.randint(low=1, high=4, size=(1,)))
        row.append((length - 0.5) / 3 if depth < 0 else 0.0)
        for step in range(3 if depth < 0 else depth):
            if step >= length:
                row += [0.0, 0.0, 0.0]
                continue
            which = int(torch.randint(len(space), ()))
            make, signed = list(space.values())[which]
            has = make(10, 1, 1) is not None
            strength = (int(torch.randint(severity, ())) + 0.5) / severity if has else 0.0
            row += [(which + 0.5) / len(space), strength, float(torch.rand(())) if signed else 0.0]
    return row


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
@pytest.mark.parametrize(
    ("severity", "width", "depth", "all_ops"), [(3, 3, -1, True), (10, 2, 2, False), (1, 1, 4, True)]
)
def test_the_same_seed_and_shares_give_torchvisions_image_of_a_photo(
    severity: int, width: int, depth: int, all_ops: bool, interpolation: str
) -> None:
    augment = AugMix(severity, width, depth, all_ops, interpolation)
    reference = WithShares(severity, width, depth, all_ops=all_ops, interpolation=v2.InterpolationMode(interpolation))
    image, generator = sample_photo(1, 48, 61), torch.Generator().manual_seed(0)
    shares = torch.rand(25, 1 + width, generator=generator)
    rest = [draws_of_torchvision(seed, severity, width, depth, all_ops) for seed in range(25)]
    expected = []
    for seed in range(25):
        torch.manual_seed(seed)
        expected.append(reference.mix(image, augmix_weights(shares)[seed]))
    found = augment.apply(image.repeat(25, 1, 1, 1), torch.cat([shares, torch.tensor(rest)], 1))

    assert torch.equal(torch.stack(expected), found)


def test_shares_are_dirichlet_and_beta_of_one() -> None:
    """A chain's share s of what the image leaves has P(s <= x) = 1 - (1 - x)^(k - 1); uniform numbers over their sum do
    not: Kolmogorov's distance at 20,000 draws, bound for one in a thousand."""
    uniform = torch.rand(20_000, 4, generator=torch.Generator().manual_seed(5))
    shares = augmix_weights(uniform)
    rank, bound = torch.arange(1, 20_001) / 20_000, 1.95 / 20_000**0.5

    def distance(share: Tensor) -> float:
        return float(((1 - (1 - share.sort().values) ** 2) - rank).abs().max())

    assert torch.equal(uniform[:, 0], shares[:, 0])
    assert torch.allclose(shares.sum(1), torch.ones(20_000), atol=1e-6)
    assert max(distance(shares[:, chain] / (1 - shares[:, 0])) for chain in (1, 2, 3)) < bound
    assert distance(uniform[:, 1] / uniform[:, 1:].sum(1)) > 5 * bound


def test_shares_exist_for_the_smallest_and_largest_numbers() -> None:
    ends = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1 - 2**-24] * 4, [0.0, 0.0, 0.0, 1 - 2**-24]])
    shares = augmix_weights(ends)

    assert shares.isfinite().all()
    assert torch.allclose(shares.sum(1), torch.ones(3))


@pytest.mark.parametrize("all_ops", [True, False])
def test_operations_strengths_and_lengths_are_torchvisions_and_equally_likely(all_ops: bool) -> None:
    """Counted over a grid of all numbers, so exactly."""
    space = v2.AugMix._AUGMENTATION_SPACE if all_ops else v2.AugMix._PARTIAL_AUGMENTATION_SPACE
    names = len(space)
    grid = torch.cartesian_prod(*((torch.arange(size) + 0.5) / size for size in (6, names, 3, 2)))
    uniform = torch.zeros(len(grid), 2 + 10)
    uniform[:, 2:6] = grid
    plans = AugMix(severity=3, width=1, all_ops=all_ops).plans(uniform, (30, 60))
    expected: Counter[tuple[str, float]] = Counter()
    for name, (make, signed) in space.items():
        values = make(10, 30, 60)
        for strength in [0.0] * 3 if values is None else [float(value) for value in values[:3]]:
            expected += Counter({(name, strength): 6}) + Counter({(name, -strength if signed else strength): 6})

    assert expected == Counter(plan[0] for plan in plans)
    assert {1: len(grid) // 3, 2: len(grid) // 3, 3: len(grid) // 3} == Counter(map(len, plans))


def test_an_image_is_mixed_alike_alone_and_among_others_and_the_input_stays() -> None:
    generator = torch.Generator().manual_seed(1)
    batch = torch.randint(0, 256, (12, 1, 14, 15), dtype=torch.uint8, generator=generator)
    augment, before = AugMix(), batch.clone()
    uniform = torch.rand(12, augment.draws, generator=generator)
    together = augment.apply(batch, uniform)
    alone = [augment.apply(batch[number : number + 1], uniform[number : number + 1]) for number in range(12)]

    assert torch.equal(torch.cat(alone), together)
    assert torch.equal(before, batch)
    assert augment.apply(batch[:0], uniform[:0]).shape == (0, 1, 14, 15)


def test_an_image_that_keeps_all_of_the_mixture_stays() -> None:
    image, augment = sample_photo(1, 48, 61)[None], AugMix()
    uniform = torch.rand(1, augment.draws, generator=torch.Generator().manual_seed(2))
    uniform[0, 0] = 1.0

    assert torch.equal(image, augment.apply(image, uniform))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"severity": 0}, "severity is 0; give a whole number from 1 to 10."),
        ({"severity": 11}, "severity is 11; give a whole number from 1 to 10."),
        ({"width": 0}, "width is 0; give a whole number of at least 1."),
        ({"depth": 0}, "depth is 0; give a whole number of at least 1."),
        ({"interpolation": "bicubic"}, "interpolation is 'bicubic'; give nearest or bilinear."),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        AugMix(**arguments)

    assert str(error.value) == f"AugMix: {message}"

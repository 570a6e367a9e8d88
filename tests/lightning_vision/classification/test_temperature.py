"""Temperature scaling against closed forms, a minimiser of scipy and its own degenerate cases."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from lightning_vision.classification.temperature import fit_temperature


def noisy(scale: float, classes: int = 7, count: int = 400) -> tuple[Tensor, Tensor]:
    """Logits that name the class more often than not, float64, times `scale`."""
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(classes, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator, dtype=torch.float64) + 2 * F.one_hot(target, classes)
    return scale * logits, target


def by_scipy(logits: Tensor, target: Tensor) -> float:
    """The temperature that scipy finds for the same likelihood, over log T."""

    def loss(log_t: float) -> float:
        scaled = logits / math.exp(log_t)
        if target.ndim == 1:
            return float(F.cross_entropy(scaled, target))
        return float(F.binary_cross_entropy_with_logits(scaled, target.double()))

    return math.exp(minimize_scalar(loss, bounds=(-12, 12), method="bounded", options={"xatol": 1e-12}).x)


def test_three_of_four_right_by_hand() -> None:
    """The likelihood is highest where the claim is three quarters: 2 / T = log 3."""
    logits = torch.tensor([[2.0, 0.0]]).repeat(4, 1)

    assert fit_temperature(logits, torch.tensor([0, 0, 0, 1])) == pytest.approx(2 / math.log(3), rel=1e-12)
    assert fit_temperature(logits[:, :1], torch.tensor([[1], [1], [1], [0]])) == pytest.approx(
        2 / math.log(3), rel=1e-12
    )


@pytest.mark.parametrize("scale", [1e-3, 1.0, 40.0, 1e4])
def test_equal_to_a_minimiser_of_scipy_and_in_proportion_to_the_logits(scale: float) -> None:
    logits, target = noisy(scale)
    found = fit_temperature(logits, target)

    assert found == pytest.approx(by_scipy(logits, target), rel=1e-6)
    assert found == pytest.approx(scale * fit_temperature(*noisy(1.0)), rel=1e-10)


def test_several_labels_an_image_equal_a_minimiser_of_scipy() -> None:
    generator = torch.Generator().manual_seed(2)
    target = torch.randint(2, (300, 4), generator=generator)
    logits = 9 * (torch.randn(300, 4, generator=generator, dtype=torch.float64) + target - 0.5)

    assert fit_temperature(logits, target) == pytest.approx(by_scipy(logits, target), rel=1e-6)


def test_one_narrow_miss_among_many_still_has_its_exact_minimum() -> None:
    """One gap of a thousandth against 99 of one: the minimum lies far from where the search begins."""
    gaps = torch.tensor([1.0] * 99 + [-1e-3], dtype=torch.float64)
    logits = torch.stack([gaps, torch.zeros(100)], dim=1).double()
    beta = 1 / fit_temperature(logits, torch.zeros(100, dtype=torch.long))
    slope = -(gaps * torch.sigmoid(-beta * gaps)).mean()

    assert beta > 10
    assert abs(float(slope)) < 1e-12


def test_a_temperature_a_percent_beside_it_is_worse() -> None:
    logits, target = noisy(5.0)
    found = fit_temperature(logits, target)
    losses = [float(F.cross_entropy(logits / (found * factor), target)) for factor in (0.99, 1.0, 1.01)]

    assert min(losses) == losses[1]


def test_all_right_and_no_better_than_a_guess_have_no_best_temperature() -> None:
    logits, target = noisy(1.0)
    right = logits.argmax(1)

    with pytest.raises(
        ValueError, match=r"^all 400 decisions are right, so any lower temperature fits better and none"
    ):
        fit_temperature(logits, right)
    with pytest.raises(
        ValueError, match=r"^the 400 decisions are no better than a guess, so any higher temperature fits"
    ):
        fit_temperature(-logits, target)
    with pytest.raises(ValueError, match=r"^the 3 decisions are no better than a guess|^all 3 decisions are right"):
        fit_temperature(torch.ones(3, 2), torch.tensor([0, 1, 0]))


def test_what_cannot_be_fitted_is_refused() -> None:
    logits = torch.tensor([[1.0, torch.inf], [0.0, 1.0]])

    with pytest.raises(ValueError, match=r"^a logit is not finite, so no temperature fits; look for what overflows"):
        fit_temperature(logits, torch.tensor([0, 1]))
    with pytest.raises(
        ValueError, match=r"^logits and target are \(2, 2\) and \(3,\); give logits \(N, K\) and classes"
    ):
        fit_temperature(logits, torch.tensor([0, 1, 1]))
    with pytest.raises(ValueError, match=r"^logits and target are \(0, 2\) and \(0,\); give logits"):
        fit_temperature(logits[:0], torch.tensor([]).long())

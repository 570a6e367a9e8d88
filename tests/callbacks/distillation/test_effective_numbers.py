"""Weights of classes against their definition, and at both ends of beta."""

import pytest
import torch

from lightning_vision.callbacks.distillation.effective_numbers import effective_number_weights

COUNTS = [5000, 300, 20, 1]


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999, 0.9999])
def test_row_225_weights_are_those_of_the_paper_normalised(beta):
    raw = torch.tensor([(1 - beta) / (1 - beta**count) for count in COUNTS], dtype=torch.float64)
    weights = effective_number_weights(COUNTS, beta)

    assert torch.allclose((raw / raw.sum() * 4).float(), weights)
    assert abs(weights.mean().item() - 1) < 1e-6


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9999])
def test_row_225_balanced_counts_have_equal_weights(beta):
    assert effective_number_weights([37] * 6, beta).tolist() == [1.0] * 6


def test_row_225_beta_zero_is_unweighted():
    assert effective_number_weights(COUNTS, 0.0).tolist() == [1.0] * 4


def test_near_one_they_are_inverse_to_the_counts():
    inverse = 1 / torch.tensor(COUNTS, dtype=torch.float64)

    assert torch.allclose((inverse / inverse.mean()).float(), effective_number_weights(COUNTS, 1 - 1e-12), rtol=1e-4)


@pytest.mark.parametrize(("counts", "beta"), [([3, 0], 0.9), ([], 0.9), ([3], 1.0), ([3], -0.1)])
def test_what_has_no_weights_is_refused(counts, beta):
    with pytest.raises(ValueError, match=r"^effective_number_weights: (counts|beta) is .*; give "):
        effective_number_weights(counts, beta)

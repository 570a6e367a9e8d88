"""The best threshold of each label against trying all of them."""

import pytest
import torch
from sklearn.metrics import f1_score

from lightning_vision.classification.thresholds import best_thresholds


def best_by_trying(scores, target):
    """The largest F1 of one label over every decision that a threshold can make."""
    cuts = [-1.0, *sorted(set(scores.tolist()))]
    return max(f1_score(target, scores > cut, zero_division=0) for cut in cuts if not (scores[scores > cut] == 0).any())


@pytest.mark.parametrize("levels", [2, 7, 1000], ids=["many ties", "ties", "few ties"])
def test_f1_is_that_of_the_best_of_all_thresholds(levels):
    generator = torch.Generator().manual_seed(levels)
    scores = torch.randint(levels + 1, (60, 5), generator=generator) / levels
    target = (torch.rand(60, 5, generator=generator) < torch.tensor([0.02, 0.1, 0.3, 0.5, 0.9])).long()
    found = best_thresholds(scores, target)

    for k, threshold in enumerate(found):
        reached = f1_score(target[:, k], scores[:, k] > threshold, zero_division=0)
        assert reached == pytest.approx(best_by_trying(scores[:, k], target[:, k]), abs=1e-12)
        assert 0 <= threshold < 1


@pytest.mark.parametrize(
    ("scores", "target", "threshold"),
    [
        ([0.75, 0.5, 0.25], [1, 0, 0], 0.625),
        ([0.25, 0.75, 0.5], [0, 1, 1], 0.375),
        ([0.5, 0.25], [1, 1], 0.125),
        ([0.75, 0.5, 0.5, 0.25], [1, 1, 0, 0], 0.375),
        ([0.75, 0.5, 0.25, 0.125], [1, 0, 0, 1], 0.625),
        ([0.9, 0.1], [0, 0], 0.5),
        ([0.0, 0.0], [1, 1], 0.5),
        ([1.0, 1.0], [1, 0], 0.5),
    ],
    ids=["one", "order", "all", "equal scores", "equal F1", "nobody has it", "all zero", "all one"],
)
def test_a_threshold_by_hand(scores, target, threshold):
    assert best_thresholds(torch.tensor(scores)[:, None], torch.tensor(target)[:, None]) == [threshold]


def test_between_neighbouring_floats_the_threshold_still_parts_them():
    lower = torch.tensor(0.7)
    upper = torch.nextafter(lower, torch.tensor(1.0))
    scores = torch.stack([upper, lower])[:, None]
    (threshold,) = best_thresholds(scores, torch.tensor([[1], [0]]))

    assert (scores[:, 0] > threshold).tolist() == [True, False]


def test_no_image_leaves_a_half():
    assert best_thresholds(torch.zeros(0, 3), torch.zeros(0, 3)) == [0.5] * 3

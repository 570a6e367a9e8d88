"""Bins of confidence against hand counts and against torchmetrics, and their diagram."""

import pytest
import torch
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from lightning_vision.classification.reliability_bins import reliability, reliability_diagram


def test_bins_by_hand() -> None:
    """Four bins: 0.3 and 0.45 in the second, 0.5 on a border in the third, 1 alone in the last."""
    probabilities = torch.tensor([[0.3, 0.35, 0.35], [0.45, 0.3, 0.25], [0.5, 0.25, 0.25], [1.0, 0.0, 0.0]])
    bins = reliability(probabilities, torch.tensor([1, 2, 0, 0]), bins=4)

    assert bins.count.tolist() == [0, 2, 1, 0, 1]
    assert bins.confidence.tolist() == pytest.approx([0, 0.4, 0.5, 0, 1])
    assert bins.accuracy.tolist() == [0, 0.5, 1, 0, 1]
    assert bins.ece == pytest.approx((2 * 0.1 + 0.5 + 0) / 4)


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("scale", [0.5, 4.0, 60.0])
def test_the_error_is_that_of_torchmetrics(bins: int, scale: float) -> None:
    """At a scale of 60 many confidences are exactly 1 in float32."""
    generator = torch.Generator().manual_seed(0)
    probabilities = (scale * torch.randn(500, 6, generator=generator)).softmax(1)
    target = torch.randint(6, (500,), generator=generator)
    labels = torch.randint(2, (500, 6), generator=generator)

    expected = float(multiclass_calibration_error(probabilities, target, 6, bins, "l1"))
    assert reliability(probabilities, target, bins).ece == pytest.approx(expected, abs=1e-6)
    expected = float(binary_calibration_error(probabilities.flatten(), labels.flatten(), bins, "l1"))
    assert reliability(probabilities, labels, bins).ece == pytest.approx(expected, abs=1e-6)


def test_nothing_and_no_bins_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^0 images cannot be sorted into 15 bins; give at least one of each$"):
        reliability(torch.zeros(0, 3), torch.zeros(0).long())
    with pytest.raises(ValueError, match=r"^1 images cannot be sorted into 0 bins"):
        reliability(torch.ones(1, 1), torch.zeros(1).long(), bins=0)


def test_a_diagram_shows_what_came_true_in_each_filled_bin() -> None:
    probabilities = torch.tensor([[0.95, 0.05], [0.95, 0.05], [0.25, 0.75]])
    bins = reliability(probabilities, torch.tensor([0, 1, 1]), bins=10)
    figure = reliability_diagram({"before": bins, "after": bins})
    above, after = figure.axes[0], figure.axes[1]
    bars = {round(bar.get_x(), 3): bar.get_height() for bar in above.containers[0]}

    assert bars == {0.7: 1.0, 0.9: 0.5}
    assert above.get_title() == f"before, ECE {bins.ece:.3f}"
    assert after.get_title() == f"after, ECE {bins.ece:.3f}"

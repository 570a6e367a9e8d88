"""How often a classifier is right when it says that it is: bins of confidence, their error, their diagram."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Reliability", "reliability", "reliability_diagram"]


@dataclass(frozen=True)
class Reliability:
    """What was claimed and what came true, in bins of confidence.

    Args:
        confidence: Mean confidence of each bin, float64 `(bins + 1,)`; 0 where a bin is empty. The last bin holds what
            is certain, of confidence exactly 1, as torchmetrics bins it; the others are of equal width.
        accuracy: Share of each bin that came true, float64 `(bins + 1,)`; 0 where a bin is empty.
        count: Decisions in each bin, int64 `(bins + 1,)`.
    """

    confidence: Tensor
    accuracy: Tensor
    count: Tensor

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean distance of claim and truth, each bin by its count, 0..1."""
        apart = (self.accuracy - self.confidence).abs() * self.count
        return float(apart.sum() / self.count.sum())


def reliability(probabilities: Tensor, target: Tensor, bins: int = 15) -> Reliability:
    """Sort decisions into bins of their confidence and count how many of each bin came true.

    With one label an image the confidence is the largest probability; with several, each label's probability is one
    decision, which comes true where the image has the label. The bins are those of torchmetrics' calibration errors.

    Args:
        probabilities: `(N, K)` in 0..1.
        target: Classes, int64 `(N,)`, or labels `(N, K)` of 0 and 1.
        bins: Bins of equal width between 0 and 1.

    Raises:
        ValueError: there is nothing to sort, or no bin.

    Example:
        >>> bins = reliability(torch.tensor([[0.9, 0.1], [0.3, 0.7]]), torch.tensor([0, 0]), bins=2)
        >>> bins.count.tolist(), round(bins.ece, 4)
        ([0, 2, 0], 0.3)

    Reference: Guo et al. 2017, arXiv:1706.04599
    """
    if bins < 1 or not len(probabilities):
        raise ValueError(f"{len(probabilities)} images cannot be sorted into {bins} bins; give at least one of each")
    if target.ndim == 1:
        confidence, label = probabilities.detach().cpu().float().max(1)
        true = label == target.cpu()
    else:
        confidence, true = probabilities.detach().cpu().float().flatten(), target.cpu().flatten() > 0.5
    # float32, in which torchmetrics compares, so that a confidence on a border falls into the same bin.
    place = torch.bucketize(confidence, torch.linspace(0, 1, bins + 1), right=True) - 1
    count = place.bincount(minlength=bins + 1)
    sums = [place.bincount(value.double(), minlength=bins + 1) for value in (confidence, true)]
    return Reliability(sums[0] / count.clamp(min=1), sums[1] / count.clamp(min=1), count)


def reliability_diagram(found: Mapping[str, Reliability]) -> "Figure":
    """Draw reliability diagrams side by side: a bar is what came true, the line across it what was claimed.

    Under each diagram stands the share of decisions in each bin.

    Args:
        found: What to draw, by title.

    Example:
        >>> bins = reliability(torch.tensor([[0.9, 0.1], [0.3, 0.7]]), torch.tensor([0, 0]))
        >>> len(reliability_diagram({"before": bins, "after": bins}).axes)
        4
    """
    # Imported here: measuring needs no drawing.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(found), 4.6), layout="constrained")
    axes = figure.subplots(2, len(found), sharex=True, squeeze=False, height_ratios=(3, 1))
    for (title, one), above, below in zip(found.items(), axes[0], axes[1], strict=True):
        bins, filled = len(one.count) - 1, (one.count[:-1] > 0).nonzero()[:, 0].tolist()
        left = [number / bins for number in filled]
        claimed, true, share = (
            it[filled].tolist() for it in (one.confidence, one.accuracy, one.count / one.count.sum())
        )
        width = {"width": 1 / bins, "align": "edge", "edgecolor": "white"}
        above.bar(left, true, color="C0", label="came true", **width)
        right = [edge + 1 / bins for edge in left]
        above.hlines(claimed, left, right, color="C3", linewidth=2.5, label="was claimed")
        above.plot([0, 1], [0, 1], "k--", linewidth=1)
        below.bar(left, share, color="0.6", **width)
        if one.count[-1]:
            above.plot(1, float(one.accuracy[-1]), "C0o", clip_on=False, label="of what was certain")
            below.plot(1, float(one.count[-1] / one.count.sum()), "o", color="0.4", clip_on=False)
        above.set(title=f"{title}, ECE {one.ece:.3f}", xlim=(0, 1), ylim=(0, 1), ylabel="came true")
        above.legend(loc="upper left", frameon=False)
        below.set(xlabel="confidence", ylabel="share")
        for part in (above, below):
            part.spines[["top", "right"]].set_visible(False)
    return figure

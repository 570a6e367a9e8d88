"""Temperature scaling: the one number that makes a trained network's confidence fit held-out images.

Guo et al. 2017, arXiv:1706.04599, Eq. 9. Letters: N images, K classes, z logits, t target, T temperature, beta = 1 / T.

    L(beta) = mean_n logsumexp_k beta d_nk,    d_nk = z_nk - z_n,t(n)

is convex in beta, with the slope `mean_n sum_k p_nk d_nk` and as curvature the mean variance of d under
`p = softmax(beta d)`. A label that an image has or has not is a choice between the two logits z and 0.
"""

import torch
from torch import Tensor

__all__ = ["fit_temperature"]

STEPS = 200


def fit_temperature(logits: Tensor, target: Tensor) -> float:
    """The temperature by which logits must be divided so that their likelihood on known targets is highest.

    The exact minimum of the negative log-likelihood, by Newton's method between bounds, in float64 on the CPU.

    Args:
        logits: `(N, K)`, of images that the network was not trained on.
        target: Classes, int64 `(N,)`, or with several labels an image 0 and 1 `(N, K)`.

    Raises:
        ValueError: the shapes do not fit or a logit is not finite; all decisions are right, so that any lower
            temperature is better and none best; they are no better than a guess, so that any higher one is better.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [2.0, 0.0]])  # right in three of four
        >>> round(fit_temperature(logits, torch.tensor([0, 0, 0, 1])), 4)  # 2 / log 3
        1.8205

    Reference: Guo et al. 2017, arXiv:1706.04599

    BibTeX:
        @inproceedings{guo2017calibration,
          title = {On Calibration of Modern Neural Networks},
          author = {Guo, Chuan and Pleiss, Geoff and Sun, Yu and Weinberger, Kilian Q.},
          booktitle = {International Conference on Machine Learning},
          year = {2017},
          eprint = {1706.04599},
          archivePrefix = {arXiv},
        }
    """
    if logits.ndim != 2 or not len(logits) or target.shape not in (logits.shape, logits.shape[:1]):
        shapes = f"{tuple(logits.shape)} and {tuple(target.shape)}"
        raise ValueError(f"logits and target are {shapes}; give logits (N, K) and classes (N,) or labels (N, K)")
    gaps = _gaps(logits.detach().cpu().double(), target.detach().cpu())
    if not bool(gaps.isfinite().all()):
        raise ValueError("a logit is not finite, so no temperature fits; look for what overflows in the network")
    if float(gaps.amax(1).sum()) == 0:
        raise ValueError(
            f"all {len(gaps)} decisions are right, so any lower temperature fits better and none best; calibrate on "
            "images of which the network misses some"
        )
    if _slope(gaps, 0.0)[0] >= 0:
        raise ValueError(
            f"the {len(gaps)} decisions are no better than a guess, so any higher temperature fits better and none "
            "best; train the network first, or look for exchanged labels"
        )
    low, high = 0.0, 1.0
    while _slope(gaps, high)[0] < 0:
        low, high = high, 2 * high
    beta = high
    for _ in range(STEPS):
        slope, curvature = _slope(gaps, beta)
        low, high = (beta, high) if slope < 0 else (low, beta)
        step = slope / curvature if curvature > 0 else float("inf")
        if abs(step) <= 1e-12 * beta:
            break
        # Far from the minimum the curvature vanishes; then the bounds are halved.
        beta = beta - step if low < beta - step < high else (low + high) / 2
    return 1 / beta


def _gaps(logits: Tensor, target: Tensor) -> Tensor:
    """d: by how much each logit exceeds that of what is right, `(N, K)`, or `(N * K, 2)` for labels."""
    if target.ndim == 1:
        return logits - logits.gather(1, target[:, None])
    wrong = torch.where(target > 0.5, -logits, logits).flatten()
    return torch.stack([torch.zeros_like(wrong), wrong], dim=1)


def _slope(gaps: Tensor, beta: float) -> tuple[float, float]:
    """First and second derivative of L at `beta`."""
    p = (beta * gaps).softmax(1)
    weighed = p * gaps
    mean = weighed.sum(1)
    second = torch.dot(weighed.flatten(), gaps.flatten()) / len(gaps)
    return float(mean.mean()), float(second - mean.square().mean())

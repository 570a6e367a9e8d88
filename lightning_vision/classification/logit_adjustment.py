"""Logits moved by the logarithm of how often each class occurs: the balanced error's answer to a long tail.

Letters: B batch, K classes, z logits `(B, K)`, pi `prior` `(K,)`, tau `tau`.
"""

from collections.abc import Sequence
from math import isfinite

import torch
from torch import Tensor, nn

__all__ = ["LogitAdjustment"]


class LogitAdjustment(nn.Module):
    """Adds tau times the log of each class's share of the training images to the logits.

    In front of softmax cross entropy, while training, it is the logit-adjusted loss (Eq. 10): plain logits then
    estimate what a balanced training set would have taught, so evaluation leaves it out; this is what
    `ImageClassifier(logit_adjustment=tau)` does. `LogitAdjustment(-tau, counts)` adjusts a network afterwards that was
    trained without it (Eq. 9).

    Args:
        tau: Strength; 1 is what the theory asks for, neutral 0.
        counts: Training images of each class, or any numbers in their proportions, K numbers above 0.

    Shape:
        Logits `(B, K)`, result the same.

    Raises:
        ValueError: `tau` is not finite, or a count is not above 0.

    Example:
        >>> adjust = LogitAdjustment(1.0, [3, 1])
        >>> adjust(torch.zeros(1, 2)).softmax(1)
        tensor([[0.7500, 0.2500]])

    Reference: Menon et al. 2021, arXiv:2007.07314

    BibTeX:
        @inproceedings{menon2021longtail,
          title = {Long-tail learning via logit adjustment},
          author = {Menon, Aditya Krishna and Jayasumana, Sadeep and Rawat, Ankit Singh and Jain, Himanshu and
                    Veit, Andreas and Kumar, Sanjiv},
          booktitle = {International Conference on Learning Representations},
          year = {2021},
          eprint = {2007.07314},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        In nothing; the pairwise margins of its Eq. 11 are left out.

    See also:
        `ImageClassifier(class_weights="balanced")`, which weighs the images of rare classes instead.
    """

    shift: Tensor

    def __init__(self, tau: float, counts: Sequence[float]) -> None:
        super().__init__()
        if not isfinite(tau):
            raise ValueError(f"the tau of a logit adjustment is {tau}; give a finite number, 0 is neutral")
        if not all(isfinite(count) and count > 0 for count in counts):
            raise ValueError(f"a logit adjustment needs counts above 0, got {list(counts)}; leave out empty classes")
        prior = torch.tensor(counts, dtype=torch.float64)
        shift = tau * (prior / prior.sum()).log()
        self.register_buffer("shift", shift.float(), persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        """`z + tau log pi`, `(B, K)`."""
        return logits + self.shift

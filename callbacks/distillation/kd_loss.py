"""Knowledge distillation: a student's class probabilities are pulled towards its teacher's, both softened."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ._softened import softened

__all__ = ["kd_loss", "mean_logits"]


def kd_loss(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """Kullback-Leibler divergence of a student's class probabilities from its teacher's, softened by a temperature.

    With z logits, T the temperature and sigma the softmax: T^2 KL(sigma(z_teacher / T) || sigma(z_student / T)), the
    mean over images; the square keeps gradients of one size. Computed in at least float32.

    Args:
        student: Logits `(B, K)`.
        teacher: Logits `(B, K)`; no gradient is taken away from it here.
        temperature: T, above 0; 1 softens nothing.

    Example:
        >>> import torch
        >>> logits = torch.randn(8, 10)
        >>> float(kd_loss(logits, logits))
        0.0

    Reference: Hinton et al. 2015, arXiv:1503.02531
    """
    ours, theirs = (softened(logits, temperature) for logits in (student, teacher))
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def mean_logits(answers: Sequence[Tensor], temperature: float = 1.0) -> Tensor:
    """Logits `(B, K)` whose softened probabilities are the mean of those of several networks.

    Args:
        answers: Logits `(B, K)` of each; those of one alone come back as they are.
        temperature: T, above 0: it is softmax(z / T) that is averaged.

    Example:
        >>> import torch
        >>> one, other = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0]])
        >>> mean_logits([one, other]).softmax(1)
        tensor([[0.5000, 0.5000]])

    Reference: Shen & Savvides 2020, arXiv:2009.08453
    """
    if len(answers) == 1:
        return answers[0]
    each = torch.stack([softened(logits, temperature) for logits in answers])
    return temperature * (each.logsumexp(dim=0) - math.log(len(answers)))

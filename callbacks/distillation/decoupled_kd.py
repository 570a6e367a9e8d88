"""Decoupled distillation: what a teacher says of the label, and of the classes beside it, with a weight each."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["decoupled_kd_loss"]


def decoupled_kd_loss(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    alpha: float | Tensor = 1.0,
    beta: float | Tensor = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """Distillation in two parts: how likely the label is, and how the other classes share what is left.

    With p the teacher's and q the student's probabilities at temperature T, t the label, and p' and q' those of the
    other classes among themselves: T^2 (alpha KL((p_t, 1 - p_t) || (q_t, 1 - q_t)) + beta KL(p' || q')), the mean over
    images (Eq. 7). With alpha = 1 and beta = 1 - p_t for each image it is `kd_loss` (Eq. 6); a constant `beta` keeps
    the second part large where the teacher is sure. Computed in at least float32.

    Args:
        student: Logits `(B, K)`, K at least 2.
        teacher: Logits `(B, K)`; no gradient is taken away from it here.
        target: Labels `(B,)`, integers. Probabilities `(B, K)` have their likeliest class as the label, the first of
            equal ones, for the two parts are defined for one class alone.
        alpha: Weight of the label's part, for all images or `(B,)`.
        beta: Weight of the other classes' part, for all images or `(B,)`; the authors' code has 8 on
            CIFAR-100 unless a pair of networks has its own (2 or 6), and 0.5 on ImageNet.
        temperature: T, above 0.

    Raises:
        ValueError: There are fewer than two classes.

    Example:
        >>> import torch
        >>> logits = torch.randn(8, 10)
        >>> float(decoupled_kd_loss(logits, logits, torch.arange(8)))
        0.0

    Reference: Zhao et al. 2022, arXiv:2203.08679

    BibTeX:
        @inproceedings{zhao2022decoupled,
          title = {Decoupled Knowledge Distillation},
          author = {Zhao, Borui and Cui, Quan and Song, Renjie and Qiu, Yiyu and Liang, Jiajun},
          booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
          year = {2022},
          eprint = {2203.08679},
          archivePrefix = {arXiv},
        }
    """
    if student.shape[-1] < 2:
        raise ValueError(
            f"decoupled_kd_loss: the logits have the shape {tuple(student.shape)}, so there is no class beside the "
            "label; give logits (B, K) of at least two classes."
        )
    labels = (target.argmax(dim=-1) if target.ndim == student.ndim else target)[:, None]
    (own, others), (their, their_others) = (_parts(it, labels, temperature) for it in (student, teacher))
    of_label = F.kl_div(own, their, reduction="none", log_target=True).sum(dim=-1)
    of_others = F.kl_div(others, their_others, reduction="none", log_target=True).sum(dim=-1)
    return temperature**2 * (alpha * of_label + beta * of_others).mean()


def _parts(logits: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Logarithms of (p_t, 1 - p_t), `(B, 2)`, and of the other classes among themselves, `(B, K - 1)`."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    every = wide.div(temperature).log_softmax(dim=-1)
    beside = torch.arange(logits.shape[-1] - 1, device=logits.device)
    # Not a mask of the label with -inf, of which the divergence would make 0 * inf.
    others = every.gather(1, beside + (beside >= labels))
    rest = others.logsumexp(dim=-1, keepdim=True)
    return torch.cat([every.gather(1, labels), rest], dim=-1), others - rest

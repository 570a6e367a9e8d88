"""Relational distillation: how the images of a batch lie to each other is handed on, not where each of them lies."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["relational_angle_loss", "relational_distance_loss"]


def relational_distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Difference between the distances of a batch's images in a student's embedding and in its teacher's.

    Distances |x_i - x_j| are divided by their mean over the pairs of the batch (Eq. 4 to 6); l is Huber's loss with
    delta = 1, and the mean is taken over pairs of different images. Neither a shift, a rotation, a reflection nor a
    scale of an embedding changes it, and widths may differ. Computed in at least float32.

    Args:
        student: `(B, ...)`, flattened, so average maps over positions before; 0 for fewer than two images.
        teacher: `(B, ...)`, of the same images.

    Example:
        >>> import torch
        >>> embedding = torch.eye(4)
        >>> float(relational_distance_loss(2 * embedding + 1, embedding))
        0.0

    Reference: Park et al. 2019, arXiv:1904.05068

    BibTeX:
        @inproceedings{park2019relational,
          title = {Relational Knowledge Distillation},
          author = {Park, Wonpyo and Kim, Dongju and Lu, Yan and Cho, Minsu},
          booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
          year = {2019},
          eprint = {1904.05068},
          archivePrefix = {arXiv},
        }
    """
    if len(student) < 2:
        return student.sum() * 0
    ours, theirs = (_relative(torch.pdist(_flat(it))) for it in (student, teacher))
    return F.smooth_l1_loss(ours, theirs)


def relational_angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Difference between the angles that three images form in a student's embedding and in its teacher's.

    For images i, j, k the cosine at j, <e_ij, e_kj> with e_ij = (x_i - x_j) / |x_i - x_j| (Eq. 7 and 8); l is Huber's
    loss with delta = 1, and the mean is taken over triples of different images. Neither a shift, a rotation, a
    reflection nor a scale of an embedding changes it. B^2 C + B^3 numbers are held at once. Computed in at least
    float32.

    Args:
        student: `(B, ...)`, flattened, so average maps over positions before; 0 for fewer than three images.
        teacher: `(B, ...)`, of the same images.

    Example:
        >>> import torch
        >>> embedding = torch.eye(4)
        >>> float(relational_angle_loss(4 * embedding, embedding))
        0.0

    Reference: Park et al. 2019, arXiv:1904.05068
    """
    count = len(student)
    if count < 3:
        return student.sum() * 0
    ours, theirs = (_cosines(_flat(it)) for it in (student, teacher))
    # The pairs among the triples add nothing: both sides have 0 where i or k is j, and 1 where i is k.
    return F.smooth_l1_loss(ours, theirs, reduction="sum") / (count * (count - 1) * (count - 2))


def _flat(embedding: Tensor) -> Tensor:
    return embedding.flatten(1).to(torch.promote_types(embedding.dtype, torch.float32))


def _relative(distances: Tensor) -> Tensor:
    return distances / distances.mean().clamp(min=torch.finfo(distances.dtype).tiny)


def _cosines(flat: Tensor) -> Tensor:
    """`(B, B, B)`: of j, i and k."""
    directions = F.normalize(flat[None] - flat[:, None], dim=2)
    return directions @ directions.mT

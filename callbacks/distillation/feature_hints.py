"""Feature hints: a layer of the student learns to say what a layer of its teacher says, through an adapter."""

import torch
import torch.nn.functional as F
from torch import Size, Tensor, nn

from ._layouts import at_one_size, is_aligned, positions

__all__ = ["HintAdapter", "hint_loss"]


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the mean squared difference between a student's features, adapted, and a teacher's.

    Eq. 3, with a mean over features where the authors have a sum, so that one weight suits layers of any size. Maps of
    two sizes are brought together by averaging the larger down; tokens beside maps, or beside another number of tokens,
    are laid out as a square, without those in front of it that stand for no patch. Computed in at least float32.

    Args:
        student: `(B, C, H, W)`, `(B, N, C)` or `(B, C)`, of the teacher's width C.
        teacher: Of the same images; no gradient is taken away from it here.

    Raises:
        ValueError: The two cannot be compared.

    Example:
        >>> import torch
        >>> float(hint_loss(torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 8, 8)))
        0.5

    Reference: Romero et al. 2015, arXiv:1412.6550

    BibTeX:
        @inproceedings{romero2015fitnets,
          title = {FitNets: Hints for Thin Deep Nets},
          author = {Romero, Adriana and Ballas, Nicolas and Kahou, Samira Ebrahimi and Chassang, Antoine and
                    Gatta, Carlo and Bengio, Yoshua},
          booktitle = {International Conference on Learning Representations},
          year = {2015},
          eprint = {1412.6550},
          archivePrefix = {arXiv},
        }
    """
    if not is_aligned(student.shape, teacher.shape):
        student, teacher = positions(student), positions(teacher)
    if student.ndim == 4:
        student, teacher = at_one_size(student, teacher)
    if student.shape != teacher.shape:
        raise ValueError(
            f"hint_loss: the student's features are {tuple(student.shape)} and the teacher's {tuple(teacher.shape)}; "
            "bring them to one width with HintAdapter."
        )
    wide = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    return F.mse_loss(student.to(wide), teacher.to(wide)) / 2


class HintAdapter(nn.Module):
    """Brings features of a student to the width of its teacher's, position by position.

    A 1x1 convolution where the two are compared as maps, a linear layer where they are tokens of one number or vectors;
    both with a bias, and drawn as torch draws them. What `hint_loss` compares is this layer's output and the teacher's
    features.

    Args:
        student: Shape of the student's features, `(B, C, H, W)`, `(B, N, C)` or `(B, C)`; B does not matter.
        teacher: Shape of the teacher's.

    Shape:
        Features of the student's shape to the same of the teacher's width; tokens beside maps become maps.

    Raises:
        ValueError: Vectors are to be compared with what has positions.

    Example:
        >>> import torch
        >>> adapter = HintAdapter(torch.Size([2, 8, 4, 4]), torch.Size([2, 32, 8, 8]))
        >>> adapter(torch.rand(5, 8, 4, 4)).shape
        torch.Size([5, 32, 4, 4])

    Reference: Romero et al. 2015, arXiv:1412.6550
    """

    def __init__(self, student: Size, teacher: Size) -> None:
        super().__init__()
        if not {len(student), len(teacher)} <= {3, 4} and not len(student) == len(teacher) == 2:
            raise ValueError(
                f"HintAdapter: a student's layer puts out {tuple(student)} and the teacher's {tuple(teacher)}; name "
                "layers that both put out maps (B, C, H, W) or tokens (B, N, C), or both vectors (B, C)."
            )
        self.as_maps = not (len(student) < 4 and is_aligned(student, teacher))
        ours, theirs = _width(student), _width(teacher)
        self.layer = nn.Conv2d(ours, theirs, 1) if self.as_maps else nn.Linear(ours, theirs)

    def forward(self, features: Tensor) -> Tensor:
        adapted: Tensor = self.layer(positions(features) if self.as_maps else features)
        return adapted


def _width(shape: Size) -> int:
    return shape[1] if len(shape) == 4 else shape[-1]

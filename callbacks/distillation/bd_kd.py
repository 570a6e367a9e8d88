"""BD-KD: teacher and student train together, and each image says which way round they are compared.

Amara et al. 2022, arXiv:2212.12965. Letters: z logits, p their softened probabilities, H their entropy, T the
temperature; t the teacher, s the student. Forward is KL(p_t || p_s), which spreads the student over all that its
teacher holds possible; reverse is KL(p_s || p_t), which draws it to what the teacher is surest of.
"""

from collections.abc import Mapping
from typing import Literal, final, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..hooks._checks import above_zero, number
from ..hooks._teachers import Teacher
from ..hooks.online import Online
from ._softened import softened
from .kd_loss import kd_loss

__all__ = ["BDKD", "bd_kd_loss", "bd_kd_teacher_loss", "bd_kd_weights"]

EntropyRule = Literal["share", "step", "none"]


def bd_kd_weights(
    student: Tensor, teacher: Tensor, temperature: float = 4.0, entropy_rule: EntropyRule = "share"
) -> tuple[Tensor, Tensor]:
    """What the forward and the reverse divergence of each image are weighted with, by how sure the two networks are.

    The two weights of an image sum to 2 and are 1 each where the entropies are equal. A student that is surer than its
    teacher gets more of the forward divergence, which spreads it; one that is less sure, more of the reverse. Neither
    weight carries a gradient.

    Args:
        student: Logits `(B, K)`.
        teacher: Logits `(B, K)`.
        temperature: T of the softmax whose entropies are compared, above 0.
        entropy_rule: With `share` the forward weight is 2 H_t / (H_t + H_s); with `step` the surer of the two decides,
            and the weights are 2 and 0; with `none` they are 1 and 1 whatever the entropies.

    Shape:
        Two of `(B,)`, forward and reverse.

    Example:
        >>> import torch
        >>> unsure, sure = torch.tensor([[0.0, 0.0]]), torch.tensor([[9.0, 0.0]])
        >>> bd_kd_weights(student=sure, teacher=unsure, temperature=1.0, entropy_rule="step")
        (tensor([2.]), tensor([0.]))

    Reference: Amara et al. 2022, arXiv:2212.12965
    """
    ours, theirs = (_entropy(logits.detach(), temperature) for logits in (student, teacher))
    # Equal but for rounding: a step must not decide by that, and two that are certain have no entropy to share.
    equal = torch.isclose(ours, theirs, rtol=1e-4, atol=1e-6)
    if entropy_rule == "none":
        forward = torch.ones_like(ours)
    elif entropy_rule == "step":
        forward = torch.where(equal, 1.0, 2.0 * (theirs > ours))
    else:
        forward = torch.where(equal, 1.0, 2 * theirs / (theirs + ours))
    return forward, 2 - forward


def bd_kd_loss(
    student: Tensor,
    teacher: Tensor,
    alpha: float = 1.0,
    beta: float = 1.0,
    temperature: float = 4.0,
    entropy_rule: EntropyRule = "share",
) -> Tensor:
    """The student's divergences from its teacher both ways round, weighted image by image; only the student learns.

    With w and v the weights of an image, the mean over images of T^2 (alpha w KL(p_t || p_s) + beta v KL(p_s || p_t)).
    With `entropy_rule="none"` and beta 0 it is ordinary distillation, `kd_loss`, times alpha.

    Args:
        student: Logits `(B, K)`.
        teacher: Logits `(B, K)`; no gradient goes to them.
        alpha: Factor of the forward divergence, at least 0.
        beta: Factor of the reverse divergence, at least 0.
        temperature: T, above 0.
        entropy_rule: See `bd_kd_weights`.

    Example:
        >>> import torch
        >>> logits = torch.randn(8, 10)
        >>> float(bd_kd_loss(logits, logits))
        0.0

    Reference: Amara et al. 2022, arXiv:2212.12965
    """
    forward, reverse = bd_kd_weights(student, teacher, temperature, entropy_rule)
    ours, theirs = softened(student, temperature), softened(teacher.detach(), temperature)
    each = alpha * forward * _divergence(theirs, ours) + beta * reverse * _divergence(ours, theirs)
    return temperature**2 * each.mean()


def bd_kd_teacher_loss(
    teacher: Tensor, student: Tensor, target: Tensor, teacher_kd_weight: float = 0.1, temperature: float = 4.0
) -> Tensor:
    """What the teacher learns by: its cross entropy, and the reverse divergence as a mild regulariser.

    The regulariser is `teacher_kd_weight` T^2 KL(p_s || p_t), the mean over images.

    Args:
        teacher: Logits `(B, K)`.
        student: Logits `(B, K)`; no gradient goes to them.
        target: Labels `(B,)`, or their probabilities `(B, K)`.
        teacher_kd_weight: Factor of the regulariser, at least 0.
        temperature: T of the regulariser, above 0.

    Example:
        >>> import torch
        >>> logits = torch.zeros(1, 2)
        >>> bd_kd_teacher_loss(logits, logits, torch.tensor([0]))
        tensor(0.6931)

    Reference: Amara et al. 2022, arXiv:2212.12965
    """
    return F.cross_entropy(teacher, target) + teacher_kd_weight * kd_loss(teacher, student.detach(), temperature)


@final
class BDKD(Online):
    """Trains the student and a copy of its teacher together, each pulled towards the other, the teacher only mildly.

    To the loss of `training_step` it adds the student's divergences from the teacher, forward and reverse, weighted
    image by image by how sure the two are, and the teacher's own loss: cross entropy and a mild pull to the student.
    Neither network gets a gradient of the other's loss. The teacher sees the same images in train mode and trains with
    the module's optimizers; it stands in the callback's state and in no file of the module. Validations log the
    student's calibration error as `val/student_ece`, for the balance is meant for that.

    Args:
        teacher: Where the teacher begins: a network from images to logits, which is copied; the path of a checkpoint
            (`*.ckpt`) whose module it is; or a name of timm's.
        teacher_weights: Of a name: `random`, as the paper begins; `pretrained`, timm's own; or a file.
        alpha: Factor of the student's forward divergence, at least 0.
        beta: Factor of the student's reverse divergence, at least 0. Neutral: 0, and `alpha` 0.
        temperature: T of all divergences and of the entropies, above 0.
        entropy_rule: How the two divergences of an image are weighted: `share`, by each network's share of both
            entropies; `step`, by which is larger; `none`, alike.
        teacher_kd_weight: Factor of the teacher's divergence from the student, at least 0; 0 lets it learn by itself.
        network: Path of the part of the module that makes logits of images; empty is the module itself.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, if batches are mappings; in other batches they come second.
        ece_bins: Bins of confidence of the calibration error that validations log; 0 leaves it out.
        seed: Of the teacher's dropout and its like.
        name: Part of the state key.

    Shape:
        Images `(B, C, H, W)`, labels `(B,)` or `(B, K)`, logits `(B, K)` of both networks.

    Raises:
        ValueError: from the constructor, for a setting out of range; at set-up, for a teacher that cannot be had or
            whose classes are others than the student's, or if the network names nothing.

    Example:
        >>> import torch
        >>> from lightning_vision.callbacks import BDKD
        >>> BDKD(teacher=torch.nn.Linear(4, 2)).weights
        {'bd_kd': 1.0, 'teacher': 1.0}

    Reference: Amara et al. 2022, arXiv:2212.12965

    BibTeX:
        @article{amara2022bdkd,
          title = {{BD-KD}: Balancing the Divergences for Online Knowledge Distillation},
          author = {Amara, Ibtihel and Sepahvand, Nazanin and Meyer, Brett H. and Gross, Warren J. and Clark, James J.},
          journal = {arXiv preprint arXiv:2212.12965},
          year = {2022},
          eprint = {2212.12965},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        Its abstract and summaries say that the divergences are weighted sample by sample by the gap of the entropies,
        and that the teacher's loss has the reverse one; the formula of the weights, the direction of the gap and the
        default factors are ours. One optimizer steps both networks.

    See also:
        `Distillation`, whose teacher stands still.
    """

    neutral = ({"alpha": 0.0, "beta": 0.0},)
    adds_parameters = (
        "optimizers hold the teacher besides the module's parameters; files have it in the callback's state"
    )

    def __init__(
        self,
        teacher: Teacher,
        teacher_weights: str = "random",
        alpha: float = 1.0,
        beta: float = 1.0,
        temperature: float = 4.0,
        entropy_rule: EntropyRule = "share",
        teacher_kd_weight: float = 0.1,
        network: str = "",
        image_key: str = "image",
        target_key: str = "target",
        ece_bins: int = 15,
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        factors = {"alpha": alpha, "beta": beta, "teacher_kd_weight": teacher_kd_weight}
        for argument, value in factors.items():
            number("BDKD", argument, value, 0)
        above_zero("BDKD", "temperature", temperature)
        if entropy_rule not in get_args(EntropyRule):
            raise ValueError(f"BDKD: entropy_rule is {entropy_rule!r}; give 'share', 'step' or 'none'.")
        # A teacher that nobody learns from need not train.
        on = 1.0 if alpha or beta else 0.0
        super().__init__(
            teacher=teacher,
            teacher_weights=teacher_weights,
            weights={"bd_kd": on, "teacher": on},
            network=network,
            image_key=image_key,
            target_key=target_key,
            ece_bins=ece_bins,
            seed=seed,
            name=name,
        )
        self.alpha, self.beta, self.teacher_kd_weight = alpha, beta, teacher_kd_weight
        self.temperature, self.entropy_rule = temperature, entropy_rule

    def compare_both(self, student: Tensor, teacher: Tensor, target: Tensor) -> Mapping[str, Tensor]:
        settings = (self.alpha, self.beta, self.temperature, self.entropy_rule)
        own = bd_kd_teacher_loss(teacher, student, target, self.teacher_kd_weight, self.temperature)
        return {"bd_kd": bd_kd_loss(student, teacher, *settings), "teacher": own}


def _entropy(logits: Tensor, temperature: float) -> Tensor:
    return torch.special.entr(softened(logits, temperature).exp()).sum(dim=1)


def _divergence(of: Tensor, by: Tensor) -> Tensor:
    """KL(of || by) of each image, `(B,)`, for log probabilities `(B, K)`."""
    return F.kl_div(by, of, reduction="none", log_target=True).sum(dim=1)

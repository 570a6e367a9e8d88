"""MEAL V2: the mean softmax of several teachers is all that a trained student learns from.

Shen and Savvides 2020, arXiv:2009.08453. No hard labels; beside the divergence a small discriminator learns to tell the
student's answers from the teachers' mean, and the student to be mistaken for it. Letters: K classes, T temperature.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..hooks._checks import above_zero, number, whole
from ..hooks._teachers import Teacher
from ..hooks.taught import Answer, Taught
from .kd_loss import kd_loss, mean_logits

__all__ = ["MEALV2", "AnswerDiscriminator", "discriminator_loss", "reverse_gradient"]


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


def reverse_gradient(tensor: Tensor) -> Tensor:
    """The same tensor, whose gradient is turned round: what is before it climbs what the rest descends.

    Example:
        >>> import torch
        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> torch.autograd.grad(2 * reverse_gradient(x), x)
        (tensor(-2.),)

    Reference: Ganin & Lempitsky 2015, arXiv:1409.7495
    """
    reversed_: Tensor = _Reversed.apply(tensor)
    return reversed_


class AnswerDiscriminator(nn.Sequential):
    """Three linear layers that tell from the log probabilities of an image whose they are, teacher's or student's.

    The last layer begins at zero, so that the first answer is undecided and a student feels nothing of it at first.

    Args:
        classes: K, at least 1.
        width: Of the first hidden layer, at least 1; the second has a quarter of it, at least one.

    Shape:
        `(B, K)` to `(B,)`, above zero for a teacher.

    Example:
        >>> import torch
        >>> AnswerDiscriminator(10, 16)(torch.zeros(1, 10))
        tensor([0.], grad_fn=<SqueezeBackward1>)

    Reference: Shen & Savvides 2020, arXiv:2009.08453
    """

    def __init__(self, classes: int, width: int) -> None:
        narrow = max(width // 4, 1)
        last = nn.Linear(narrow, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        super().__init__(nn.Linear(classes, width), nn.ReLU(), nn.Linear(width, narrow), nn.ReLU(), last)

    def forward(self, log_probabilities: Tensor) -> Tensor:
        decided: Tensor = super().forward(log_probabilities)
        return decided.squeeze(1)


def discriminator_loss(discriminator: nn.Module, student: Tensor, teacher: Tensor) -> Tensor:
    """Binary cross entropy of telling a teacher's answers from the student's, whose gradient is turned round.

    The discriminator descends it, the student climbs it, in one backward pass and by one optimizer.

    Args:
        discriminator: `(B, K)` to `(B,)`, above zero for a teacher.
        student: Logits `(B, K)`.
        teacher: Logits `(B, K)`; no gradient goes to them.

    Example:
        >>> import torch
        >>> answers = torch.zeros(4, 10)
        >>> discriminator_loss(AnswerDiscriminator(10, 16), answers, answers)
        tensor(0.6931, grad_fn=<BinaryCrossEntropyWithLogitsBackward0>)

    Reference: Shen & Savvides 2020, arXiv:2009.08453
    """
    # Log probabilities, for logits of one network differ from those of another by a number that says nothing.
    answers = torch.cat([reverse_gradient(student), teacher.detach()])
    answers = answers.to(torch.promote_types(answers.dtype, torch.float32)).log_softmax(dim=1)
    labels = torch.arange(2, device=answers.device).repeat_interleave(len(student))
    # Of a run in half precision throughout; under autocast its weights are wide.
    like = next(discriminator.parameters(), answers)
    told = discriminator(answers.to(like.dtype)).to(answers.dtype)
    return F.binary_cross_entropy_with_logits(told, labels.to(answers.dtype))


@final
class MEALV2(Taught):
    """Teaches a trained student by the mean probabilities of several teachers alone, and by a small discriminator.

    Begin with trained weights of the student, with a small learning rate and without weight decay, as the paper does:
    it is a way to make a good network better. The loss of `training_step`, which knows hard labels, is left out unless
    `hard_weight` says otherwise; logs and metrics of the module are as ever. Teachers answer in evaluation mode and
    without gradients. The discriminator trains with the module's optimizer; it stands in the callback's state and in no
    file of the module.

    Args:
        teacher: Teachers, a list or one: a network from images to logits, the path of a checkpoint (`*.ckpt`) whose
            module is the teacher, or a name of timm's.
        teacher_weights: Of names: `pretrained`, timm's own; `random`; or a file.
        weight: Factor of the divergence, at least 0; 1 as the authors. Neutral: 0, `discriminator_weight` 0 and
            `hard_weight` 1.
        discriminator_weight: Factor of the discriminator's loss, at least 0; 0 leaves the discriminator out. The
            authors have 1 and no turned gradient.
        discriminator_width: Of its first hidden layer, at least 1; the second has a quarter of it.
        temperature: T, above 0; 1 as the authors, which softens nothing.
        hard_weight: Factor of the module's own loss, at least 0; 0 as the paper, whose point it is.
        network: Path of the part of the module that makes logits of images; empty is the module itself.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, if batches are mappings; in other batches they come second.
        seed: Of the first weights of the discriminator.
        name: Part of the state key.

    Shape:
        Images `(B, C, H, W)`, logits `(B, K)` of the student and of each teacher.

    Raises:
        ValueError: from the constructor, for a setting out of range; at set-up, for a teacher that cannot be had or
            whose classes are others than the student's, or if the network names nothing.

    Example:
        >>> import torch
        >>> from lightning_vision.callbacks import MEALV2
        >>> MEALV2(teacher=[torch.nn.Linear(4, 2), torch.nn.Linear(4, 2)]).weights
        {'distillation': 1.0, 'discriminator': 1.0}

    Reference: Shen & Savvides 2020, arXiv:2009.08453

    BibTeX:
        @article{shen2020meal,
          title = {{MEAL V2}: Boosting Vanilla {ResNet-50} to 80\\%+ Top-1 Accuracy on {ImageNet} without Tricks},
          author = {Shen, Zhiqiang and Savvides, Marios},
          journal = {arXiv preprint arXiv:2009.08453},
          year = {2020},
          eprint = {2009.08453},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        The student climbs the discriminator's loss, as an adversary's counterpart does; the authors' script descends it
        with both. The discriminator reads log probabilities where theirs reads logits, has one answer where theirs has
        two behind a ReLU, and begins undecided.

    See also:
        `Distillation`, which keeps the labels.
    """

    neutral = ({"weight": 0.0, "discriminator_weight": 0.0, "hard_weight": 1.0},)
    adds_parameters = "optimizers hold a discriminator besides the module's parameters; files have it in its state"

    def __init__(
        self,
        teacher: Teacher | Sequence[Teacher],
        teacher_weights: str = "pretrained",
        weight: float = 1.0,
        discriminator_weight: float = 1.0,
        discriminator_width: int = 64,
        temperature: float = 1.0,
        hard_weight: float = 0.0,
        network: str = "",
        image_key: str = "image",
        target_key: str = "target",
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        factors = {"weight": weight, "discriminator_weight": discriminator_weight, "hard_weight": hard_weight}
        for argument, value in factors.items():
            number("MEALV2", argument, value, 0)
        above_zero("MEALV2", "temperature", temperature)
        whole("MEALV2", "discriminator_width", discriminator_width, 1)
        weights = {"distillation": weight, "discriminator": discriminator_weight}
        super().__init__(
            teacher=teacher,
            teacher_weights=teacher_weights,
            weights={term: it for term, it in weights.items() if it},
            own_weight=hard_weight,
            network=network,
            image_key=image_key,
            target_key=target_key,
            seed=seed,
            name=name,
        )
        self.weight, self.discriminator_weight, self.hard_weight = weight, discriminator_weight, hard_weight
        self.discriminator_width, self.temperature = discriminator_width, temperature

    def parts(
        self, student: Mapping[str, torch.Size], teachers: Sequence[Mapping[str, torch.Size]]
    ) -> Mapping[str, nn.Module]:
        if not self.discriminator_weight:
            return {}
        return {"discriminator": AnswerDiscriminator(student[""][1], self.discriminator_width)}

    def compare(self, batch: Any, student: Answer, teachers: Sequence[Answer]) -> Mapping[str, Tensor]:
        terms, mean = dict[str, Tensor](), mean_logits([it.logits for it in teachers], self.temperature)
        if self.weight:
            terms["distillation"] = kd_loss(student.logits, mean, self.temperature)
        if self.discriminator_weight:
            terms["discriminator"] = discriminator_loss(self.trained["discriminator"], student.logits, mean)
        return terms

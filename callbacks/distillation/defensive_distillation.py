"""Defensive distillation: a network is taught at a temperature that flattens its softmax, and used without it.

Papernot et al. 2016, arXiv:1511.04508, section IV. Letters: z logits, T the temperature, sigma the softmax. Its
gradients become small, which hides them from attacks like FGSM; Carlini and Wagner 2016, arXiv:1608.04644, show that it
does no more than that.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..hooks._checks import above_zero
from ..hooks._teachers import Teacher
from ..hooks.answering import Answering
from ..hooks.taught import Answer
from .kd_loss import mean_logits

__all__ = ["DefensiveDistillation", "tempered_cross_entropy"]


def tempered_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cross entropy of sigma(z_student / T) with sigma(z_teacher / T), the mean over images; no factor T^2.

    Its gradient is that of `kd_loss` divided by T^2. Computed in at least float32.

    Args:
        student: Logits `(B, K)`.
        teacher: Logits `(B, K)`.
        temperature: T, above 0.

    Example:
        >>> import torch
        >>> from lightning_vision.callbacks import tempered_cross_entropy
        >>> tempered_cross_entropy(torch.zeros(1, 2), torch.zeros(1, 2), temperature=20.0)
        tensor(0.6931)

    Reference: Papernot et al. 2016, arXiv:1511.04508
    """
    ours, theirs = (it.to(torch.promote_types(it.dtype, torch.float32)) / temperature for it in (student, teacher))
    return F.cross_entropy(ours, theirs.softmax(dim=1))


@final
class DefensiveDistillation(Answering):
    """Trains a network at a high temperature, on labels or on a teacher that was trained so, to be used at 1.

    The recipe is two fits. In the first, without a teacher, the module's own loss sees the logits divided by the
    temperature. In the second, with the first one's checkpoint as teacher, the loss is the cross entropy with the
    teacher's probabilities at the same temperature, and the labels have no part in it. Evaluation sees the logits
    themselves: they are large, the softmax saturates, and its gradients vanish.

    It is no defence: attacks on the logits, such as Carlini and Wagner's, succeed as before. It is here to be compared
    with, by `AdversarialAccuracy`.

    Args:
        teacher: None for the first fit. For the second a network `(B, C, H, W)` to logits `(B, K)`, the path of a
            checkpoint (`*.ckpt`), a name of timm's, or a list of those, whose probabilities are averaged.
        temperature: T, above 0; 20 is among the authors' (1 to 100). Neutral: 1 without a teacher.
        teacher_weights: Of a name: `pretrained`, timm's own; `random`; or a file.
        network: Path of the part of the module that makes logits of images; empty is the module itself.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, if batches are mappings; in other batches they come second.
        name: Part of the state key.

    Shape:
        Images `(B, C, H, W)`, logits `(B, K)`.

    Raises:
        ValueError: from the constructor, for a temperature that is not above 0; at set-up, if a teacher does not fit;
            at the first step of a fit without a teacher, if the network puts out no tensor in training.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import DefensiveDistillation
        >>> trainer = Trainer(callbacks=[DefensiveDistillation()], accelerator="cpu", logger=False)

    Reference: Papernot et al. 2016, arXiv:1511.04508

    BibTeX:
        @inproceedings{papernot2016distillation,
          title = {Distillation as a Defense to Adversarial Perturbations against Deep Neural Networks},
          author = {Papernot, Nicolas and McDaniel, Patrick and Wu, Xi and Jha, Somesh and Swami, Ananthram},
          booktitle = {IEEE Symposium on Security and Privacy},
          year = {2016},
          eprint = {1511.04508},
          archivePrefix = {arXiv},
        }

    See also:
        `Distillation`, which is the second fit with `kd_weight` 1 / T^2 and `hard_weight` 0.
    """

    neutral = ({"teacher": None, "temperature": 1.0},)

    def __init__(
        self,
        teacher: Teacher | list[Teacher] | None = None,
        temperature: float = 20.0,
        teacher_weights: str = "pretrained",
        network: str = "",
        image_key: str = "image",
        target_key: str = "target",
        name: str | None = None,
    ) -> None:
        above_zero("DefensiveDistillation", "temperature", temperature)
        super().__init__(
            teacher=[] if teacher is None else teacher,
            teacher_weights=teacher_weights,
            network=network,
            image_key=image_key,
            target_key=target_key,
            weights={} if teacher is None else {"defensive_distillation": 1.0},
            own_weight=1.0 if teacher is None else 0.0,
            name=name,
        )
        self.temperature = temperature

    @property
    def silent(self) -> bool:
        return not self.weights and self.temperature == 1

    def changed_parts(self, network: nn.Module) -> Sequence[str]:
        return () if self.weights else ("",)

    def answered(self, path: str, given: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            raise ValueError(
                f"DefensiveDistillation: in training the network puts out a {type(output).__name__} and no logits, "
                "which a temperature could divide; name with network= the part that puts them out."
            )
        return output / self.temperature

    def compare(self, batch: Any, student: Answer, teachers: Sequence[Answer]) -> Mapping[str, Tensor]:
        if not teachers:
            return {}
        decided = mean_logits([it.logits for it in teachers], self.temperature)
        return {"defensive_distillation": tempered_cross_entropy(student.logits, decided, self.temperature)}

"""The taught seam: terms of the loss that compare the network with what teachers make of the same images.

Teachers are attributes of the callback alone: no state dict, optimizer, DDP wrapper or summary knows of them. What
trains beside the network, as an adapter between two widths, hangs on the module (`_added.py`) while a fit runs.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from ._fields import Fields
from ._teachers import Teacher, build_teachers
from .loss import Loss

__all__ = ["Answer", "Taught"]


@dataclass(frozen=True)
class Answer:
    """What a network makes of a batch.

    Args:
        logits: `(B, K)`.
        layers: By path below the network, what the chosen layers put out.
    """

    logits: Tensor
    layers: Mapping[str, Tensor]


class Taught(Loss):
    """Adds terms that need what teachers answer to the images that `training_step` saw.

    Teachers answer in evaluation mode, without gradients and in the run's precision.

    Args:
        teacher: A network `(B, C, H, W)` to logits `(B, K)`, the path of a checkpoint, a name of timm's, or a list.
        teacher_weights: Of a name: `pretrained`, `random` or a file.
        network: Path of the part of the module that makes logits of images; empty is the module itself.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, if batches are mappings; in other batches they come second.
        others: Go to the next base class, among them `weights`, `own_weight` and `name`.
    """

    def __init__(
        self,
        *,
        teacher: Teacher | Sequence[Teacher],
        teacher_weights: str,
        network: str,
        image_key: str,
        target_key: str,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.teacher, self.teacher_weights, self.network = teacher, teacher_weights, network
        self.image_key, self.target_key = image_key, target_key
        self.fields = Fields(type(self).__name__, image_key, target_key)
        self.teachers: list[nn.Module] = []  # during a fit
        self.trained: dict[str, nn.Module] = {}  # during a fit, what `parts` made, by name

    def student_layers(self, network: nn.Module) -> Sequence[str]:
        """Paths of the student's layers that `compare` needs, below the network's own."""
        return ()

    def teacher_layers(self, teacher: nn.Module) -> Sequence[str]:
        """Paths of a teacher's layers that `compare` needs."""
        return ()

    def parts(
        self, student: Mapping[str, torch.Size], teachers: Sequence[Mapping[str, torch.Size]]
    ) -> Mapping[str, nn.Module]:
        """What trains beside the network, by name, the same on all ranks; the optimizers of the module step it.

        Args:
            student: By path of `student_layers`, the shape of what the layer puts out for two images; "" are logits.
            teachers: The same of each teacher.
        """
        return {}

    @abstractmethod
    def compare(self, batch: Any, student: Answer, teachers: Sequence[Answer]) -> Mapping[str, Tensor]:
        """The terms of one batch, a scalar under each name of `weights`; `trained` holds what `parts` made."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and not self.off:
            self.teachers = build_teachers(type(self).__name__, self.teacher, self.teacher_weights, None, None)
            self.undo_later(self.teachers.clear)
            below = f"{self.network}." if self.network else ""
            layers = self.student_layers(pl_module.get_submodule(self.network))
            self.outputs_of = (self.network, *(f"{below}{it}" for it in layers))
        super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        for teacher in self.teachers:
            teacher.to(pl_module.device)

    def term(self, pl_module: LightningModule, batch: Any, outputs: Mapping[str, list[Any]]) -> Mapping[str, Tensor]:
        images = self.fields.image(batch)
        logits, *layers = (outputs[path][0] for path in self.outputs_of)
        paths = [path.removeprefix(f"{self.network}.") for path in self.outputs_of[1:]]
        student = Answer(logits, dict(zip(paths, layers, strict=True)))
        return self.compare(batch, student, [self.answer(teacher, images) for teacher in self.teachers])

    @torch.no_grad()
    def answer(self, teacher: nn.Module, images: Tensor) -> Answer:
        """What a teacher makes of images `(B, C, H, W)`."""
        layers: dict[str, Any] = {}
        return Answer(teacher(images), layers)

"""DINO: a student names small views of an image as its own slow copy names large ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .gather import mean_of_all
from .heads import mlp
from .joint import embed
from .momentum import MomentumLearner
from .momentum_copy import MomentumCopy
from .prototypes import Prototypes
from .views import View

__all__ = ["DINO", "Centre", "dino_loss"]


def dino_loss(
    teacher: Sequence[Tensor], student: Sequence[Tensor], centre: Tensor, teacher_temp: float, student_temp: float
) -> Tensor:
    """The mean cross-entropy of what the student says to one view and the teacher to another one (equation 3).

    Args:
        teacher: Outputs `(B, K)` to the first views; no gradient goes there.
        student: Outputs `(B, K)` to all views, the teacher's first.
        centre: What is taken from the teacher's outputs, `(K,)`.
        teacher_temp: Divides these then, above 0; small ones sharpen.
        student_temp: Divides the student's, above 0.

    Shape:
        A scalar: over all pairs of different views and the rows of all processes, where it is the same.
    """
    said = [(outputs / student_temp).log_softmax(dim=1) for outputs in student]
    total = torch.stack(said).sum(dim=0)
    rows = torch.zeros_like(total[:, 0])
    for view, outputs in enumerate(teacher):
        wanted = ((outputs - centre) / teacher_temp).softmax(dim=1).detach()
        rows = rows - (wanted * (total - said[view])).sum(dim=1)
    return mean_of_all(rows / (len(teacher) * (len(student) - 1)))


class Centre(nn.Module):
    """The mean of a teacher's outputs, followed slowly (equation 4).

    It moves by what was collected since it moved last, by all processes together: the micro-batches of an optimizer
    step count as one batch.

    Args:
        dim: K.
        momentum: Share of it that stays at a step, 0..1.
    """

    mean: Tensor

    def __init__(self, dim: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(dim))
        # No buffer: DDP would put those of rank 0 in its place at the next micro-batch.
        self._collected: dict[int, Tensor] = {}

    @torch.no_grad()
    def collect(self, batch_idx: int, outputs: Sequence[Tensor]) -> None:
        """Count a micro-batch's outputs, each `(B, K)`; the same number again takes their place."""
        rows = torch.cat([*outputs])
        self._collected[batch_idx] = torch.cat([rows.sum(dim=0), rows.new_tensor([len(rows)])])

    def forget(self) -> None:
        """Leave out what was collected and has not moved it."""
        self._collected.clear()

    @torch.no_grad()
    def follow(self) -> None:
        """Move once, by what was collected on all processes; all must call it."""
        if not self._collected:
            return
        collected = torch.stack([*self._collected.values()]).sum(dim=0)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(collected)
        self.mean.lerp_((collected[:-1] / collected[-1]).to(self.mean.dtype), 1 - self.momentum)
        self.forget()


class DINO(MomentumLearner):
    r"""Teaches a network by its own slow copy, which sees large views while the network sees small ones, too.

    What keeps all outputs from becoming one: the centre is taken from the teacher's outputs, and a low temperature
    sharpens them. Logs `loss` and nothing else.

    Args:
        out_dim: K, the width of the outputs.
        hidden_dim: Width of the head's two inner layers.
        bottleneck_dim: Width of what is compared with the K directions of the last layer.
        head_norm: Whether the head has batch norms; the authors have none.
        norm_last_layer: Whether the last layer's rows keep length 1; free ones are less stable.
        freeze_last_layer: Epochs at the start in which the last layer does not learn; neutral 0.
        global_views: How many of the first views the teacher sees.
        student_temp: Temperature of the student, above 0.
        warmup_teacher_temp: Temperature of the teacher in the first epoch, above 0.
        teacher_temp: The same after the warm-up.
        warmup_teacher_temp_epochs: Epochs over which it rises linearly.
        center_momentum: Share of the centre that stays at an optimizer step, 0..1.
        momentum: As `MomentumLearner`; the authors raise it to 0.9995 for small batches.
        views: As `JointEmbedding`.
        **common: As `MomentumLearner`.

    Raises:
        ValueError: as `MomentumLearner`; a temperature is not positive, or the teacher is to see more views than there
            are.

    Example:
        >>> learner = DINO(backbone="resnet8_cifar", in_channels=1, views="digits", out_dim=64, hidden_dim=32)
        >>> learner.features(torch.zeros(2, 1, 24, 24)).shape
        torch.Size([2, 64])

    Reference: Caron et al. 2021, arXiv:2104.14294

    BibTeX:
        @inproceedings{caron2021dino,
          title = {Emerging Properties in Self-Supervised Vision Transformers},
          author = {Caron, Mathilde and Touvron, Hugo and Misra, Ishan and J\'egou, Herv\'e and Mairal, Julien and
                    Bojanowski, Piotr and Joulin, Armand},
          booktitle = {IEEE/CVF International Conference on Computer Vision},
          pages = {9650--9660},
          year = {2021},
        }
    """

    copied = 3

    def __init__(
        self,
        out_dim: int = 65536,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        head_norm: bool = False,
        norm_last_layer: bool = True,
        freeze_last_layer: int = 1,
        global_views: int = 2,
        student_temp: float = 0.1,
        warmup_teacher_temp: float = 0.04,
        teacher_temp: float = 0.07,
        warmup_teacher_temp_epochs: int = 30,
        center_momentum: float = 0.9,
        momentum: float = 0.996,
        views: str | Sequence[View | Mapping[str, Any]] = "dino",
        **common: Any,
    ) -> None:
        super().__init__(momentum=momentum, views=views, **common)
        self.student_temp, self.global_views, self.freeze_last_layer = student_temp, global_views, freeze_last_layer
        self.teacher_temps = (warmup_teacher_temp, teacher_temp)
        self.warmup_teacher_temp_epochs = warmup_teacher_temp_epochs
        if min(student_temp, *self.teacher_temps) <= 0:
            raise ValueError(f"a temperature of DINO is {min(student_temp, *self.teacher_temps)}; give one above 0")
        if not 1 <= global_views <= (count := sum(view.count for view in self.views.views)):
            raise ValueError(f"global_views is {global_views} and `views` gives {count}; give 1 to {count}")
        widths = [self.feature_dim, hidden_dim, hidden_dim, bottleneck_dim]
        head = mlp(widths, norm=head_norm, activation=nn.GELU)
        self.network.add_module("projector", head.apply(_as_transformers_begin))
        self.network.add_module("prototypes", Prototypes(bottleneck_dim, out_dim, not norm_last_layer))
        self.target = MomentumCopy(self.source)
        self.centre = Centre(out_dim, center_momentum)

    def teacher_temperature(self, epoch: int) -> float:
        """The teacher's temperature in an epoch, from 0: linear from the first to the warm-up's last, then constant."""
        first, last = self.teacher_temps
        epochs = self.warmup_teacher_temp_epochs
        return last if epoch >= epochs - 1 else first + (last - first) * epoch / (epochs - 1)

    def embeddings(self, views: list[Tensor]) -> tuple[list[Tensor], ...]:
        return embed(self.network, views), embed(self.target, views[: self.global_views])

    def compare(self, *outputs: list[Tensor]) -> dict[str, Tensor]:
        student, teacher = outputs
        temperature = self.teacher_temperature(self.current_epoch)
        loss = dino_loss(teacher, student, self.centre.mean, temperature, self.student_temp)
        # Batch norms are measured again by steps without gradients.
        if self.training and torch.is_grad_enabled():
            self.centre.collect(self._batch_idx, teacher)
        return {"loss": loss}

    def on_train_start(self) -> None:
        super().on_train_start()
        self.centre.forget()  # an aborted fit's

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        if self.current_epoch < self.freeze_last_layer:
            for parameter in self.network.get_submodule("prototypes").parameters():
                parameter.grad = None

    def follow(self, step: int) -> None:
        super().follow(step)
        self.centre.follow()


def _as_transformers_begin(layer: nn.Module) -> None:
    if isinstance(layer, nn.Linear):
        nn.init.trunc_normal_(layer.weight, std=0.02)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)

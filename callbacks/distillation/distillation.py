"""A student learns from the answers of its teachers, softened by a temperature, and from what their layers put out.

Hinton et al. 2015, arXiv:1503.02531. With z logits, T the temperature, sigma the softmax and y the labels, the loss is
hard_weight H(y, sigma(z_S)) + kd_weight T^2 KL(sigma(z_T / T) || sigma(z_S / T)) + layer_weight D(F_S, F_T), where the
first is whatever `training_step` returns and D compares layers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Size, Tensor, nn

from ..hooks._checks import above_zero, number
from ..hooks.taught import Answer, Taught
from ._layouts import pooled
from .attention_transfer import attention_transfer_loss
from .decoupled_kd import decoupled_kd_loss
from .feature_hints import HintAdapter, hint_loss
from .kd_loss import kd_loss, mean_logits
from .relational_kd import relational_angle_loss, relational_distance_loss

__all__ = ["Distillation"]


@dataclass(frozen=True)
class LayerLoss:
    """How a layer of the student is compared with one of a teacher.

    Args:
        loss: Of what the two put out, the student's adapted if there is an adapter; a scalar.
        adapter: Makes, of the two shapes, what the student's goes through and what trains beside it; None is nothing.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    adapter: Callable[[Size, Size], nn.Module] | None = None


def _relations(student: Tensor, teacher: Tensor) -> Tensor:
    """Distances and angles of embeddings, the mean over positions; the authors have their weights as 1 to 2."""
    ours, theirs = pooled(student), pooled(teacher)
    return relational_distance_loss(ours, theirs) + 2 * relational_angle_loss(ours, theirs)


LAYER_LOSSES: Mapping[str, LayerLoss] = {
    "hints": LayerLoss(hint_loss, HintAdapter),
    "attention": LayerLoss(attention_transfer_loss),
    "relational": LayerLoss(_relations),
}


@final
class Distillation(Taught):
    """Trains a network on what teachers answer to its images, and on what their layers put out, beside its own loss.

    Teachers answer to the very images that `training_step` saw, mixed ones as well, in evaluation mode. They belong to
    the callback alone: the module's files, optimizers, summaries and parameter counts are those of a run without them.
    Several teachers answer as one, by the mean of their softened probabilities. Logged are `train/kd` and `train/hints`
    (`train/attention`, `train/relational`), before their weights.

    Hinton's loss with a share alpha for the teacher is `kd_weight=alpha, hard_weight=1 - alpha`; T^2 is in it already.

    Args:
        teacher: A network `(B, C, H, W)` to logits `(B, K)`, taken as it is and given its images as they are; the path
            of a checkpoint (`*.ckpt`), as a `fit` before this one wrote it; a name of timm's; or a list of those.
        teacher_weights: Of a name: `pretrained`, timm's own; `random`; or a file of weights.
        loss: Compares answers: `kd`, the divergence above, or `decoupled`, its two parts with a weight each.
        temperature: T, above 0; 4 as common on CIFAR. 1 softens nothing, large ones compare logits (their section 2.1).
        kd_weight: Factor of the comparison of answers, at least 0; 1 as the authors of `decoupled`. Neutral 0.
        hard_weight: Factor of the loss that `training_step` returns, at least 0. Neutral 1.
        beta: With `decoupled`, the weight of the classes beside the label, at least 0; 8 as its authors on CIFAR-100.
        layers: Paths of the student's layers, below `network`, each with that of the teacher's layer for it; None
            compares no layers.
        layer_loss: Compares layers: `hints`, the mean squared difference after an adapter that trains along;
            `attention`, where the two look; `relational`, how images lie to each other, by the mean of maps and tokens
            over positions. The mean over pairs of layers.
        layer_weight: Factor of the comparison of layers, at least 0. Neutral 0.
        network: Path of the part of the module that makes logits of images, as `network`; empty is the module itself,
            whose forward `training_step` calls. With `kd_weight=0` it may answer with anything, so that detectors can
            be taught by `layers`: name the part that `training_step` gives the images, as `network.model.backbone`.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, if batches are mappings; in other batches they come second.
        seed: Of the adapters' first weights, at least 0.
        name: Part of the state key.

    Shape:
        Images `(B, C, H, W)`, logits `(B, K)` of student and teachers; for `decoupled` integer labels `(B,)` or
        probabilities `(B, K)`. Layers put out maps `(B, C, H, W)`, tokens `(B, N, C)` or vectors `(B, C)`.

    Raises:
        ValueError: from the constructor, for a setting out of range; otherwise as `Taught` says, above all at set-up if
            a file is missing or holds code, if teacher and student have other classes, or a layer is not there or
            cannot be compared with the teacher's.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import Distillation
        >>> trainer = Trainer(callbacks=[Distillation("teacher.ckpt", kd_weight=0.9, hard_weight=0.1)], logger=False)

    Reference: Hinton et al. 2015, arXiv:1503.02531

    BibTeX:
        @misc{hinton2015distilling,
          title = {Distilling the Knowledge in a Neural Network},
          author = {Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff},
          year = {2015},
          eprint = {1503.02531},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        The divergence in place of the cross entropy with the teacher's probabilities: their gradients are the same, and
        this one is 0 where student and teacher agree. Several teachers are averaged as probabilities at temperature T;
        the paper leaves open which mean is taken.

    See also:
        `BornAgain`, whose teacher is the network of before.
    """

    neutral = ({"kd_weight": 0.0, "layer_weight": 0.0, "hard_weight": 1.0},)
    adds_parameters = "optimizers hold adapters of layers besides the module's parameters; files have them in its state"

    def __init__(
        self,
        teacher: str | nn.Module | list[str | nn.Module],
        teacher_weights: str = "pretrained",
        loss: Literal["kd", "decoupled"] = "kd",
        temperature: float = 4.0,
        kd_weight: float = 1.0,
        hard_weight: float = 1.0,
        beta: float = 8.0,
        layers: dict[str, str] | None = None,
        layer_loss: Literal["hints", "attention", "relational"] = "hints",
        layer_weight: float = 1.0,
        network: str = "",
        image_key: str = "image",
        target_key: str = "target",
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        factors = {
            "kd_weight": kd_weight,
            "hard_weight": hard_weight,
            "beta": beta,
            "layer_weight": layer_weight,
        }
        for argument, value in factors.items():
            number("Distillation", argument, value, 0)
        above_zero("Distillation", "temperature", temperature)
        for argument, chosen, known in (("loss", loss, ("kd", "decoupled")), ("layer_loss", layer_loss, LAYER_LOSSES)):
            if chosen not in known:
                raise ValueError(f"Distillation: {argument} is {chosen!r}; give one of {', '.join(known)}.")
        if layers is not None and not (isinstance(layers, Mapping) and layers):
            raise ValueError(f"Distillation: layers is {layers!r}; give a teacher's layer for each layer, or None.")
        terms = {"kd": kd_weight, layer_loss: layer_weight if layers else 0.0}
        super().__init__(
            teacher=teacher,
            teacher_weights=teacher_weights,
            network=network,
            image_key=image_key,
            target_key=target_key,
            seed=seed,
            weights={term: weight for term, weight in terms.items() if weight},
            own_weight=hard_weight,
            name=name,
        )
        self.loss, self.temperature, self.kd_weight, self.hard_weight = loss, temperature, kd_weight, hard_weight
        self.beta, self.layers, self.layer_loss, self.layer_weight = beta, layers, layer_loss, layer_weight

    @property
    def needs_logits(self) -> bool:
        return self.kd_weight > 0

    def student_layers(self, network: nn.Module) -> Sequence[str]:
        return list(self._pairs)

    def teacher_layers(self, teacher: nn.Module) -> Sequence[str]:
        return list(self._pairs.values())

    def parts(self, student: Mapping[str, Size], teachers: Sequence[Mapping[str, Size]]) -> Mapping[str, nn.Module]:
        adapters = {
            _part(ours, number): self._adapter(ours, student[ours], theirs, teacher[theirs])
            for number, teacher in enumerate(teachers)
            for ours, theirs in self._pairs.items()
        }
        return {part: adapter for part, adapter in adapters.items() if adapter is not None}

    def compare(self, batch: Any, student: Answer, teachers: Sequence[Answer]) -> Mapping[str, Tensor]:
        terms = {}
        if self.kd_weight:
            answer = mean_logits([teacher.logits for teacher in teachers], self.temperature)
            if self.loss == "kd":
                terms["kd"] = kd_loss(student.logits, answer, self.temperature)
            else:
                labels = self.fields.target(batch)
                terms["kd"] = decoupled_kd_loss(
                    student.logits, answer, labels, beta=self.beta, temperature=self.temperature
                )
        if self._pairs:
            compared = [
                self._compared(student.layers[ours], teacher.layers[theirs], _part(ours, number))
                for number, teacher in enumerate(teachers)
                for ours, theirs in self._pairs.items()
            ]
            terms[self.layer_loss] = torch.stack(compared).mean()
        return terms

    @property
    def _pairs(self) -> Mapping[str, str]:
        return self.layers if self.layers and self.layer_weight else {}

    @torch.no_grad()
    def _adapter(self, ours: str, student: Size, theirs: str, teacher: Size) -> nn.Module | None:
        """What the student's layer goes through, after a try by zeros; a ValueError if the two cannot be compared."""
        for whose, path, shape in (("student", ours, student), ("teacher", theirs, teacher)):
            if len(shape) < 2 or shape[0] != 2:
                raise ValueError(
                    f"Distillation: the layer {path!r} of the {whose} puts out {tuple(shape)} for two images, which is "
                    "no row for each; name another with layers=."
                )
        method, zeros = LAYER_LOSSES[self.layer_loss], torch.zeros(student)
        try:
            adapter = None if method.adapter is None else method.adapter(student, teacher)
            method.loss(zeros if adapter is None else adapter(zeros), torch.zeros(teacher))
        except ValueError as error:
            raise ValueError(
                f"Distillation: {ours!r} of the student and {theirs!r} of the teacher cannot be compared: {error}"
            ) from error
        return adapter

    def _compared(self, student: Tensor, teacher: Tensor, part: str) -> Tensor:
        if part in self.trained:
            student = self.trained[part](student)
        return LAYER_LOSSES[self.layer_loss].loss(student, teacher)


def _part(path: str, number: int) -> str:
    """The name of a layer's adapter for the teacher of this number."""
    return f"{path}-{number}" if number else path

"""Distillation token: a second head of the network learns what a teacher decides, the first what labels say.

Touvron et al. 2021, arXiv:2012.12877 (DeiT), section 4, Eq. 2 and 3; Rangwani et al. 2024, arXiv:2404.02900 (DeiT-LT)
for long-tailed data. Letters: Z_cls and Z_dist logits of the two heads, Z_t the teacher's, y_t its decisions, w_y
weights of classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast, final

import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Size, Tensor, nn

from ..finetuning._classifier import classifier_of
from ..hooks._checks import number, whole
from ..hooks._class_counts import check_counts, class_counts
from ..hooks._frozen import part_name
from ..hooks._teachers import Teacher
from ..hooks.answering import Answering
from ..hooks.taught import Answer
from .effective_numbers import effective_number_weights
from .kd_loss import kd_loss, mean_logits

__all__ = ["DistillationToken", "hard_distillation_loss"]


def hard_distillation_loss(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross entropy with what a teacher decides, the mean over images, weighted by the class that it decided for.

    Args:
        student: Logits `(B, K)`.
        teacher: Logits `(B, K)`, of which the largest counts.
        weights: Of the classes, `(K,)`; None weighs all images alike.

    Example:
        >>> import torch
        >>> from lightning_vision.callbacks import hard_distillation_loss
        >>> hard_distillation_loss(torch.zeros(1, 2), torch.tensor([[3.0, 1.0]]))
        tensor(0.6931)

    Reference: Touvron et al. 2021, arXiv:2012.12877
    """
    weights = None if weights is None else weights.to(student)
    return F.cross_entropy(student, teacher.argmax(dim=1), weight=weights)


@final
class DistillationToken(Answering):
    """Trains the class head of a two-headed network on labels and its distillation head on a teacher's decisions.

    Made for timm's `deit_*_distilled_*` as they are. In training their forward averages both heads; here the module's
    own loss sees the class head alone, so its gradient does not reach the other, and the reverse. Evaluation, files and
    the network itself stay timm's: the prediction is the average of both heads. The teacher decides about the very
    images that the student saw, mixed and augmented.

    A network without a second head gets one while it trains, a linear layer beside its classifier, in the callback's
    state; it is dropped at the fit's end, and predictions are the class head's alone throughout.

    Args:
        teacher: A network `(B, C, H, W)` to logits `(B, K)`, the path of a checkpoint (`*.ckpt`), a name of timm's, or
            a list of those, whose probabilities are averaged.
        teacher_weights: Of a name: `pretrained`, timm's own; `random`; or a file.
        alpha: Share of the distillation head in the loss, 0..1; 0.5 as the authors. Neutral: 0, the network as it is,
            with both heads averaged in its loss.
        temperature: None teaches hard decisions, as the authors found best; a number above 0 teaches the softened
            probabilities by `kd_loss`.
        beta: With which decisions are weighted by the effective number of training images of their class, in [0, 1); 0
            weighs all alike, 0.9999 is the authors' of DeiT-LT. Only hard decisions are weighted.
        drw_epoch: First epoch that is weighted (deferred re-weighting), >= 0; 1100 of 1200 there.
        class_counts: Training images of each class; None asks the datamodule's `class_counts`, or the labels of the
            training set. Needed with beta alone.
        class_head: Name of the head that learns from labels, beside the other.
        dist_head: Name of the head that learns from the teacher.
        network: Path of the part of the module that makes logits of images; empty is the module itself.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, if batches are mappings; in other batches they come second.
        seed: Of the first values of a head that is added.
        name: Part of the state key.

    Shape:
        Images `(B, C, H, W)`, logits of each head and of the teacher `(B, K)`.

    Raises:
        ValueError: from the constructor, for a setting out of range; at set-up, if the teacher does not fit, several
            parts have a `dist_head`, the one that has it has no `class_head`, or the only head is no Linear layer;
            before the first step, if class counts are needed and nobody tells them or they are of other classes; at the
            first step, if a head was not called.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import DistillationToken
        >>> trainer = Trainer(callbacks=[DistillationToken("teacher.ckpt")], accelerator="cpu", logger=False)

    Reference: Touvron et al. 2021, arXiv:2012.12877

    BibTeX:
        @inproceedings{touvron2021training,
          title = {Training data-efficient image transformers \\& distillation through attention},
          author = {Touvron, Hugo and Cord, Matthieu and Douze, Matthijs and Massa, Francisco and Sablayrolles,
            Alexandre and J{\\'e}gou, Herv{\\'e}},
          booktitle = {International Conference on Machine Learning},
          year = {2021},
          eprint = {2012.12877},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        The class head has the module's own loss, whatever it is. A soft term is the mean over images of the divergence,
        where the authors' code also divides by the number of classes.

    See also:
        `Distillation`, which needs no second head; `ClassificationReport`, whose `long_tail` tells the accuracy of
        classes with many and few images.
    """

    neutral = ({"alpha": 0.0},)
    adds_parameters = (
        "for a network with one head optimizers hold a second one besides the module's parameters; files have it in "
        "the callback's state"
    )

    def __init__(
        self,
        teacher: Teacher | list[Teacher],
        teacher_weights: str = "pretrained",
        alpha: float = 0.5,
        temperature: float | None = None,
        beta: float = 0.0,
        drw_epoch: int = 0,
        class_counts: list[int] | None = None,
        class_head: str = "head",
        dist_head: str = "head_dist",
        network: str = "",
        image_key: str = "image",
        target_key: str = "target",
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        kind = "DistillationToken"
        number(kind, "alpha", alpha, 0, 1)
        number(kind, "beta", beta, 0)
        if beta >= 1:
            raise ValueError(f"{kind}: beta is {beta!r}; give a number from 0 to below 1.")
        whole(kind, "drw_epoch", drw_epoch, 0)
        check_counts(kind, "class_counts", class_counts)
        if temperature is not None:
            number(kind, "temperature", temperature, 0)
            if temperature == 0 or beta:
                raise ValueError(
                    f"{kind}: temperature is {temperature!r} and beta {beta!r}; give a temperature above 0 and beta 0, "
                    "or no temperature, for only hard decisions are weighted."
                )
        super().__init__(
            teacher=teacher,
            teacher_weights=teacher_weights,
            network=network,
            image_key=image_key,
            target_key=target_key,
            seed=seed,
            weights={"distillation_token": alpha},
            own_weight=1.0 - alpha,
            name=name,
        )
        self.alpha, self.temperature, self.beta, self.drw_epoch = alpha, temperature, beta, drw_epoch
        self.class_counts, self.class_head, self.dist_head = class_counts, class_head, dist_head
        self._classes = 0
        self._parent = ""  # path of what has both heads
        self._heads: tuple[str, str | None] = ("", None)  # their paths, None for one that is added
        self._answers_of: dict[str, Tensor] = {}  # of the heads, in this step
        self._weights: Tensor | None = None
        self._reweighted = False

    def student_layers(self, network: nn.Module) -> Sequence[str]:
        found = [path for path, _ in network.named_modules() if path.rpartition(".")[2] == self.dist_head]
        if len(found) > 1:
            raise ValueError(
                f"DistillationToken: {len(found)} parts of {type(network).__name__} are called {self.dist_head!r} "
                f"({', '.join(map(part_name, found))}); name with network= the part that has one of them."
            )
        if not found:
            self._heads = (self._only_head(network), None)
            return ()
        self._parent = found[0].rpartition(".")[0]
        path = f"{self._parent}.{self.class_head}" if self._parent else self.class_head
        if path not in dict(network.named_modules()):
            raise ValueError(
                f"DistillationToken: {part_name(found[0])!r} has no class head {self.class_head!r} beside it; name it "
                "with class_head=."
            )
        self._heads = (path, found[0])
        return ()

    def parts(self, student: Mapping[str, Size], teachers: Sequence[Mapping[str, Size]]) -> Mapping[str, nn.Module]:
        self._classes = student[""][1]
        if self._heads[1] is not None:
            return {}
        rank_zero_warn(
            f"DistillationToken: the student has no part {self.dist_head!r}, so a second head beside "
            f"{self._heads[0]!r} learns from the teacher while it trains, and predictions are of the first alone; for "
            "a distillation token take one of timm's deit_*_distilled_*."
        )
        return {"head_dist": nn.Linear(self._width, self._classes)}

    def changed_parts(self, network: nn.Module) -> Sequence[str]:
        head, other = self._heads
        return [head] if other is None else [head, other, self._parent]

    def answered(self, path: str, given: Any, output: Any) -> Any:
        head, other = self._heads
        if path == head:
            self._answers_of["class"] = output
            if other is None:
                self._answers_of["dist"] = self.trained["head_dist"](given)
        elif path == other:
            self._answers_of["dist"] = output
        else:
            return self._answers_of["class"]
        return output

    def ready(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._weights = None
        if self.beta:
            counts = class_counts("DistillationToken", trainer, self.class_counts, "class_counts")
            if len(counts) != self._classes:
                raise ValueError(
                    f"DistillationToken: there are training images of {len(counts)} classes and logits of "
                    f"{self._classes}; give class_counts=[...] with a number for each class."
                )
            self._weights = effective_number_weights(counts, self.beta).to(pl_module.device)

    def ahead(self, pl_module: LightningModule, batch: Any) -> None:
        super().ahead(pl_module, batch)
        # Of a step that had no loss, which is not to speak for this one.
        self._answers_of = {}

    def term(self, pl_module: LightningModule, batch: Any, outputs: Mapping[str, list[Any]]) -> Mapping[str, Tensor]:
        self._reweighted = pl_module.current_epoch >= self.drw_epoch
        return super().term(pl_module, batch, outputs)

    def compare(self, batch: Any, student: Answer, teachers: Sequence[Answer]) -> Mapping[str, Tensor]:
        logits = self._answers_of.get("dist")
        self._answers_of = {}
        if logits is None:
            raise ValueError(
                f"DistillationToken: training_step did not call the head {self._heads[1]!r}; let the network's forward "
                "call it, or name another with dist_head=."
            )
        decided = mean_logits([it.logits for it in teachers], self.temperature or 1.0)
        if self.temperature is not None:
            return {"distillation_token": kd_loss(logits, decided, self.temperature)}
        weights = self._weights if self._reweighted else None
        return {"distillation_token": hard_distillation_loss(logits, decided, weights)}

    def _only_head(self, network: nn.Module) -> str:
        (path, *others) = classifier_of("DistillationToken", cast(LightningModule, network), "class_head")
        if others:
            raise ValueError(
                f"DistillationToken: {type(network).__name__} has no part {self.dist_head!r}, and of its heads "
                f"{', '.join(map(repr, [path, *others]))} which one learns from the teacher is not clear; name it with "
                "dist_head=."
            )
        known = {part_name(it): it for it, _ in network.named_modules()}
        layer = network.get_submodule(known[path]) if path in known else None
        if not isinstance(layer, nn.Linear):
            raise ValueError(
                f"DistillationToken: {type(network).__name__} has no part {self.dist_head!r}, and its only head "
                f"{path!r} is no Linear layer that a second one could stand beside; take a network with two heads, "
                "such as timm's deit_tiny_distilled_patch16_224, or `Distillation`."
            )
        self._width = layer.in_features
        return known[path]

    def _release(self) -> None:
        super()._release()
        self._answers_of, self._weights = {}, None

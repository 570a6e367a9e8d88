"""ScaleKD: a vision transformer teaches a network of any kind, by its features, in two views, and by its last stage.

Fan et al. 2024, arXiv:2411.06786. Letters: B images, N tokens of the teacher with C numbers each, K classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Size, Tensor, nn

from ..hooks._checks import above_zero, number, whole
from ..hooks._heard import own_paths
from ..hooks._teachers import Teacher
from ..hooks.taught import Answer, Taught
from ._cross_attention import CrossAttentionProjector
from ._tail import Tail
from ._tokens import Layout, last_layers
from .dual_view import split_dc, token_distance
from .kd_loss import kd_loss, mean_logits

__all__ = ["ScaleKD"]


@final
class ScaleKD(Taught):
    """Teaches a network of any kind by a vision transformer: by its features in two views, its last stage, its answers.

    Attention from learned queries lays the network's last features out as the teacher's tokens (cross attention
    projector). They are compared as they are, and without their mean over tokens, which lets what differs from place to
    place count (dual-view feature mimicking); each view has a projector of its own. Features of the stage before, laid
    out likewise, go through the teacher's own last stage, frozen, and what comes out is compared with what it made of
    its own (teacher parameter perception), logits included. Answers are compared as ever (`kd_loss`). Logged are
    `train/mimic`, `train/mimic_without_dc`, `train/perception` and `train/kd`.

    Args:
        teacher: A network `(B, C, H, W)` to logits `(B, K)`, the path of a checkpoint (`*.ckpt`), a name of timm's, or
            a list of those, over which terms are averaged. A convolutional one will do.
        alpha: Factor of the features as they are, at least 0; 0.08 as the authors.
        beta: Factor of the features without DC component, at least 0; 0.06 as the authors.
        perception_weight: Factor of what the teacher's last stage makes of the network's features, at least 0; in it
            the two views have `alpha` and `beta` and logits have `kd_weight`. 1 as the authors, 0 leaves it out.
        kd_weight: Factor of the answers, at least 0; 0.5 as the authors.
        temperature: Of the answers, above 0; 1 as the authors.
        own_weight: Factor of the module's own loss, at least 0; 0.5 as the authors, 1 leaves it alone.
        student_stages: Two paths below `network`: of the layer whose features go through the teacher's last stage, and
            of the last one. None is timm's last two stages or blocks; of other networks the last two Linear or
            convolutional layers before the one that makes logits.
        teacher_stages: The same of the teacher.
        heads: Of the attention; a divisor of the teacher's widths. None has at least 64 numbers a head, as the authors.
        seed: Of the projectors' first weights.
        teacher_weights: Of a name: `pretrained`, timm's own; `random`; or a file.
        network: Path of the part of the module that makes logits of images; empty is the module itself, whose forward
            `training_step` calls.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, if batches are mappings; in other batches they come second.
        name: Part of the state key.

    Shape:
        Images `(B, C, H, W)`; features are maps, tokens or vectors, of one size in all batches. Networks of timm's say
        where their maps have channels and which tokens stand for no patch; those of others have maps `(B, C, H, W)`,
        and all their tokens count as patches.

    Raises:
        ValueError: from the constructor, for a setting out of range, or if nothing is compared in perception; at
            set-up, if a stage is not there or `heads` does not divide a width; in the first batch, if a teacher's last
            stage cannot be given other features; in a later one, if images have another size.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import ScaleKD
        >>> trainer = Trainer(callbacks=[ScaleKD("swin_tiny_patch4_window7_224")], logger=False)

    Reference: Fan et al. 2024, arXiv:2411.06786

    BibTeX:
        @inproceedings{fan2024scalekd,
          title = {ScaleKD: Strong Vision Transformers Could Be Excellent Teachers},
          author = {Fan, Jiawei and Li, Chao and Liu, Xiaolong and Yao, Anbang},
          booktitle = {Advances in Neural Information Processing Systems},
          year = {2024},
          eprint = {2411.06786},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        Before the attention the network's features are normalised by LayerNorm and not convolved and batch normalised,
        so that projectors have no statistics. The queries of the last stage are learned ones, too, where theirs are
        what came out of the teacher's last stage. Logits of that stage are compared, which their script does not.
        Tokens that stand for no patch are projected and compared, too.

    See also:
        `Distillation`, whose hints need no transformer.
    """

    neutral = ({"alpha": 0.0, "beta": 0.0, "perception_weight": 0.0, "kd_weight": 0.0, "own_weight": 1.0},)
    adds_parameters = (
        "optimizers hold projectors of features besides the module's parameters; files have them in its state"
    )

    def __init__(
        self,
        teacher: Teacher | Sequence[Teacher],
        alpha: float = 0.08,
        beta: float = 0.06,
        perception_weight: float = 1.0,
        kd_weight: float = 0.5,
        temperature: float = 1.0,
        own_weight: float = 0.5,
        student_stages: Sequence[str] | None = None,
        teacher_stages: Sequence[str] | None = None,
        heads: int | None = None,
        seed: int = 0,
        teacher_weights: str = "pretrained",
        network: str = "",
        image_key: str = "image",
        target_key: str = "target",
        name: str | None = None,
    ) -> None:
        weights = {"mimic": alpha, "mimic_without_dc": beta, "perception": perception_weight, "kd": kd_weight}
        for argument, value in zip(("alpha", "beta", "perception_weight", "kd_weight"), weights.values(), strict=True):
            number("ScaleKD", argument, value, 0)
        above_zero("ScaleKD", "temperature", temperature)
        if heads is not None:
            whole("ScaleKD", "heads", heads, 1)
        for argument, stages in (("student_stages", student_stages), ("teacher_stages", teacher_stages)):
            two = isinstance(stages, (list, tuple)) and len(stages) == 2 and all(isinstance(it, str) for it in stages)
            if stages is not None and not two:
                raise ValueError(
                    f"ScaleKD: {argument} is {stages!r}; give two paths, of the last stage but one and it."
                )
        if perception_weight and not (alpha or beta or kd_weight):
            raise ValueError(
                f"ScaleKD: perception_weight is {perception_weight!r}, and alpha, beta and kd_weight, which weigh what "
                "is compared there, are 0; give one of them, or perception_weight=0."
            )
        super().__init__(
            teacher=teacher,
            teacher_weights=teacher_weights,
            seed=seed,
            network=network,
            image_key=image_key,
            target_key=target_key,
            weights={term: weight for term, weight in weights.items() if weight},
            own_weight=own_weight,
            name=name,
        )
        self.alpha, self.beta, self.perception_weight, self.kd_weight = alpha, beta, perception_weight, kd_weight
        self.temperature, self.student_stages, self.teacher_stages = temperature, student_stages, teacher_stages
        self.heads = heads
        # The views that count; each has its projectors.
        self._views = [term for term in ("mimic", "mimic_without_dc") if weights[term]]
        self._ours: list[str] = []  # the network's two stages
        self._theirs: list[list[str]] = []  # of each teacher
        self._layouts: list[Layout] = []  # the network's, then those of the teachers
        self._tails: list[Tail] = []  # of each teacher, from the first batch on

    def student_layers(self, network: nn.Module) -> Sequence[str]:
        self._ours = list(self.student_stages or last_layers("ScaleKD", network))
        self._theirs = [list(self.teacher_stages or last_layers("ScaleKD", it)) for it in self.teachers]
        self._layouts, self._tails = [Layout("ScaleKD", it) for it in (network, *self.teachers)], []
        # They hold the teachers.
        self.undo_later(self._tails.clear)
        return self._of_use(self._ours)

    def teacher_layers(self, teacher: nn.Module) -> Sequence[str]:
        place = next(place for place, it in enumerate(self.teachers) if it is teacher)
        return self._of_use(self._theirs[place])

    def parts(self, student: Mapping[str, Size], teachers: Sequence[Mapping[str, Size]]) -> Mapping[str, nn.Module]:
        made: dict[str, nn.Module] = {}
        for place, (shapes, stages) in enumerate(zip(teachers, self._theirs, strict=True)):
            for what, ours, theirs in zip(("perception", "mimic"), self._ours, stages, strict=True):
                # Answers alone need one, too; all that there are get a gradient, as DDP asks.
                views = max(len(self._views), 1) if what == "perception" else len(self._views)
                if views and (what == "mimic" or self.perception_weight):
                    known, asked = self._layouts[0].shape(student[ours]), self._layouts[1 + place].shape(shapes[theirs])
                    heads = self._heads(theirs, asked[-1])
                    made[f"{what}_{place}"] = nn.ModuleList(
                        CrossAttentionProjector(known, asked, heads) for _ in range(views)
                    )
        return made

    def compare(self, batch: Any, student: Answer, teachers: Sequence[Answer]) -> Mapping[str, Tensor]:
        if self.perception_weight and not self._tails:
            self._watch(self.fields.image(batch), teachers)
        each: dict[str, list[Tensor]] = {term: [] for term in self.weights}
        for place, answer in enumerate(teachers):
            if self._views:
                features = answer.layers[self._theirs[place][1]]
                projected = self._projected("mimic", place, student)
                for term, tokens in zip(self._views, projected, strict=True):
                    each[term].append(self._apart(term, place, tokens, features))
            if self.perception_weight:
                each["perception"].append(self._perceived(place, student, answer))
        if self.kd_weight:
            answers = mean_logits([it.logits for it in teachers], self.temperature)
            each["kd"].append(kd_loss(student.logits, answers, self.temperature))
        return {term: torch.stack(values).mean() for term, values in each.items()}

    def _of_use(self, stages: Sequence[str]) -> list[str]:
        wanted = (self.perception_weight, self._views or self.perception_weight)
        return list(dict.fromkeys(stage for stage, weight in zip(stages, wanted, strict=True) if weight))

    def _heads(self, layer: str, width: int) -> int:
        heads = self.heads
        if heads is None:
            return next(it for it in range(max(width // 64, 1), 0, -1) if width % it == 0)
        if width % heads:
            raise ValueError(f"ScaleKD: heads is {heads}, and the teacher's {layer!r} is {width} wide; give a divisor.")
        return heads

    def _watch(self, images: Tensor, teachers: Sequence[Answer]) -> None:
        for teacher, answer, stages in zip(self.teachers, teachers, self._theirs, strict=True):
            paths = own_paths("ScaleKD", "the teacher", teacher, stages)
            layer, last = stages
            tail = Tail("ScaleKD", teacher, paths[layer], paths[last], images)
            tail.check(answer.layers[layer], answer.logits, answer.layers[last])
            self._tails.append(tail)

    def _projected(self, what: str, place: int, student: Answer) -> list[Tensor]:
        """Tokens of a teacher's shape for each view."""
        tokens = self._layouts[0].tokens(student.layers[self._ours[what == "mimic"]])
        return [projector(tokens) for projector in self.trained[f"{what}_{place}"].children()]

    def _apart(self, term: str, place: int, projected: Tensor, features: Tensor) -> Tensor:
        """The distance of tokens to those of a teacher's features, in the view of a term."""
        layout = self._layouts[1 + place]
        tokens = layout.tokens(features)
        if term == "mimic":
            return token_distance(projected, tokens)
        ours, theirs = (split_dc(layout.patches(it))[1] for it in (projected, tokens))
        return token_distance(ours, theirs)

    def _perceived(self, place: int, student: Answer, answer: Answer) -> Tensor:
        stage, last = self._theirs[place]
        layout, like = self._layouts[1 + place], answer.layers[stage]
        projected = self._projected("perception", place, student)
        features = torch.cat([layout.features(it, like.shape) for it in projected])
        logits, seen = self._tails[place](features.to(like.dtype))
        values = [
            self.weights[term] * self._apart(term, place, it, answer.layers[last])
            # One more than there are views where answers alone count.
            for term, it in zip(self._views, layout.tokens(seen).chunk(len(projected)), strict=False)
        ]
        if self.kd_weight:
            theirs = answer.logits.repeat(len(projected), 1)
            values.append(self.kd_weight * kd_loss(logits, theirs, self.temperature))
        return torch.stack(values).sum()

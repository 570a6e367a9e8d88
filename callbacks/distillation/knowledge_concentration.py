"""Knowledge concentration: specialists, each of a few classes, teach one network that knows them all.

Gao et al. 2017, arXiv:1711.07607. Letters: B images, K classes of the student, V those of a vertical, as the paper
calls the classes that one specialist knows.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from ..hooks._checks import above_zero, flag, number, whole
from ..hooks._teachers import Teacher
from ..hooks.taught import Answer, Taught

__all__ = ["KnowledgeConcentration", "pace_weight", "vertical_divergences"]


def vertical_divergences(
    student: Tensor, teacher: Tensor, classes: Sequence[int] | Tensor, temperature: float = 4.0
) -> Tensor:
    """What a student has still to learn of a specialist about the classes that this one knows, for each image.

    T^2 KL(softmax(t / T) || softmax(s_V / T)), with s_V the student's logits of those classes: their probabilities
    among themselves, so that no other logit has a gradient. Computed in at least float32.

    Args:
        student: Logits `(B, K)`.
        teacher: Logits `(B, V)` in the order of `classes`, or of more classes, numbered as the student's.
        classes: Which of the student's classes the V are, also as a tensor `(V,)`, on their device.
        temperature: T, above 0.

    Returns:
        `(B,)`, at least 0.

    Example:
        >>> import torch
        >>> vertical_divergences(torch.zeros(1, 4), torch.tensor([[3.0, 3.0]]), [1, 2])
        tensor([0.])

    Reference: Gao et al. 2017, arXiv:1711.07607
    """
    chosen = torch.as_tensor(classes, device=student.device)
    known = teacher if teacher.shape[1] == len(classes) else teacher.index_select(1, chosen)
    ours, theirs = (
        it.to(torch.promote_types(it.dtype, torch.float32)).div(temperature).log_softmax(dim=1)
        for it in (student.index_select(1, chosen), known)
    )
    return temperature**2 * F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=1)


def pace_weight(loss: Tensor, step: int, pace_steps: int, pace_loss: float = 1.0) -> Tensor:
    """How much a teacher counts, from what is still to be learned from it and the age of the student.

    max(0, 1 - loss / age), the linear weight of self-paced learning (Jiang et al. 2014, "Easy samples first"), with an
    age that grows from `pace_loss` to infinity: pace_loss / (1 - step / pace_steps). Easy teachers come first. For any
    loss it never falls with the step, and is 1 from `pace_steps` on.

    Args:
        loss: What is still to be learned, at least 0; any shape. No gradient comes back.
        step: Optimizer steps taken.
        pace_steps: Optimizer steps until all teachers count in full; 0 is at once.
        pace_loss: The loss at which a teacher begins to count at step 0, above 0.

    Example:
        >>> import torch
        >>> [float(pace_weight(torch.tensor(0.5), step, pace_steps=10)) for step in (0, 5, 10)]
        [0.5, 0.75, 1.0]

    Reference: Gao et al. 2017, arXiv:1711.07607
    """
    youth = 0.0 if step >= pace_steps else 1 - step / pace_steps
    return (1 - loss.detach() * (youth / pace_loss)).clamp(min=0)


@final
class KnowledgeConcentration(Taught):
    """Teaches one classifier by specialists that each know some of its classes, each at a pace of its own.

    To the module's loss on hard labels, which stays, comes for each teacher how far the student's probabilities, among
    the classes of this teacher, are from the teacher's. A teacher is heard about images of its own classes alone, and
    with `pace_steps` it counts the less, the more is to be learned from it, until all count in full.

    Args:
        teacher: The specialists, a list: networks, paths of checkpoints of ours (`*.ckpt`), or names of timm's. Each
            answers with logits of its own classes, in their order below, or of all of the student's.
        classes: For each teacher the student's classes that it knows, at least two; they may overlap.
        kd_weight: Factor of the sum over teachers, at least 0; neutral 0.
        temperature: T, above 0.
        own_images: Whether a teacher speaks only of images whose label is one of its classes; images with
            probabilities as labels count by the share that is. False makes each speak of all.
        pace_steps: Optimizer steps until all teachers count in full; 0 is from the start.
        pace_loss: Divergence at which a teacher begins to count at the first step, above 0.
        teacher_weights: Of teachers that are names: `pretrained`, `random` or a file.
        network: Path of the part of the module that makes logits of images; empty is the module itself.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, if batches are mappings; in other batches they come second.
        name: Part of the state key.

    Shape:
        Images `(B, C, H, W)`, integer labels `(B,)` or probabilities `(B, K)`, logits `(B, K)`.

    Raises:
        ValueError: from the constructor, for a setting out of range or lists that do not fit; at set-up, if a class is
            none of the student's, or a teacher answers about another number of classes.

    Example:
        >>> from lightning_vision.callbacks import KnowledgeConcentration
        >>> callback = KnowledgeConcentration(["cars.ckpt", "birds.ckpt"], classes=[[0, 1, 2], [3, 4]])
        >>> callback.state_key
        'KnowledgeConcentration'

    Reference: Gao et al. 2017, arXiv:1711.07607

    BibTeX:
        @article{gao2017knowledge,
          title = {Knowledge Concentration: Learning 100K Object Classifiers in a Single CNN},
          author = {Gao, Jiyang and Guo, Zijian (James) and Li, Zhen and Nevatia, Ram},
          journal = {arXiv preprint},
          year = {2017},
          eprint = {1711.07607},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        Only its abstract was at hand: many teachers, one student, a pace for each teacher, a grouped layer. The weight
        that sets the pace is the linear one of Jiang et al. 2014, with an age whose inverse falls to 0 in a line.

    See also:
        `GroupedLinear`, the structurally connected layer, for the student's last.
    """

    neutral = ({"kd_weight": 0.0},)
    same_classes = False

    def __init__(
        self,
        teacher: Teacher | Sequence[Teacher],
        classes: Sequence[Sequence[int]],
        kd_weight: float = 1.0,
        temperature: float = 4.0,
        own_images: bool = True,
        pace_steps: int = 0,
        pace_loss: float = 1.0,
        teacher_weights: str = "pretrained",
        network: str = "",
        image_key: str = "image",
        target_key: str = "target",
        name: str | None = None,
    ) -> None:
        own = "KnowledgeConcentration"
        number(own, "kd_weight", kd_weight, 0)
        for argument, value in (("temperature", temperature), ("pace_loss", pace_loss)):
            above_zero(own, argument, value)
        whole(own, "pace_steps", pace_steps, 0)
        flag(own, "own_images", own_images)
        self.classes = _verticals(classes)
        count = len(teacher) if isinstance(teacher, (list, tuple)) else 1
        if count != len(self.classes):
            raise ValueError(
                f"{own}: there are {count} teachers and classes of {len(self.classes)}; give each teacher a list of "
                "the classes that it knows."
            )
        super().__init__(
            teacher=teacher,
            teacher_weights=teacher_weights,
            weights={"concentration": kd_weight},
            network=network,
            image_key=image_key,
            target_key=target_key,
            name=name,
        )
        self.kd_weight, self.temperature, self.own_images = kd_weight, temperature, own_images
        self.pace_steps, self.pace_loss = pace_steps, pace_loss
        self._step = 0
        self._chosen = [torch.tensor(it) for it in self.classes]  # where the logits are

    def parts(
        self, student: Mapping[str, torch.Size], teachers: Sequence[Mapping[str, torch.Size]]
    ) -> Mapping[str, nn.Module]:
        count = student[""][1]
        for place, (teacher, classes) in enumerate(zip(teachers, self.classes, strict=True)):
            if max(classes) >= count:
                raise ValueError(
                    f"KnowledgeConcentration: the student answers with {count} classes and classes[{place}] names "
                    f"{max(classes)}; name classes from 0 to {count - 1}."
                )
            if teacher[""][1] not in (len(classes), count):
                raise ValueError(
                    f"KnowledgeConcentration: teacher {place} answers with {teacher[''][1]} classes; give one of the "
                    f"{len(classes)} that classes[{place}] names, in that order, or of all {count} of the student's."
                )
        return {}

    def term(self, pl_module: LightningModule, batch: Any, outputs: Mapping[str, list[Any]]) -> Mapping[str, Tensor]:
        self._step = pl_module.global_step
        return super().term(pl_module, batch, outputs)

    def compare(self, batch: Any, student: Answer, teachers: Sequence[Answer]) -> Mapping[str, Tensor]:
        found = []
        self._chosen = [it.to(student.logits.device) for it in self._chosen]
        for teacher, classes in zip(teachers, self._chosen, strict=True):
            each = vertical_divergences(student.logits, teacher.logits, classes, self.temperature)
            share = self._share(batch, classes, each)
            # The mean over the batch, not over a teacher's own images: each image weighs the same, on any rank.
            taught = (each * share).mean()
            if self.pace_steps:
                left = taught / share.mean().clamp(min=torch.finfo(share.dtype).tiny)
                taught = taught * pace_weight(left, self._step, self.pace_steps, self.pace_loss)
            found.append(taught)
        return {"concentration": torch.stack(found).sum()}

    def _share(self, batch: Any, classes: Tensor, like: Tensor) -> Tensor:
        """How much of each image is the teacher's to speak of: `(B,)`, 0 to 1."""
        if not self.own_images:
            return torch.ones_like(like)
        target = self.fields.target(batch)
        if target.ndim == 1:
            return (target[:, None] == classes).any(dim=1).to(like.dtype)
        return target.index_select(1, classes).sum(dim=1).to(like.dtype)


def _verticals(classes: object) -> list[list[int]]:
    lists: Sequence[Any] = classes if isinstance(classes, (list, tuple)) and classes else [None]
    for given in lists:
        known = given if isinstance(given, (list, tuple)) else []
        whole_numbers = [it for it in known if isinstance(it, int) and not isinstance(it, bool) and it >= 0]
        if len(known) < 2 or len(set(whole_numbers)) != len(known):
            raise ValueError(
                f"KnowledgeConcentration: classes is {classes!r}; give for each teacher a list of at least two "
                "different classes of the student's, counted from 0, such as [[0, 1, 2], [3, 4]]."
            )
    return [list(it) for it in lists]

"""Born-again networks: a network is trained again from scratch, taught by what it had become the time before.

Furlanello et al. 2018, arXiv:1805.04770. Letters: B images, K classes; z logits; p and q the teacher's and the
student's class probabilities at a temperature T; y the labels.
"""

from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..hooks._checks import above_zero
from ..hooks.generations import Generations
from .kd_loss import kd_loss

__all__ = ["BornAgain", "confidence_weights", "permuted_dark_knowledge"]


def confidence_weights(teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """How sure a teacher is of each image beside the others of the batch: its largest probability over their mean.

    Weights `(B,)` of mean 1, at least float32. The paper divides by the sum over the batch, for a loss that is summed.

    Args:
        teacher: Logits `(B, K)`.
        temperature: T, above 0; 1 softens nothing.

    Example:
        >>> import torch
        >>> confidence_weights(torch.tensor([[0.0, 0.0], [0.0, 30.0]]))
        tensor([0.6667, 1.3333])

    Reference: Furlanello et al. 2018, arXiv:1805.04770
    """
    wide = teacher.to(torch.promote_types(teacher.dtype, torch.float32))
    largest = wide.div(temperature).softmax(dim=1).amax(dim=1)
    return largest / largest.mean()


def permuted_dark_knowledge(teacher: Tensor, random: Generator | None = None) -> Tensor:
    """A teacher's logits with all but the largest of each image in another order.

    The class it believes in keeps its probability, so do the others together; which of them are alike is not told any
    more.

    Args:
        teacher: Logits `(B, K)`.
        random: Draws an order for each image, on the CPU; None is torch's global stream.

    Example:
        >>> import torch
        >>> permuted_dark_knowledge(torch.tensor([[1.0, 3.0, 1.0]]))
        tensor([[1., 3., 1.]])

    Reference: Furlanello et al. 2018, arXiv:1805.04770
    """
    images, classes = teacher.shape
    order = torch.rand(images, classes - 1, generator=random).argsort(dim=1).to(teacher.device)
    top = teacher.argmax(dim=1, keepdim=True)
    others = torch.arange(classes - 1, device=teacher.device).expand(images, -1)
    others = others + (others >= top)
    return teacher.scatter(1, others, teacher.gather(1, others.gather(1, order)))


@final
class BornAgain(Generations):
    """Trains a network several times from scratch within one fit, each generation taught by the one before.

    The fit's optimizer steps are divided equally. Generation 0 is trained by the module's own loss. When a generation
    ends, its weights become the teacher, held by the callback alone; before the next batch the network is drawn anew,
    and optimizers, schedules and batch norm's statistics go back to their beginning. Then the loss is
    (1 - `alpha`) times the module's own plus `alpha` times the lesson. The module ends with the weights of the last
    generation. `trainer.global_step`, the order of the data and random streams go on, and a run is resumed in the
    middle of a generation exactly.

    Of a module written by anybody it is not known how its weights were drawn. So the numbers of each parameter that
    trains are put into another order: constants stay, and the distribution is the module's own.

    Args:
        generations: Trainings in the fit, at least 1, generation 0 included; 1 is neutral without `teacher_ckpt`.
        alpha: Share of the lesson in the loss, in [0, 1]; 0 is training by the labels, over and over, and 1 the paper's
            "BAN", which does without them.
        temperature: T of teacher and student, above 0; 1 as the paper.
        mode: The lesson. `kd` is T^2 times the divergence from the teacher's probabilities; `cwtm` the cross entropy of
            the labels, each image weighted by how sure the teacher is; `dkpp` is `kd` with the teacher's probabilities
            of all classes but its first in another order, drawn for each image.
        ensemble: Whether tests evaluate the mean of all generations' probabilities; then all are in the callback's
            state.
        redraw: Whether each generation begins with weights drawn anew; False begins with those of the first, which are
            the ones to go back to if they are pretrained.
        teacher_ckpt: Checkpoint of the same module, which teaches generation 0; None trains that one plainly.
        network: Path of the part of the module that makes logits of images, as `network`; empty is the module itself,
            whose forward `training_step` calls.
        seed: Of the callback's own draws, at least 0.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, if batches are mappings; in other batches they come second. Needed by `cwtm`.
        name: Part of the state key, and the name of the table's file.

    Shape:
        Images `(B, C, H, W)`, logits `(B, K)`; for `cwtm` integer labels `(B,)`.

    Raises:
        ValueError: from the constructor, for a setting out of range; at set-up, beside masks, `EarlyStopping`, another
            ensemble or, for `cwtm`, mixed labels, under manual optimisation, or if there is no such part; before the
            first step, if the length of training is not known or too short, or the teacher is of another network; in
            the first batch, if there are no logits `(B, K)`; in the first taught one, if `cwtm` finds no integer
            labels.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import BornAgain
        >>> trainer = Trainer(max_epochs=60, callbacks=[BornAgain(generations=3)], accelerator="cpu", logger=False)

    Reference: Furlanello et al. 2018, arXiv:1805.04770

    BibTeX:
        @inproceedings{furlanello2018born,
          title = {Born-Again Neural Networks},
          author = {Furlanello, Tommaso and Lipton, Zachary C. and Tschannen, Michael and Itti, Laurent and
            Anandkumar, Anima},
          booktitle = {International Conference on Machine Learning},
          year = {2018},
          eprint = {1805.04770},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        Initial weights are the first ones in another order, where the paper draws from the initialiser with another
        seed. The paper's "BAN+L" adds the cross entropy of the labels to that of the teacher; `alpha=0.5` is half of
        that sum. The order of the data goes on from generation to generation.

    See also:
        `kd_loss`; the subcommand `teacher_assistant`, whose networks get smaller from one to the next.
    """

    neutral = ({"generations": 1, "teacher_ckpt": None},)

    def __init__(
        self,
        generations: int = 2,
        alpha: float = 1.0,
        temperature: float = 1.0,
        mode: Literal["kd", "cwtm", "dkpp"] = "kd",
        ensemble: bool = False,
        redraw: bool = True,
        teacher_ckpt: str | None = None,
        network: str = "",
        seed: int = 0,
        image_key: str = "image",
        target_key: str = "target",
        name: str | None = None,
    ) -> None:
        if mode not in ("kd", "cwtm", "dkpp"):
            raise ValueError(f"BornAgain: mode is {mode!r}; give 'kd', 'cwtm' or 'dkpp'.")
        above_zero("BornAgain", "temperature", temperature)
        super().__init__(
            term="born_again",
            generations=generations,
            alpha=alpha,
            redraw=redraw,
            ensemble=ensemble,
            teacher_ckpt=teacher_ckpt,
            reads_labels=mode == "cwtm",
            network=network,
            seed=seed,
            image_key=image_key,
            target_key=target_key,
            name=name,
        )
        self.temperature, self.mode = temperature, mode

    def lesson(self, student: Tensor, teacher: Tensor, batch: Any) -> Tensor:
        if self.mode == "cwtm":
            wide = student.to(torch.promote_types(student.dtype, torch.float32))
            each = F.cross_entropy(wide, self._labels(batch), reduction="none")
            return (confidence_weights(teacher, self.temperature) * each).mean()
        if self.mode == "dkpp":
            teacher = permuted_dark_knowledge(teacher, self.random())
        return kd_loss(student, teacher, self.temperature)

    def _labels(self, batch: Any) -> Tensor:
        target = self.fields.target(batch)
        if isinstance(target, Tensor) and target.ndim == 1 and not target.is_floating_point():
            return target
        came = f"{tuple(target.shape)} {target.dtype}" if isinstance(target, Tensor) else type(target).__name__
        raise ValueError(
            f"BornAgain: mode='cwtm' weighs the loss of integer labels (B,), and the batch has {came}; say with "
            "target_key= where labels are, or choose another mode."
        )

"""The taught seam: terms of the loss that compare the network with what teachers make of the same images.

Teachers are attributes of the callback alone: no state dict, optimizer, DDP wrapper or summary knows of them. What
trains beside the network, as an adapter between two widths, hangs on the module (`_trained_parts.py`) while a fit runs.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from ._added import ASIDE, Added
from ._around import last_word
from ._checks import whole
from ._example_images import image_shape
from ._fields import Fields
from ._heard import Answer, Heard, logits_in, only_output, own_paths
from ._replay import read_streams, rewind
from ._teachers import Renormalised, Teacher, build_teachers, fingerprint, lend, statistics_of, timms_statistics
from ._trained_parts import TrainedParts
from ._unnoticed import as_if_nobody_looked
from .ascent import Ascent, replaying
from .loss import Loss

__all__ = ["Answer", "Taught"]


class Taught(TrainedParts, Loss):
    """Adds terms that need what teachers answer to the images that `training_step` saw.

    Teachers answer in evaluation mode, without gradients and under the run's autocast, once for each batch also where
    `SAM` computes it twice. Where the statistics that images were normalised by are known of the student's data and of
    a teacher, and differ, the teacher gets images that were normalised by its own; a ready network gets them as they
    are. After the fit a ready network has its modes and its device back.

    Parts that train beside the network are drawn from `seed`, equal on all ranks, and stepped by the module's
    optimizers. Their values and what optimizers keep of them are in the callback's state; averages leave them out.

    Args:
        teacher: A network `(B, C, H, W)` to logits `(B, K)`, the path of a checkpoint, a name of timm's, or a list.
        teacher_weights: Of a name: `pretrained`, `random` or a file.
        network: Path of the part of the module that makes logits of images; empty is the module itself.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, if batches are mappings; in other batches they come second.
        seed: Of the parts' first values, at least 0.
        others: Go to the next base class, among them `weights`, `own_weight` and `name`.

    Raises:
        ValueError: at set-up, if a teacher cannot be had, has other classes, shares parameters with the module or does
            not take its images; if student or teacher has no such layer, or one that is called more than once or puts
            out no tensor; if the shape of images cannot be found out; before the first step, if no optimizer has the
            parts; at the first step, if `training_step` calls the network more than once.
    """

    # Whether teachers must have the student's classes.
    same_classes: ClassVar[bool] = True

    def __init__(
        self,
        *,
        teacher: Teacher | Sequence[Teacher],
        teacher_weights: str,
        network: str,
        image_key: str,
        target_key: str,
        seed: int = 0,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        kind = type(self).__name__
        whole(kind, "seed", seed, 0)
        # Without a term nobody has to be asked.
        if self.weights and isinstance(teacher, (list, tuple)) and not teacher:
            raise ValueError(f"{kind}: teacher is an empty list; give at least one.")
        self.teacher, self.teacher_weights, self.network, self.seed = teacher, teacher_weights, network, seed
        self.image_key, self.target_key = image_key, target_key
        self.fields = Fields(type(self).__name__, image_key, target_key)
        self.teachers: list[nn.Module] = []  # during a fit
        self.trained: dict[str, nn.Module] = {}  # during a fit, what `parts` made, by name
        self._heard: dict[int, tuple[Heard, Renormalised | None]] = {}  # by the teacher's id
        self._paths: dict[str, str] = {}  # of the student's layers: as named, and as the module has them
        self._prints: list[str] = []  # of the teachers
        self._asked: list[tuple[Tensor, int, list[Answer]]] = []  # of this step, for a replay
        self._asked_at = -1
        self._answered: list[Answer] = []  # to the batch whose step runs
        self._replayed = False

    @property
    def needs_logits(self) -> bool:
        """Whether `compare` looks at logits; without, networks may answer with anything, as detectors do."""
        return True

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

        What draws from torch's global stream here draws from one that begins with `seed`.

        Args:
            student: By path of `student_layers`, the shape of what the layer puts out for two images; "" are logits.
            teachers: The same of each teacher.
        """
        return {}

    @abstractmethod
    def compare(self, batch: Any, student: Answer, teachers: Sequence[Answer]) -> Mapping[str, Tensor]:
        """The terms of one batch, a scalar under each name of `weights`; `trained` holds what `parts` made."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Of an earlier fit; which layers are listened to is known when there are teachers.
        self.outputs_of = ()
        super().setup(trainer, pl_module, stage)
        if stage != "fit" or self.off:
            return
        self.undo_later(self._release)
        # Making networks and asking for a batch draws random numbers.
        streams = read_streams(trainer.strategy.root_device)
        try:
            self._prepare(trainer, pl_module)
        finally:
            rewind(streams)
        self.listen(pl_module, self.outputs_of)
        self._at_work = True

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        self._replayed = bool(self.rivals(trainer, Ascent))
        for teacher in self.teachers:
            teacher.to(pl_module.device)

    def ahead(self, pl_module: LightningModule, batch: Any) -> None:
        super().ahead(pl_module, batch)
        # Teachers first: what they compute with is free again when the student keeps its own for the backward pass.
        self._answered = self._answers(pl_module, self.fields.image(batch))

    def term(self, pl_module: LightningModule, batch: Any, outputs: Mapping[str, list[Any]]) -> Mapping[str, Tensor]:
        kind = type(self).__name__
        calls = outputs[self.outputs_of[0]]
        if len(calls) != 1:
            raise ValueError(
                f"{kind}: training_step called the network {len(calls)} times, and which answer is the one to the "
                "batch's images is not clear; call it once, or name with network= a part that is called once."
            )
        layers = {name: only_output(kind, "the student", name, outputs[path]) for name, path in self._paths.items()}
        # One that answers with logits in evaluation mode may put out a tuple in training.
        rows = None if self.needs_logits else len(next(iter(layers.values()), self._answered[0].logits))
        logits = logits_in(kind, "the student in training", calls[0], rows)
        answers, self._answered = self._answered, []
        if any(len(it.logits) != len(logits) for it in answers):
            raise ValueError(
                f"{kind}: training_step gave the network {len(logits)} images, and the batch has "
                f"{len(answers[0].logits)}; give it those of the batch, once."
            )
        return self.compare(batch, Answer(logits, layers), answers)

    @torch.no_grad()
    def answer(self, teacher: nn.Module, images: Tensor) -> Answer:
        """What a teacher makes of images `(B, C, H, W)` that are normalised for the student."""
        heard, renormalised = self._heard[id(teacher)]
        if renormalised is not None:
            images = renormalised(images)
        return heard.answer(images if torch.is_autocast_enabled(images.device.type) else _as_its_own(teacher, images))

    def values(self) -> dict[str, Any]:
        parts = {
            name: {key: it.detach().to("cpu", copy=True) for key, it in part.state_dict().items()}
            for name, part in self.trained.items()
        }
        return {"parts": parts, "teachers": list(self._prints)}

    def take_back(self, values: Mapping[str, Any]) -> None:
        kind, saved = type(self).__name__, values["parts"]
        theirs = {name: {key: it.shape for key, it in part.items()} for name, part in saved.items()}
        own = {name: {key: it.shape for key, it in part.state_dict().items()} for name, part in self.trained.items()}
        if theirs != own:
            raise ValueError(
                f"{kind}: the checkpoint holds other trained parts ({', '.join(theirs) or 'none'}) than this Trainer "
                f"has ({', '.join(own) or 'none'}), or of other shapes; resume with the settings and the teacher of "
                "the run that wrote it, or load its weights alone and begin anew."
            )
        if values["teachers"] != self._prints:
            rank_zero_warn(
                f"{kind}: the run that wrote the checkpoint had another teacher, and goes on with the one given now; "
                "give it the same for the run that it would have been."
            )
        for name, part in self.trained.items():
            part.load_state_dict(saved[name])

    def untrained(self, name: str, pl_module: LightningModule) -> str:
        return (
            f"{type(self).__name__}: no optimizer has {name!r}, which is to train beside the network; let "
            f"configure_optimizers of {type(pl_module).__name__} take the parameters of `self`, or name with network= "
            "the part whose parameters it takes."
        )

    def _prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make teachers and trained parts, and refuse what does not fit, by two images of zeros."""
        kind = type(self).__name__
        root = own_paths(kind, "the module", pl_module, [self.network])[self.network]
        student, images = pl_module.get_submodule(root), torch.zeros(2, *image_shape(trainer, pl_module, self.fields))
        with as_if_nobody_looked(trainer, pl_module), torch.no_grad():
            (classes,) = _shapes(Heard(kind, "the student", student, (), self.needs_logits), images)[""][1:]
        torch.default_generator.manual_seed(self.seed)
        self.teachers = build_teachers(kind, self.teacher, self.teacher_weights, classes, images.shape[1])
        names = own_paths(kind, "the student", student, list(dict.fromkeys(self.student_layers(student))))
        self._paths = {name: f"{root}.{path}" if root and path else root or path for name, path in names.items()}
        self.outputs_of = tuple(dict.fromkeys([root, *self._paths.values()]))
        # Whose hooks are taken off again.
        with as_if_nobody_looked(trainer, pl_module), torch.no_grad():
            own = _shapes(Heard(kind, "the student", student, tuple(names), self.needs_logits), images)
        theirs = [self._introduce(trainer, pl_module, it, images) for it in self.teachers]
        for teacher, shapes in zip(self.teachers, theirs, strict=True):
            if self.same_classes and 0 < shapes[""][1] != classes > 0:
                raise ValueError(
                    f"{kind}: the teacher ({type(teacher).__name__}) answers with {shapes[''][1]} classes and the "
                    f"student with {classes}; give one that was trained on the student's classes."
                )
        self._prints = [fingerprint(teacher) for teacher in self.teachers]
        if any("_orig_mod" in name for part in (pl_module, *self.teachers) for name, _ in part.named_modules()):
            # A part that was called before it was compiled for this fit would not see its layers' hooks.
            torch.compiler.reset()
        torch.default_generator.manual_seed(self.seed)
        self.trained = dict(self.parts(own, theirs))
        if self.trained:
            # When all callbacks are set up: one that looks for the last layer, say, is not to find an adapter.
            self.undo_later(last_word(pl_module, "setup", partial(self._hang, student)).undo)

    def _introduce(
        self, trainer: Trainer, pl_module: LightningModule, teacher: nn.Module, images: Tensor
    ) -> dict[str, torch.Size]:
        """Get a teacher ready to be asked; the shapes of its answer to two images."""
        kind = type(self).__name__
        own = {id(it) for it in [*pl_module.parameters(), *pl_module.buffers()]}
        if any(id(it) in own for it in [*teacher.parameters(), *teacher.buffers()]):
            raise ValueError(
                f"{kind}: the teacher ({type(teacher).__name__}) shares weights with {type(pl_module).__name__}, so it "
                "would change as it teaches; give a copy, as copy.deepcopy makes it."
            )
        given = self.teacher if isinstance(self.teacher, (list, tuple)) else [self.teacher]
        ready = any(teacher is it for it in given)
        ours = statistics_of(getattr(trainer, "datamodule", None)) or statistics_of(pl_module)
        theirs = None if ready else statistics_of(teacher) or timms_statistics(teacher, self.teacher_weights)
        renormalised = None
        if ours is not None and theirs is not None and ours != theirs and len(ours[0]) == len(theirs[0]):
            renormalised = Renormalised(ours, theirs)
        self.undo_later(lend(teacher).close)
        heard = Heard(kind, "the teacher", teacher, list(self.teacher_layers(teacher)), self.needs_logits)
        self.undo_later(heard.leave)
        self._heard[id(teacher)] = (heard, renormalised)
        try:
            with torch.no_grad():
                return _shapes(heard, images)
        except RuntimeError as error:
            raise ValueError(
                f"{kind}: the teacher ({type(teacher).__name__}) takes no images of the student's shape "
                f"{tuple(images.shape[1:])} ({str(error).splitlines()[0]}); give one that does."
            ) from error

    def _hang(self, student: nn.Module) -> None:
        host, owner, added = student, self.state_key.replace(".", "-"), Added(self.trained)
        # A Sequential would call it.
        while isinstance(host, nn.Sequential):
            host = host[-1]
        for like in list(student.parameters())[:1]:
            added.to(like.device, like.dtype)
        added.hang_on(host, owner, ASIDE)
        self.undo_later(lambda: added.take_from(host, owner, ASIDE))
        self._parameters = {
            f"{name}.{key}": it for name, part in self.trained.items() for key, it in part.named_parameters()
        }

    def _answers(self, pl_module: LightningModule, images: Tensor) -> list[Answer]:
        again = replaying(pl_module)
        for asked, version, answers in self._asked if again else ():
            if asked is images and asked._version == version:
                return answers
        answers = [self.answer(teacher, images) for teacher in self.teachers]
        if self._replayed and not again:
            if self._asked_at != pl_module.trainer.global_step:
                self._asked, self._asked_at = [], pl_module.trainer.global_step
            self._asked.append((images, images._version, answers))
        return answers

    def _release(self) -> None:
        self._rest()
        self.teachers, self.trained, self._heard = [], {}, {}
        self._asked, self._asked_at, self._answered = [], -1, []


def _as_its_own(network: nn.Module, images: Tensor) -> Tensor:
    like = next(network.parameters(), images)
    return images.to(like.dtype)


def _shapes(heard: Heard, images: Tensor) -> dict[str, torch.Size]:
    like = next(heard.network.parameters(), images)
    heard.network.eval()
    answer = heard.answer(images.to(like.device, like.dtype))
    return {"": answer.logits.shape, **{path: it.shape for path, it in answer.layers.items()}}

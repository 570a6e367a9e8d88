"""The generations seam: one fit trains a network several times from scratch, each time taught by the time before.

At a generation's end its weights become the teacher of the next; before the next batch the network is drawn anew, and
buffers, optimizers and schedules go back to their beginning. The number of optimizer steps only grows, so files, logs
and the end of training are those of one run.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities import rank_zero_warn
from torch import Generator, Tensor

from ._begins_anew import BeginsAnew, drawn_anew, too_long_a_schedule
from ._checks import flag, number, whole
from ._counted_steps import refuse_uncounted_steps
from ._fields import Fields
from ._generation_files import saved_generation, scores_now, teacher_from, tell_of_generations
from ._heard import logits_in
from ._lengths import lengths
from ._moment import seed_of
from ._standing import copied, put_back, standing
from .distilling import Distilling
from .ensemble import Ensemble
from .masks import Masks
from .method import Method
from .targets import Targets

__all__ = ["Generations"]


class Generations(Distilling, Ensemble, BeginsAnew):
    """Divides a fit into `generations` trainings of one length; each but the first learns from the one before.

    Lengths are those of the fit's optimizer steps divided by `generations`, to one step. What a generation learns is
    `lesson`, in the place of a share `alpha` of the module's own loss. Generation 0 is trained without it, unless
    `teacher_ckpt` gives it a teacher. The last validation of a generation scores its weights: they are exchanged when
    the next batch comes.

    The loggers get the running generation as `generation`. When one has ended its weights are written as
    `generations/generation_N.ckpt` into the run's folder, if the Trainer writes checkpoints; at the end of the fit a
    table of all of them is printed and written as `report/NAME.csv`, `NAME` being the callback's name or else
    `generations`. A rehearsal (`fast_dev_run`) writes nothing and ends within generation 0.

    Args:
        term: Name of the lesson in the logs.
        generations: How many, at least 1.
        alpha: Share of the lesson in the loss, in [0, 1].
        redraw: Whether a generation begins with weights drawn anew, or with those that the first began with.
        ensemble: Whether tests evaluate all generations together (`Ensemble`).
        teacher_ckpt: Checkpoint of the same module that teaches generation 0.
        reads_labels: Whether `lesson` reads the labels of a batch.
        seed: Of the callback's own draws, at least 0.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, if batches are mappings; in other batches they come second.
        others: Go to the next base class, among them `network` and `name`.

    Raises:
        ValueError: from the constructor, for a setting out of range; at set-up, beside masks, `EarlyStopping`, another
            ensemble, or mixed labels that are read; before the first batch, if the length of training is not known or
            shorter than one step a generation, or the teacher is of another network; in the first batch, if there are
            no logits.
    """

    rests = "each generation begins with batch norm's statistics and counts as they were at the start"

    def __init__(
        self,
        *,
        term: str,
        generations: int,
        alpha: float,
        redraw: bool,
        ensemble: bool,
        teacher_ckpt: str | None,
        reads_labels: bool,
        seed: int,
        image_key: str,
        target_key: str,
        **others: Any,
    ) -> None:
        kind = type(self).__name__
        whole(kind, "generations", generations, 1)
        number(kind, "alpha", alpha, 0, 1)
        flag(kind, "redraw", redraw)
        flag(kind, "ensemble", ensemble)
        whole(kind, "seed", seed, 0)
        snapshots = generations if ensemble else 0
        super().__init__(weights={term: alpha}, own_weight=1 - alpha, snapshots=snapshots, **others)
        self.generations, self.alpha, self.redraw, self.ensemble, self.seed = generations, alpha, redraw, ensemble, seed
        self.teacher_ckpt, self.reads_labels, self.image_key, self.target_key = (
            teacher_ckpt,
            reads_labels,
            image_key,
            target_key,
        )
        self.fields = Fields(kind, image_key, target_key)
        self.generation = 0  # the running one
        self.rows: list[dict[str, Any]] = []  # of the table, one for each generation that has ended
        # Where each generation begins: `standing` before the first step, and the names of what is drawn anew.
        self.start: dict[str, Any] = {}
        self._scores: dict[str, Any] = {}  # of the running generation's last validation
        self._training: int | None = None  # optimizer steps of the fit
        self._moment = (0, 0, 0)  # rank, epoch and batch
        self._fits = False
        self._asked = False  # whether the network's answer to the first batch is waited for
        self._answer: Any = None

    @abstractmethod
    def lesson(self, student: Tensor, teacher: Tensor, batch: Any) -> Tensor:
        """The loss, a scalar, of the student's logits `(B, K)` beside the teacher's, of the same images."""

    @property
    def off(self) -> bool:
        return self.generations == 1 and self.teacher_ckpt is None

    @property
    def silent(self) -> bool:
        return self.off

    def resting(self, trainer: Trainer) -> bool:
        return self.generation == 0 and self.teacher_ckpt is None

    def part(self, training: int) -> int:
        return training // self.generations

    def over(self, step: int) -> bool:
        return bool(self._training) and self.generation + 1 < self.generations and step >= self._end(self.generation)

    def due(self, step: int) -> bool:
        # Of the running one alone: a run may have been resumed with another length.
        return self._training is not None and step == self._end(self.generation)

    def random(self) -> Generator:
        """A generator for the draws of the batch at hand, the same when it is replayed or the run resumed."""
        return Generator().manual_seed(seed_of(self.seed, *self._moment))

    def looked_at(self, network: torch.nn.Module) -> tuple[str, ...]:
        return ()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._fits = stage == "fit"
        if not self._fits or self.off:
            return
        kind = type(self).__name__
        reasons = [
            (Masks, "holds masks, which would not begin anew; prune when the generations are over"),
            (
                EarlyStopping,
                "compares each generation with the best of those before, and would end the fit; leave it out",
            ),
        ]
        if self.reads_labels:
            reasons.append((Targets, f"mixes labels, which the lesson of {kind} reads; choose another mode"))
        found = [(it, why) for rival, why in reasons for it in self.rivals(trainer, rival)]
        found += [
            (it, "keeps an ensemble at steps of its own; leave out its snapshots")
            for it in self.rivals(trainer, Ensemble)
            if isinstance(it, Ensemble) and it.snapshots
        ]
        for other, why in found:
            named = other.state_key if isinstance(other, Method) else type(other).__name__
            raise ValueError(f"{kind}: the Trainer also has {named}, which {why}.")
        self._asked, self._answer = True, None
        network = pl_module.get_submodule(self.outputs_of[0])
        self.undo_later(network.register_forward_hook(self._hear).remove)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if not self.off:
            refuse_uncounted_steps(self, trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 0:
            self.generation, self.began, self.rows, self.start, self._scores = 0, 0, [], {}, {}
        super().on_train_start(trainer, pl_module)
        if not self.off and trainer.global_step == 0 and self.teacher_ckpt is not None:
            assert self._trained is not None
            wanted = {name: self.teacher[name] for name in self._trained.state_dict() if name in self.teacher}
            self.teacher |= teacher_from(type(self).__name__, self.teacher_ckpt, self.network, wanted)

    def ready(self, trainer: Trainer, pl_module: LightningModule) -> str | None:
        kind = type(self).__name__
        epoch, self._training = lengths(trainer, pl_module)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # Lightning declares it nowhere
            return None
        if self._training is None:
            raise ValueError(
                f"{kind}: how many optimizer steps the fit has is not known, so it cannot be divided into generations; "
                "give max_steps, or max_epochs and a loader with a length."
            )
        if self._training < self.generations:
            raise ValueError(
                f"{kind}: training ends after {self._training} optimizer steps, which is less than one for each of "
                f"{self.generations} generations; train for longer."
            )
        length = self.part(self._training)
        if epoch is not None and any(self._end(it) % epoch for it in range(self.generations)):
            rank_zero_warn(
                f"{kind}: {self._training} optimizer steps in {self.generations} generations are {length} each, which "
                f"end inside epochs of {epoch} steps, so validation scores their weights before they are trained; let "
                "the number of epochs be a multiple of the generations."
            )
        if self.began != self._begin(self.generation) or trainer.global_step > self._end(self.generation):
            rank_zero_warn(
                f"{kind}: this run goes on in generation {self.generation}, which began after {self.began} optimizer "
                f"steps; in {self._training} steps of {self.generations} generations it lasts from "
                f"{self._begin(self.generation)} to {self._end(self.generation)}, so they will not be of one length; "
                "resume with the length and the generations of the run that wrote the checkpoint."
            )
            if trainer.global_step < self._end(self.generation):
                # It may have been a member already, and is one when it ends.
                self._keep([pair for pair in zip(self.steps, self.members, strict=True) if pair[0] <= self.began])
        return too_long_a_schedule(kind, trainer, epoch, length)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self.off:
            return
        if not self.start:
            drawn = [name for name, it in pl_module.named_parameters() if it.requires_grad]
            self.start = {**standing(trainer, pl_module), "drawn": drawn}
        # Now, not when the generation ends: validation has seen what was trained, and schedules of epochs have moved.
        if self.over(trainer.global_step):
            self._bear(trainer, pl_module)
        self._moment = (trainer.global_rank, trainer.current_epoch, batch_idx)
        pl_module.log("generation", float(self.generation), on_step=True, on_epoch=False)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if not self.off and self._asked:
            # In the first batch of a fit, for the first lesson may be hours away.
            answer, self._asked, self._answer = self._answer, False, None
            if answer is None:
                raise ValueError(
                    f"{type(self).__name__}: training_step did not call the part {self.network!r} (empty is the module "
                    "itself), so what it answers cannot be compared; name with network= the part that makes logits."
                )
            self._logits(answer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if not self.off and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._scores = scores_now(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if self.off or self._training is None:
            return
        if trainer.global_step < self._end(self.generations - 1):
            rank_zero_warn(
                f"{type(self).__name__}: the fit ended after {trainer.global_step} optimizer steps, in generation "
                f"{self.generation} of 0 to {self.generations - 1}."
            )
        self._record(trainer)
        tell_of_generations(trainer, self.rows, self.name or "generations")

    def term(self, pl_module: LightningModule, batch: Any, outputs: Mapping[str, list[Any]]) -> Mapping[str, Tensor]:
        logits = self._logits(outputs[self.outputs_of[0]][0])
        (name,) = self.weights
        return {name: self.lesson(logits, self.taught(self.fields.image(batch)), batch)}

    def state_dict(self) -> dict[str, Any]:
        own = {"generation": self.generation, "began": self.began, "start": self.start}
        return super().state_dict() | own | {"rows": self.rows, "scores": self._scores}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._fits:
            super().load_state_dict(state_dict)
            self.generation, self.began, self.start = (state_dict[it] for it in ("generation", "began", "start"))
            self.rows, self._scores = list(state_dict["rows"]), dict(state_dict["scores"])
        else:
            Ensemble.load_state_dict(self, state_dict)

    def _hear(self, network: torch.nn.Module, args: Any, output: Any) -> None:
        # The first one: under DDP the module itself is called once more, around its training_step.
        if self._asked and network.training and self._answer is None:
            self._answer = output

    def _logits(self, answer: Any) -> Tensor:
        logits_in(type(self).__name__, "the network", answer, None)
        logits: Tensor = answer
        return logits

    def _begin(self, generation: int) -> int:
        """Optimizer steps done when a generation begins."""
        assert self._training is not None
        return generation * self._training // self.generations

    def _end(self, generation: int) -> int:
        """Optimizer steps done when it ends."""
        return self._begin(generation + 1)

    def _bear(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the running generation and let the next one begin, taught by it."""
        assert self._trained is not None
        self._record(trainer)
        device = pl_module.device
        self.teacher = {name: it.to(device) for name, it in copied(trainer, self._trained).items()}
        self.generation, self.began, self._scores = self.generation + 1, trainer.global_step, {}
        tensors = self.start["tensors"]
        if self.redraw:
            random = Generator().manual_seed(self.seed * 1_000_003 + self.generation)
            tensors = tensors | drawn_anew({name: tensors[name] for name in self.start["drawn"]}, random)
        put_back(trainer, pl_module, {**self.start, "tensors": tensors}, {})

    def _record(self, trainer: Trainer) -> None:
        row: dict[str, Any] = {"generation": self.generation, "first_step": self.began, "steps": trainer.global_step}
        row["steps"] -= self.began
        if (file := saved_generation(trainer, self.generation)) is not None:
            row["file"] = str(file)
        self.rows = [*self.rows[: self.generation], row | self._scores]

"""The ensemble seam: weights of one run that are kept while it trains and evaluated together at test.

A member holds weights and buffers by name, on the CPU; the members travel in the callback's state. The module is never
written to: at test its own forward is run once a member, on the member's weights.
"""

import math
from abc import abstractmethod
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from ._added import is_aside
from ._around import Around
from ._checks import whole
from ._lengths import steps_done
from ._lent import call_with
from ._stand_in import StandIn
from ._standing import copied
from .method import Method, Place

__all__ = ["Ensemble", "log_mean_probability"]


def log_mean_probability(logits: Tensor) -> Tensor:
    """Logarithm of the mean of the members' softmax probabilities: logits `(M, B, K)` to `(B, K)`, float32 or wider.

    Its softmax is that mean, so cross entropy, arg max and calibration read it as the logits of the ensemble.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide.log_softmax(dim=2).logsumexp(dim=0) - math.log(len(logits))


class Ensemble(Method):
    """Keeps the module as it stands after chosen steps, and at test makes its forward that of all of them together.

    A member is taken at the end of a training batch, before the batch's checkpoints are written. Under manual
    optimisation several steps may fall into one batch; then the member is the module after that batch.

    During `test` (not `validate` or `predict`) `pl_module(...)` returns the log of the mean of the members'
    probabilities in place of logits, if the module's weights are those that the last fit left or come, like the
    members, from the file of this test; else the module is tested alone, with a warning. A file's members serve the
    test or the fit that reads it: after a test the next fit goes on with its own. Files are as ever: members stand in
    the callback's state, not in the module's.

    Args:
        snapshots: Members kept, the latest ones; 0 keeps none and changes nothing.
        others: Go to the next base class, among them `name`.

    Raises:
        ValueError: from the constructor, for a count below 0; in the first batch of a test, if forward does not return
            logits `(B, K)` or was not called.
    """

    place = Place.SCHEDULE

    def __init__(self, *, snapshots: int, **others: Any) -> None:
        super().__init__(**others)
        whole(type(self).__name__, "snapshots", snapshots, 0)
        self.snapshots = snapshots
        self.steps: list[int] = []
        self.members: list[dict[str, Tensor]] = []
        self._own: list[tuple[int, dict[str, Tensor]]] | None = None  # set aside while a test has a file's
        self._left: list[int] = []  # by which the weights that the last fit left are known
        self._belong = False  # whether members and module are of one run
        self._reads = True  # whether members of a file are taken
        self._placed: list[dict[str, Tensor]] = []
        self._before = 0
        self._stand_in: StandIn | None = None

    @abstractmethod
    def due(self, step: int) -> bool:
        """Whether the module is to be kept as it stands when `step` optimizer steps are done (`steps_done`)."""

    @property
    def _room(self) -> int:
        return 0 if self.off else self.snapshots

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self._own is not None:
            self._keep(self._own)
        self._own = list(zip(self.steps, self.members, strict=True)) if stage == "test" else None
        self._reads = stage in ("fit", "test")
        # Now, in the types of the fit: later Lightning may convert the module to the test's precision.
        self._belong = bool(self.members) and stage == "test" and _fingerprint(pl_module) == self._left
        if self._room and self._reads:
            # A file without members, as every weights-only file, reaches no hook of a callback.
            self.undo_later(Around(pl_module, "on_load_checkpoint", self._forget).undo)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._belong = True
        # What was kept later than where this run stands is of another run.
        self._keep([pair for pair in zip(self.steps, self.members, strict=True) if pair[0] <= trainer.global_step])

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._before = steps_done(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._room and any(self.due(step) for step in range(self._before + 1, steps_done(trainer) + 1)):
            pairs = list(zip(self.steps, self.members, strict=True))
            self._keep([*pairs, (trainer.global_step, copied(trainer, pl_module))])

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_test_start(trainer, pl_module)
        if self.members and self._belong:
            like = dict([*pl_module.named_parameters(), *pl_module.named_buffers()])
            self._placed = [{name: it.to(like[name]) for name, it in one.items()} for one in self.members]
            action = partial(self._forward, pl_module)
            self._stand_in = StandIn(type(self).__name__, pl_module, action, "pass snapshots=0")
            self.undo_later(self._stand_down)
            steps = ", ".join(map(str, self.steps))
            rank_zero_info(f"{type(self).__name__}: this tests the ensemble of the weights after steps {steps}.")
        elif self.members:
            rank_zero_warn(
                f"{type(self).__name__}: the module's weights are not those that the fit of the kept members left, so "
                "this tests the module alone; give ckpt_path a checkpoint that holds members to test those."
            )
        elif self._room:
            rank_zero_warn(
                f"{type(self).__name__}: no member was kept yet, so this tests the module alone; train to the end of a "
                "cycle, or test from a checkpoint that holds members (not a weights-only file)."
            )

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        if self._stand_in is not None:
            self._stand_in.must_have_been_called("the ensemble", "test_step")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        if trainer.state.fn == "fit" and self._belong and self.members:
            self._left = _fingerprint(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        if stage == "fit" and self._belong and self.members:
            self._left = _fingerprint(pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "members": self.members} if self.members else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._reads and "members" in state_dict:
            self._keep(list(zip(state_dict["steps"], state_dict["members"], strict=True)))
            self._belong = True

    def _keep(self, pairs: list[tuple[int, dict[str, Tensor]]]) -> None:
        latest = pairs[max(0, len(pairs) - self._room) :]
        self.steps, self.members = [step for step, _ in latest], [member for _, member in latest]

    def _forget(self, proceed: Any, checkpoint: dict[str, Any]) -> Any:
        self._keep([])
        return proceed(checkpoint)

    def _stand_down(self) -> None:
        assert self._stand_in is not None
        self._stand_in.undo()
        self._stand_in, self._placed = None, []

    def _forward(self, pl_module: LightningModule, proceed: Any, *args: Any, **kwargs: Any) -> Any:
        # It runs the module, and so comes back to its own forward, with a member's weights in place.
        logits = [call_with(pl_module, one, args, kwargs) for one in self._placed]
        assert self._stand_in is not None
        return log_mean_probability(torch.stack([self._stand_in.logits("the ensemble", it) for it in logits]))


def _fingerprint(pl_module: LightningModule) -> list[int]:
    """A sum of each weight's bytes, which no device and no order of summation changes; buffers differ between ranks."""
    weights = [it.detach() for name, it in pl_module.named_parameters() if not is_aside(name)]
    return [int(it.reshape(-1).view(torch.uint8).sum()) for it in weights]

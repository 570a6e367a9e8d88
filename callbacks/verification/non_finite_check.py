"""Non-finite check: finds out where NaN and infinities come from, and leaves out the steps that have them.

Before an optimizer step the losses of its backward passes and the gradients of all processes are looked at together:

    good = all losses finite and sqrt(sum of squares of the gradients) finite
"""

from collections.abc import Sequence
from typing import Any, Literal, final, get_args

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from torch.utils._pytree import keystr, tree_flatten_with_path

from ..hooks._checks import whole
from ..hooks._kept_step import KeptStep
from ..hooks._snapshot import Snapshot
from ..hooks.admission import Admission
from ._culprits import Culprits, is_finite, not_finite, tensors_in
from ._tensors import some

__all__ = ["NonFiniteCheck", "all_finite", "non_finite_tensors", "not_finite_in"]

Action = Literal["stop", "skip", "rollback", "off"]


def all_finite(losses: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Whether losses and the norm of all gradients are finite, one truth value; nothing is waited for.

    A norm beyond what its type can hold (1.8e19 for float32) counts as not finite. Norms of float16 are float32.

    >>> all_finite([torch.tensor(1.0)], [torch.ones(3)]), all_finite([], [torch.ones(3), torch.tensor(torch.inf)])
    (tensor(True), tensor(False))
    """
    answers = [it.isfinite().all() for it in losses]
    if gradients:
        answers.append(get_total_norm([it.float() if it.dtype is torch.float16 else it for it in gradients]).isfinite())
    return torch.stack(answers).all() if answers else torch.tensor(True)


def not_finite_in(batch: Any) -> list[str]:
    """What of a batch is not finite, in words.

    >>> not_finite_in({"image": torch.tensor([[0.0], [torch.nan]]), "target": torch.tensor([1, 2])})
    ["`batch['image']` holds 1 NaN of 2 numbers, first in sample 1"]
    """
    return [
        f"`batch{keystr(path)}` holds {not_finite(it)}"
        for path, it in tree_flatten_with_path(batch)[0]
        if isinstance(it, Tensor) and it.is_floating_point() and not is_finite(it)
    ]


def non_finite_tensors(module: nn.Module) -> list[str]:
    """Names of the parameters and buffers that hold numbers that are not finite."""
    return [name for name, it in [*module.named_parameters(), *module.named_buffers()] if not is_finite(it)]


@final
class NonFiniteCheck(Admission):
    """Names the part that made NaN or an infinity, before weights move; then stops, skips the step or goes back.

    Losses and gradients are looked at before each optimizer step, synchronised and before clipping. When some are not
    finite, it is told whether a parameter or buffer was not before, or the batch; else the step is computed again
    without a trace to find the first part of the module whose output is not finite though its inputs are, or backward
    the first whose gradients are not; else the loss is to blame.

    Skipping leaves the whole step out, all micro-batches of its window, as if its batches had not come: weights, what
    the optimizer keeps, buffers (so batch norm's statistics stay clean) and parameters that no optimizer trains (a
    teacher that `training_step` moves) are those of before, to the bit, on all processes. The batches are spent: random
    streams, counters and schedules go on, and what was logged, counted by metrics or kept in plain attributes of the
    module stays. Going back also gives weights, buffers and the optimizer's state those of a snapshot.

    In float16 gradients that overflow are the loss scaler's business, which skips and scales down; losses are looked
    at. An overflow in the forward pass makes a loss that is not finite.

    Args:
        action: `stop` raises before the step is taken, so that weights and what a checkpoint on exception holds are
            clean; `skip` leaves the step out; `rollback` does so and goes back to the last snapshot. Neutral: `off`.
        patience: Steps skipped in a row, or times gone back in a fit, after which the next one stops, >= 1.
        every_n_steps: With `stop`, optimizer steps from one look to the next, >= 1. A look waits for the device; those
            of the steps between wait there, until a look, a checkpoint or the end of training. Above 1 the weights may
            have been spoilt when it is found out, and no part can be named.
        snapshot_every: With `rollback`, optimizer steps from one snapshot to the next, >= 1; it lies in memory beside
            the weights and takes as much as they, buffers and the optimizer's state do.
        name: Part of the state key.

    Raises:
        ValueError: from the constructor, for a setting out of range, or `every_n_steps` above 1 where steps are skipped
            or taken back; at set-up, for manual optimisation or LBFGS with these, or a second one.
        RuntimeError: for a step whose loss or gradient is not finite, as the action has it.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import NonFiniteCheck
        >>> trainer = Trainer(callbacks=[NonFiniteCheck(action="skip")], accelerator="cpu", logger=False)

    See also:
        `torch.autograd.set_detect_anomaly`, which names the function whose backward made NaN, at several times the cost
        in every step; `Trainer(detect_anomaly=True)`.
    """

    neutral = ({"action": "off"},)

    def __init__(
        self,
        action: Action = "stop",
        patience: int = 3,
        every_n_steps: int = 1,
        snapshot_every: int = 100,
        name: str | None = None,
    ) -> None:
        super().__init__(every_n_steps=every_n_steps, name=name)
        if action not in get_args(Action):
            raise ValueError(f"NonFiniteCheck: action is {action!r}; give 'stop', 'skip', 'rollback' or 'off'.")
        whole("NonFiniteCheck", "patience", patience, 1)
        whole("NonFiniteCheck", "every_n_steps", every_n_steps, 1)
        whole("NonFiniteCheck", "snapshot_every", snapshot_every, 1)
        if every_n_steps > 1 and action in ("skip", "rollback"):
            raise ValueError(
                f"NonFiniteCheck: every_n_steps is {every_n_steps}, but a step that was taken unseen can no longer be "
                f"left out; give 1 with action={action!r}, or stop."
            )
        self.action: Action = action
        self.patience, self.snapshot_every = patience, snapshot_every
        self.left_out = 0  # steps in a row, or times gone back in this fit
        self._snapshot: Snapshot | None = None
        self._constants: set[str] = set()

    @property
    def leaves_out(self) -> bool:
        return self.action in ("skip", "rollback")

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"left_out": self.left_out}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.left_out = state_dict["left_out"]

    def fresh(self) -> None:
        self.left_out = 0

    def begins(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Such as a mask of minus infinities.
        self._constants = {name for name, it in pl_module.named_buffers() if not is_finite(it)}
        if bad := [name for name, it in pl_module.named_parameters() if not is_finite(it)]:
            raise ValueError(
                f"NonFiniteCheck: before the first step {some(bad)} of {type(pl_module).__name__} holds numbers that "
                "are not finite; look at how it is made, or at the file it was loaded from."
            )

    def ends(self) -> None:
        self._snapshot = None

    def admitted(self, losses: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
        return all_finite(losses, gradients)

    def window_begins(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.action != "rollback" or (self._snapshot is not None and trainer.global_step % self.snapshot_every):
            return
        if bool(all_finite([], tensors_in(list(pl_module.parameters())))):
            self._snapshot = Snapshot(pl_module, trainer.optimizers)

    def taken(self) -> None:
        if self.action == "skip":
            self.left_out = 0

    def refused(
        self, trainer: Trainer, pl_module: LightningModule, kept: KeptStep, optimizer: Optimizer, since: int
    ) -> None:
        step = trainer.global_step + 1
        when = f"in step {step}" if since == step - 1 else f"between steps {since + 1} and {step}"
        what = self._cause(trainer, kept, optimizer, lost=since != step - 1)
        sentence = f"NonFiniteCheck: loss or gradient was not finite {when}: {what}"
        self.left_out += 1
        if not self.leaves_out:
            raise RuntimeError(f"{sentence}. The step was not taken.")
        if self.left_out > self.patience:
            times = "steps in a row were skipped" if self.action == "skip" else "times it went back"
            raise RuntimeError(f"{sentence}. {self.patience} {times} before, which is its patience, so the fit ends.")
        if self.action == "rollback" and self._snapshot is not None:
            self._snapshot.put_back()
        done = "the step is skipped" if self.action == "skip" else "the step is skipped and the snapshot put back"
        rank_zero_warn(f"{sentence}; {done} ({self.left_out} of {self.patience}).")

    def refused_late(self, trainer: Trainer, pl_module: LightningModule, since: int) -> None:
        step = trainer.global_step
        when = f"in step {step}" if since == step - 1 else f"between steps {since + 1} and {step}"
        held = self._held(pl_module)
        raise RuntimeError(f"NonFiniteCheck: loss or gradient was not finite {when}: {held}. The step was taken.")

    def _held(self, pl_module: LightningModule) -> str:
        bad = [name for name in non_finite_tensors(pl_module) if name not in self._constants]
        held = f"{some(bad)} hold such numbers by now" if bad else "no parameter holds such a number yet"
        return f"{held}; look with every_n_steps=1 to have the part named"

    def _cause(self, trainer: Trainer, kept: KeptStep, optimizer: Optimizer, lost: bool) -> str:
        """What is to blame, in words, said by the first process that knows it."""
        own = self._own_cause(trainer.lightning_module, kept, optimizer, lost)
        if trainer.world_size == 1:
            return own or _UNKNOWN
        every: list[str] = [""] * trainer.world_size
        dist.all_gather_object(every, own)
        return next((f"process {rank}, {it}" for rank, it in enumerate(every) if it), _UNKNOWN)

    def _own_cause(self, pl_module: LightningModule, kept: KeptStep, optimizer: Optimizer, lost: bool) -> str:
        bad = [name for name in non_finite_tensors(pl_module) if name not in self._constants]
        if lost:
            return self._held(pl_module)
        found = next((it for batch in kept.batches if (it := not_finite_in(batch))), [])
        clauses = [f"{some(bad)} held such numbers before the step, so an earlier one wrote them"] if bad else []
        clauses += [f"{', '.join(found)}, so the data are to blame"] if found else []
        culprits = Culprits(pl_module)
        try:
            with culprits:
                kept.compute(optimizer)
        except Exception as error:  # of any kind: a stranger's step, computed where it does not expect it
            clauses += [f"the step could not be computed again ({error})"] * (not clauses)
        return "; ".join(clauses) or _blamed(culprits, self.bad_loss)


_UNKNOWN = (
    "computed again it is finite, so the step depends on more than weights, batch and random streams, or its gradients "
    "are finite and their norm is not"
)


def _blamed(culprits: Culprits, bad_loss: bool) -> str:
    if culprits.forward:
        return culprits.forward
    if culprits.given_outside:
        return f"`{culprits.given_outside}` was given such numbers, which `training_step` made outside of all parts"
    if bad_loss:
        return (
            f"all parts put out finite numbers, at last `{culprits.last}`, so `training_step` makes such a loss of them"
        )
    if culprits.backward:
        return f"{culprits.backward}; a root, a logarithm or a norm has no finite slope at 0"
    if culprits.spoilt:
        return (
            f"the loss is finite, and so is what all parts put out, at last `{culprits.last}`, but the gradient that "
            "the loss gives it is not; a root, a logarithm or a norm has no finite slope at 0"
        )
    return ""

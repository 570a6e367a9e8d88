"""Batch leaks: one sample of a batch changes what a network makes of another."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, final

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from ..hooks._checks import flag, number
from ..hooks._findings import Action
from ..hooks._frozen import part_name
from ..hooks._layer_names import patterns_of, that_match
from ..hooks._rerun import Rerun, StepFailedError
from ..hooks.first_batch import FirstBatch
from ._leaks import Leak, Leaks, batch_leaks
from ._rows import resized
from ._watch import STEP

__all__ = ["BatchLeakCheck", "Leak", "Leaks", "batch_leaks"]


@final
class BatchLeakCheck(FirstBatch):
    """Finds layers through which one sample of a batch changes the output of another, on a fit's first batch.

    A wrong reshape, a mean over the wrong dimension or a softmax along the batch trains, and its loss falls; what the
    network says of an image then depends on its neighbours. The step is computed again with half of the images as their
    negatives, by two ways of halving them, and the first layer is named whose other rows move. Images are found where
    they enter the outermost layers, so that batches may be of any kind, and losses, which compare samples on purpose,
    are not judged. The step itself is judged where it takes torch's cross entropy by the batch's labels.

    Batch norm mixes samples while it trains, by design, and rests during the look; its layers are told. The look is
    made in training mode, with dropout's draws fixed, and once more in evaluation mode if the step can run there.

    Args:
        action: `error` raises before the first step what is found, `warn` says it. Neutral: `off`.
        allow_batch_norm: Whether batch norms may measure the batch; if not, each is a finding.
        allowed: Layers that mix samples on purpose, as patterns of the shell on their paths; `forward` and
            `training_step` stand for what the module computes between layers. What comes after one that puts out a
            tensor with a row a sample is judged as if it did not mix.
        tolerance: A row's change by up to this share of the layer's largest output is rounding, >= 0.
        name: Part of the state key.

    Raises:
        ValueError: from the constructor, for a setting out of range; before the first step, if a pattern matches no
            layer.
        RuntimeError: with `action="error"`, before the first step, if samples are mixed.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import BatchLeakCheck
        >>> trainer = Trainer(callbacks=[BatchLeakCheck()], accelerator="cpu", logger=False)

    See also:
        `UnusedParametersCheck` and `InitialLossCheck`, which look at the first steps, too.
    """

    def __init__(
        self,
        action: Action = "error",
        allow_batch_norm: bool = True,
        allowed: str | list[str] | None = None,
        tolerance: float = 1e-4,
        name: str | None = None,
    ) -> None:
        super().__init__(action=action, name=name)
        flag("BatchLeakCheck", "allow_batch_norm", allow_batch_norm)
        number("BatchLeakCheck", "tolerance", tolerance, 0)
        patterns_of("BatchLeakCheck", "allowed", [] if allowed is None else allowed)
        self.allow_batch_norm, self.allowed, self.tolerance = allow_batch_norm, allowed, tolerance

    def look(self, trainer: Trainer, pl_module: LightningModule, batch: Any, step: Rerun) -> Sequence[str]:
        allowed = self._allowed(pl_module)
        fewer = resized(batch)
        look = partial(
            batch_leaks,
            step,
            pl_module,
            batch,
            self.tolerance,
            # All processes have to run the step equally often.
            lambda found: bool(trainer.strategy.reduce_boolean_decision(found, all=False)),
            {"" if it == "forward" else it for it in allowed},
            None if fewer is None else (Rerun(trainer, pl_module, fewer, step.batch_idx), fewer),
        )
        training = look()
        name = type(pl_module).__name__
        if not training.judged:
            rank_zero_warn(
                f"BatchLeakCheck: nothing of {name} could be judged, for no layer was given several images at once; "
                "give it batches of at least 2 samples, or leave it out."
            )
        told = [_sentence(leak, name, "while training") for leak in training.leaks]
        resting = _in_evaluation(pl_module, look)
        known = {leak.path for leak in training.leaks}
        told += [_sentence(leak, name, "in evaluation mode") for leak in resting.leaks if leak.path not in known]
        if measuring := ", ".join(it for it in resting.batch_norms if it not in allowed):
            told.append(
                f"batch norms without running statistics mix the samples of a batch in evaluation mode, too: "
                f"{measuring}; let them keep statistics, by track_running_stats=True, or name them with allowed=."
            )
        return told + self._of_batch_norms([it for it in training.batch_norms if it not in allowed])

    def _allowed(self, pl_module: LightningModule) -> set[str]:
        if self.allowed is None:
            return set()
        paths = ["forward", STEP, *(part_name(path) for path, _ in pl_module.named_modules() if path)]
        patterns = patterns_of("BatchLeakCheck", "allowed", self.allowed)
        return set(that_match("BatchLeakCheck", "allowed", patterns, paths, "layers"))

    def _of_batch_norms(self, paths: Sequence[str]) -> list[str]:
        if not paths:
            return []
        listed = ", ".join(paths)
        if self.allow_batch_norm:
            rank_zero_info(
                f"BatchLeakCheck: batch norms mix the samples of a batch while training, by design: {listed}."
            )
            return []
        return [
            f"batch norms mix the samples of a batch while training: {listed}; use group norm or layer norm, or say "
            "allow_batch_norm=True."
        ]


def _in_evaluation(pl_module: LightningModule, look: Callable[[], Leaks]) -> Leaks:
    with _evaluated(pl_module):
        try:
            return look()
        except StepFailedError:  # it need not run in evaluation mode
            return Leaks((), (), 0)


def _sentence(leak: Leak, module: str, when: str) -> str:
    rows = ", ".join(map(str, leak.rows[:4])) + (", ..." if len(leak.rows) > 4 else "")
    place = leak.path or "forward"
    if place == "forward":
        where, what = f"forward of {module}, between its layers,", "of what it returns"
    elif place == STEP:
        where, what = f"training_step of {module}, between its layers,", "of what the loss is given"
    else:
        where, what = f"{place!r} ({leak.kind})", "of its output"
    return (
        f"{where} mixes the samples of a batch {when}: rows {rows} {what} change by {leak.share:.2g} of its largest "
        "value when only other samples do; look for a view, reshape, mean or softmax over the first dimension, or say "
        f"allowed=[{place!r}] if it is meant so."
    )


@contextmanager
def _evaluated(module: nn.Module) -> Iterator[None]:
    """Inside, all parts are in evaluation mode."""
    flags = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in flags:
            part.training = False
        yield
    finally:
        for part, training in flags:
            part.training = training

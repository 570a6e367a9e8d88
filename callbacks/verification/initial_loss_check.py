"""Initial loss: what an untrained network's loss should be, and what is wrong where it is far above."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, final

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from ..hooks._checks import above_zero, number, whole
from ..hooks._findings import Action
from ..hooks._heard_losses import HeardLoss, HeardLosses, LabelsOutOfRangeError, labels_in
from ..hooks._rerun import Rerun, StepFailedError
from ..hooks.first_batch import FirstBatch

__all__ = ["InitialLossCheck", "mistaken_input", "plain_loss", "uniform_loss"]

_BINARY = ("binary_cross_entropy", "binary_cross_entropy_with_logits")


def uniform_loss(kind: str, classes: int) -> float:
    """The loss of predictions that favour nothing, in nats: ln K, and ln 2 a label where each stands alone.

    Mixed or smoothed labels have the same, for their shares sum to one.

    Args:
        kind: torch's name of the function, such as `cross_entropy` or `binary_cross_entropy_with_logits`.
        classes: K.

    >>> round(uniform_loss("cross_entropy", 10), 4), round(uniform_loss("binary_cross_entropy", 10), 4)
    (2.3026, 0.6931)
    """
    return math.log(2 if kind in _BINARY else classes)


def plain_loss(heard: HeardLoss) -> float:
    """The mean of a loss over its samples, without class weights, smoothing or another reduction."""
    given, target = heard.given.cpu().double(), heard.target.cpu()
    target = target.double() if target.is_floating_point() or heard.kind in _BINARY else target
    function = getattr(F, heard.kind)
    if heard.kind in _BINARY:
        return float(function(given, target))
    ignored = {} if target.is_floating_point() else {"ignore_index": heard.settings.get("ignore_index", -100)}
    return float(function(given, target, **ignored))


def mistaken_input(heard: HeardLoss) -> str:
    """What a loss was given in the place of logits, or of the probabilities that it asks for; empty if nothing is told.

    Args:
        heard: Of at least 16 numbers, or nothing is told. A sigmoid is told only if autograd has seen it, for where the
            last bias outweighs what the rows differ in, logits may all lie between 0 and 1, too.
    """
    given = heard.given.cpu().double()
    if given.numel() < 16 or not given.isfinite().all():
        return ""
    close = 1e-2 if heard.given.dtype in (torch.float16, torch.bfloat16) else 1e-4
    shares = bool((given >= 0).all())
    sigmoid = heard.by_sigmoid and bool(((given >= 0) & (given <= 1)).all())
    if heard.kind in _BINARY:
        return "probabilities" if sigmoid and heard.kind.endswith("logits") else ""
    if given.ndim < 2 or given.shape[1] < 2:
        return ""
    sums = given.sum(1)
    if shares and _near(sums, 1, close):
        return "probabilities"
    if heard.kind == "nll_loss":
        return "" if _near(given.logsumexp(1), 0, close) else "logits"
    if shares and given.ndim == 2 and _near(given.sum(0), 1, close):
        return "probabilities that sum to 1 over the batch"
    if sigmoid:
        return "numbers between 0 and 1, as after a sigmoid"
    if shares and bool((given == 0).any()) and bool((given > 0).any()):
        return "no negative number, as after a ReLU"
    return "log-probabilities" if _near(given.logsumexp(1), 0, close) else ""


def _near(values: Tensor, number: float, close: float) -> bool:
    return bool((values - number).abs().max() < close)


@final
class InitialLossCheck(FirstBatch):
    """Compares the loss of the untrained network with that of uniform predictions, on a fit's first batch.

    The step is computed once more and torch's cross entropies in it are heard. One that is taken by the batch's labels,
    or over as many classes as there are, should be near ln K (ln 2 a label for binary ones); far above it the network
    is sure of what it cannot know. Below is no fault, for pretrained networks begin there. What is commonly wrong is
    looked for by itself: probabilities in the place of logits, which train slowly and without any error, logits where
    log-probabilities belong, a last ReLU or sigmoid, labels that no output stands for, another number of outputs than
    classes. With a loss too large the spread of logits and images is told.

    Losses that have no such value, as a detector's with its prior, a contrastive one or a diffusion's, are not judged,
    which is said, unless `expected` names one. Of a fit that goes on, from a checkpoint or in the same Trainer, only
    mistakes are judged, for the weights may be trained.

    Args:
        tolerance: How far above ln K the loss may lie, in nats, > 0; around `expected`, to both sides.
        expected: Of the loss that `training_step` returns, in its own unit, such as 1 for the error of noise of unit
            variance; None hears cross entropies.
        classes: K, at least 2; None asks the datamodule and the module for `num_classes`.
        action: `error` raises before the first step, `warn` says it. Neutral: `off`.
        name: Part of the state key.

    Shape:
        Logits `(N, K, ...)`.

    Raises:
        ValueError: from the constructor, for a setting out of range.
        RuntimeError: with `action="error"`, before the first step, for what is found.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import InitialLossCheck
        >>> trainer = Trainer(callbacks=[InitialLossCheck(tolerance=0.5)], accelerator="cpu", logger=False)

    See also:
        `BatchLeakCheck` and `UnusedParametersCheck`, which look at the first steps, too.
    """

    def __init__(
        self,
        tolerance: float = 1.0,
        expected: float | None = None,
        classes: int | None = None,
        action: Action = "warn",
        name: str | None = None,
    ) -> None:
        super().__init__(action=action, name=name)
        above_zero("InitialLossCheck", "tolerance", tolerance)
        if expected is not None:
            number("InitialLossCheck", "expected", expected, -math.inf)
        if classes is not None:
            whole("InitialLossCheck", "classes", classes, 2)
        self.tolerance, self.expected, self.classes = tolerance, expected, classes

    def look(self, trainer: Trainer, pl_module: LightningModule, batch: Any, step: Rerun) -> Sequence[str]:
        name = type(pl_module).__name__
        if goes_on := trainer.global_step > 0 or trainer.ckpt_path is not None:
            rank_zero_info(f"InitialLossCheck: the fit of {name} goes on, so the size of its first loss says nothing.")
        heard = HeardLosses(labels_in(batch))
        try:
            with heard:
                result = step()
        except StepFailedError as error:
            if isinstance(error.__cause__, LabelsOutOfRangeError):
                return [_no_such_class(error.__cause__.heard)]
            raise
        loss = result.get("loss") if isinstance(result, dict) else result
        returned = float(loss.detach()) if isinstance(loss, Tensor) and loss.numel() == 1 else None
        if returned is not None and not math.isfinite(returned):
            return [f"the first loss of {name} is {returned}; look at the images and labels of the first batch."]
        if self.expected is not None:
            return [] if goes_on else self._beside_expected(name, returned)
        known = self.classes or _declared(trainer, pl_module)
        losses = [it for it in heard.losses if it.of_batch or (it.given.ndim > 1 and it.given.shape[1] == known)]
        if not losses:
            rank_zero_info(
                f"InitialLossCheck: training_step of {name} takes no cross entropy by the batch's labels, so nobody "
                "knows what its first loss should be; give it as expected=, or leave the check out."
            )
            return []
        # Beside the head of the classes there may be one of coarser ones.
        known = None if known in [_outputs(it) for it in losses] else known
        found = [self._judged(it, known, batch, goes_on) for it in losses]
        first = {told: place for place, them in reversed([*enumerate(found, 1)]) for told in them}
        return [
            told
            if all(told in it for it in found)
            else f"of {len(found)} cross entropies, number {first[told]}: {told}"
            for told in dict.fromkeys(told for them in found for told in them)
        ]

    def _beside_expected(self, name: str, returned: float | None) -> list[str]:
        if returned is None:
            return [f"training_step of {name} returns no loss to compare with expected={self.expected}; return it."]
        if abs(returned - float(self.expected or 0)) <= self.tolerance:
            return []
        return [
            f"the first loss of {name} is {returned:.4g}, further than {self.tolerance:g} from "
            f"expected={self.expected:g}; look at the scale of its targets and outputs."
        ]

    def _judged(self, heard: HeardLoss, known: int | None, batch: Any, goes_on: bool) -> list[str]:
        found, outputs = [], _outputs(heard)
        if known is not None and heard.kind not in _BINARY and outputs != known:
            found.append(f"{heard.kind} is over {outputs} outputs, and there are {known} classes; make them agree.")
        mistake = mistaken_input(heard)
        if mistake == "log-probabilities":
            rank_zero_info(
                "InitialLossCheck: cross_entropy was given log-probabilities, which it takes the log-softmax of again; "
                "that changes nothing, and nll_loss, or logits, would do."
            )
        elif mistake:
            found.append(_mistaken(heard, mistake))
        if not goes_on and (not mistake or mistake == "log-probabilities"):
            loss, uniform = plain_loss(heard), uniform_loss(heard.kind, outputs)
            if not loss <= uniform + self.tolerance:
                found.append(_too_large(heard, loss, uniform, outputs, batch))
        return found


def _outputs(heard: HeardLoss) -> int:
    return heard.given.shape[1] if heard.given.ndim > 1 else 1


def _declared(trainer: Trainer, pl_module: LightningModule) -> int | None:
    told = [getattr(it, "num_classes", None) for it in (getattr(trainer, "datamodule", None), pl_module)]
    return next((it for it in told if isinstance(it, int) and it > 1), None)


def _no_such_class(heard: HeardLoss) -> str:
    counted = heard.target[heard.target != heard.settings.get("ignore_index", -100)]
    classes = heard.given.shape[1] if heard.given.ndim > 1 else len(heard.given)
    return (
        f"{heard.kind} is over {classes} outputs, which stand for the labels 0 to {classes - 1}, and the first batch "
        f"has labels from {int(counted.min())} to {int(counted.max())}; count labels from 0, or give the network more "
        "outputs."
    )


def _mistaken(heard: HeardLoss, mistake: str) -> str:
    if heard.kind == "nll_loss":
        return f"nll_loss was given {mistake} in the place of log-probabilities; take cross_entropy of the logits."
    if mistake.startswith("no negative"):
        harm = "so what is below zero has no gradient; leave the last activation out."
    else:
        # One at 1 and the others at 0 is the best that can be reached.
        best = math.log(1 + math.exp(-1)) if heard.kind in _BINARY else math.log(math.e + heard.given.shape[1] - 1) - 1
        harm = f"so it cannot fall below {best:.3g}; leave the last softmax or sigmoid out, for the loss has its own."
    return f"{heard.kind} was given {mistake}, in the place of logits, {harm}"


def _too_large(heard: HeardLoss, loss: float, uniform: float, outputs: int, batch: Any) -> str:
    spread = float(heard.given.cpu().double().std())
    words = "ln 2" if heard.kind in _BINARY else f"ln {outputs}"
    causes = [f"its logits have a standard deviation of {spread:.3g}, so let the last layer start smaller"]
    if images := next(_images(batch), None):
        mean, std = images
        if max(abs(mean), std) > 5:
            causes.insert(0, f"the images have mean {mean:.3g} and standard deviation {std:.3g}, so normalise them")
    return (
        f"the untrained network's {heard.kind} is {loss:.4g}, and predictions that favour nothing have {uniform:.4g} "
        f"({words}); {'; '.join(causes)}."
    )


def _images(value: Any) -> Iterator[tuple[float, float]]:
    """Mean and standard deviation of what may be images."""
    if isinstance(value, Tensor):
        if value.ndim > 2 and not value.is_complex() and value.numel() > 1:
            numbers = value.cpu().double()
            yield float(numbers.mean()), float(numbers.std())
        return
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    for part in parts:
        yield from _images(part)

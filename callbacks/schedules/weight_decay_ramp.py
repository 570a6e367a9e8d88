"""Weight decay that moves along half a cosine from the beginning of the training to its end.

Caron et al. 2021, arXiv:2104.14294, section 3.2: a cosine from 0.04 to 0.4. With t optimizer steps done of T:

    decay_t = end + (start - end) (1 + cos(pi t / T)) / 2
"""

from collections.abc import Sequence
from typing import Literal, final

from lightning.pytorch import LightningModule

from ..hooks._checks import number
from ..hooks.values import Moment, Values
from .warm_restarts import cosine_annealing

__all__ = ["WeightDecayRamp"]


@final
class WeightDecayRamp(Values):
    """Moves the weight decay along half a cosine from one value to another, as DINO does from 0.04 to 0.4.

    The decay of every parameter group that has one is set before each optimizer step, as a function of
    `trainer.global_step` alone; groups without (norms, biases) stay without, learning rates and momentum are not
    touched. The length is the Trainer's (`max_epochs` or `max_steps`, whichever ends first). `LearningRateMonitor` of
    Lightning logs the decays with `log_weight_decay=True`.

    Args:
        start: Weight decay of the first step, >= 0; `own` is what the module gave the group.
        end: Weight decay towards which it moves, reached after the last step, >= 0; likewise. Neutral: both `own`.
        name: Part of the state key.

    Raises:
        ValueError: a setting outside its range; no parameter group of the module has a weight decay; the Trainer has
            another ramp; an optimizer step that goes past Lightning, which does not count it.

    Example:
        >>> from lightning_vision.callbacks import WeightDecayRamp
        >>> ramp = WeightDecayRamp(start=0.04, end=0.4)
        >>> ramp.plan(training=4)
        >>> [round(ramp.decay(step, own=0.05), 3) for step in range(5)]
        [0.04, 0.093, 0.22, 0.347, 0.4]

    Differs from the paper:
        All groups with a decay are moved, the authors' code moves the first of two, which is the same group there. The
        last step is taken one step before `end`, as theirs is.

    See also:
        `Ramp`, which moves any number along a curve and a stretch of one's choice; `WarmUpCosine`, which moves learning
        rates.
    """

    neutral = ({"start": "own", "end": "own"},)

    def __init__(
        self, start: float | Literal["own"] = 0.04, end: float | Literal["own"] = 0.4, name: str | None = None
    ) -> None:
        super().__init__(name=name)
        for argument, value in (("start", start), ("end", end)):
            if value != "own":
                number("WeightDecayRamp", argument, value, 0)
        self.start, self.end = start, end
        self._training: int | None = None

    def names(self, pl_module: LightningModule) -> Sequence[str]:
        return ("optimizer.weight_decay",)

    def value(self, name: str, own: float, moment: Moment) -> float:
        return self.decay(moment.step, own)

    def begins(self, moment: Moment) -> str | None:
        return self.plan(moment.steps)

    def decay(self, step: int, own: float) -> float:
        """The weight decay when `step` optimizer steps are done, of a group that the module gave `own`, above 0."""
        start, end = (own if value == "own" else value for value in (self.start, self.end))
        if self._training is None:
            return start
        return cosine_annealing(min(step, self._training), self._training, start, end)

    def plan(self, training: int | None) -> str | None:
        """Take over how many optimizer steps the training has, or return a warning if nobody knows."""
        self._training = training
        if training is None:
            return (
                "WeightDecayRamp: the end of this training is not known, so the weight decay stays where it starts; "
                "set max_epochs or max_steps."
            )
        return None

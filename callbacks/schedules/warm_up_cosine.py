"""Linear warm-up, then half a cosine down to the end of the training, whatever its length.

The warm-up is that of Goyal et al. 2017, arXiv:1706.02677, section 2.2; the cosine is the first cycle of Loshchilov and
Hutter 2016, arXiv:1608.03983, Eq. 5. Both are fractions of each parameter group's own base rate.
"""

from typing import Literal, final

from ..hooks._checks import number, whole
from ..hooks.schedule import Schedule
from .warm_restarts import cosine_annealing

__all__ = ["WarmUpCosine", "warm_up"]


def warm_up(step: int, warmup: float, floor: float = 0.0) -> float:
    """A learning rate that rises along a straight line from its floor to 1.

    Before the first step it is one part of `warmup + 1` above the floor, so that no step is lost at a rate of 0; after
    `warmup` steps it is 1.

    >>> [warm_up(step, warmup=3) for step in range(4)]
    [0.25, 0.5, 0.75, 1.0]
    """
    return floor + (1.0 - floor) * min(1.0, (step + 1) / (warmup + 1))


@final
class WarmUpCosine(Schedule):
    """Lets the learning rate rise for a while and then fall along a cosine that ends with the training.

    The rate of every parameter group is set before each optimizer step, as a function of `trainer.global_step` times
    the group's own base rate, so layer-wise decay is kept. The length is the Trainer's (`max_epochs` or `max_steps`,
    whichever ends first), so a longer training needs no second setting; weights and gradients stay untouched.

    Args:
        warmup: Length of the rise in units of `interval`, a whole number >= 0; 0 leaves it out.
        eta_min: Lowest rate as a fraction of the group's base rate, 0 to 1, from which the rise begins and at which the
            cosine ends; neutral is 1.
        interval: Whether `warmup` counts optimizer steps or epochs; the rate moves every optimizer step in both cases.
        replace: Take the place of a schedule that the module has, for this fit.
        name: Part of the state key.

    Raises:
        ValueError: a setting outside its range; the module has a schedule and `replace` is false; `interval="epoch"`
            where the steps of an epoch are not known; an optimizer step that goes past Lightning, which does not count
            it.

    Example:
        >>> from lightning_vision.callbacks import WarmUpCosine
        >>> schedule = WarmUpCosine(warmup=1)
        >>> schedule.plan(epoch=None, training=5)
        >>> [schedule.factor(step) for step in (0, 1, 3, 5)]
        [0.5, 1.0, 0.5, 0.0]

    See also:
        `WarmRestarts`, whose cosine starts anew; `WarmUpSteps`, which falls in steps.
    """

    neutral = ({"eta_min": 1.0},)

    def __init__(
        self,
        warmup: int = 0,
        eta_min: float = 0.0,
        interval: Literal["step", "epoch"] = "step",
        replace: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(replace=replace, name=name)
        whole("WarmUpCosine", "warmup", warmup, 0)
        number("WarmUpCosine", "eta_min", eta_min, 0, 1)
        if interval not in ("step", "epoch"):
            raise ValueError(f"WarmUpCosine: interval is {interval!r}; give 'step' or 'epoch'.")
        self.warmup, self.eta_min, self.interval = warmup, eta_min, interval
        # In optimizer steps, once `plan` has been told of the training.
        self._rise = warmup
        self._end: int | None = None

    def factor(self, step: int) -> float:
        if step < self._rise or self._end is None:
            return warm_up(step, self._rise, self.eta_min)
        fall = max(1, self._end - self._rise)
        return cosine_annealing(min(step - self._rise, fall), fall, floor=self.eta_min)

    def plan(self, epoch: int | None, training: int | None) -> str | None:
        if self.interval == "epoch" and self.warmup:
            if epoch is None:
                raise ValueError(
                    "WarmUpCosine: the optimizer steps of an epoch are not known here, so warmup cannot count epochs; "
                    "pass interval='step' and warmup in optimizer steps."
                )
            self._rise = self.warmup * epoch
        self._end = training
        if training is None:
            return (
                "WarmUpCosine: the end of this training is not known, so the learning rate stays where the warm-up "
                "leaves it; set max_epochs or max_steps."
            )
        if self._rise >= training:
            return (
                f"WarmUpCosine: training ends after {training} optimizer steps, inside the warm-up of {self._rise}; "
                f"lower warmup={self.warmup} ({self.interval}s), or train longer."
            )
        return None

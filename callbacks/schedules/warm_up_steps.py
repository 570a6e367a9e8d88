"""Linear warm-up, then a learning rate that falls in steps: at given moments, or every so often.

The first is the schedule of Kolesnikov et al. 2019, arXiv:1912.11370, section 3.3, the second that of Tan and Le 2021,
arXiv:2104.00298, section 5.1. All rates are fractions of each parameter group's own base rate.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Literal, final

from ..hooks._checks import factor, number
from ..hooks.schedule import Schedule
from ._stretch import finite

__all__ = ["WarmUpSteps", "stepped_rate"]


def stepped_rate(
    step: int, warmup: float, gamma: float, milestones: Sequence[float] = (), every: float | None = None
) -> float:
    """A learning rate that rises from 0 along a straight line, then falls by a factor at a time.

    It is `step / warmup` before step `warmup`; afterwards `gamma` to the power of the milestones that have been
    reached, or of `step // every`. Moments are counted from the beginning of the training, not from the warm-up's end.

    Args:
        step: Optimizer steps done.
        warmup: Length of the rise, in optimizer steps.
        gamma: Factor of one fall.
        milestones: Optimizer steps, ascending, after which the rate falls.
        every: Optimizer steps from one fall to the next, in place of milestones.

    >>> [stepped_rate(step, 4, 0.5, milestones=[6, 8]) for step in (0, 1, 4, 5, 6, 7, 8)]
    [0.0, 0.25, 1.0, 1.0, 0.5, 0.5, 0.25]
    """
    if step < warmup:
        return step / warmup
    # A little more than `step`, for 2.4 epochs of 1250 steps are 2999.9999999999995 and not 3000.
    falls = bisect_right(milestones, step + 1e-6) if every is None else int((step + 1e-6) // every)
    return float(gamma**falls)


@final
class WarmUpSteps(Schedule):
    """Lets the learning rate rise for a while and then fall in steps, at given moments or every so often.

    The rate of every parameter group is set before each optimizer step, as a function of `trainer.global_step` times
    the group's own base rate, so layer-wise decay is kept. Moments are counted from the beginning of the training.
    Weights and gradients stay untouched.

    Args:
        milestones: Moments at which the rate falls, in units of `interval`, ascending and above 0; the default is none.
        every: In place of milestones, the units of `interval` from one fall to the next, above 0.
        gamma: Factor of one fall, above 0, at most 1; 1 never falls. The default is that of Kolesnikov et al.
        warmup: Length of the rise from 0, in units of `interval`, >= 0; 0 leaves it out.
        interval: Whether moments are optimizer steps or epochs; rates change between optimizer steps in both cases.
        replace: Take the place of a schedule that the module has, for this fit.
        name: Part of the state key.

    Raises:
        ValueError: a setting outside its range, or both milestones and `every`; the module has a schedule and `replace`
            is false; `interval="epoch"` where the steps of an epoch are not known; an optimizer step that goes past
            Lightning, which does not count it.

    Example:
        >>> from lightning_vision.callbacks import WarmUpSteps
        >>> schedule = WarmUpSteps(milestones=[200, 300, 400], warmup=100)
        >>> [schedule.factor(step) for step in (0, 50, 100, 200, 300)]
        [0.0, 0.5, 1.0, 0.1, 0.010000000000000002]

    See also:
        `torch.optim.lr_scheduler.MultiStepLR` and `StepLR`, which have no warm-up; `WarmUpCosine`.
    """

    neutral = ({"gamma": 1.0, "warmup": 0},)

    def __init__(
        self,
        milestones: list[float] | None = None,
        every: float | None = None,
        gamma: float = 0.1,
        warmup: float = 0,
        interval: Literal["step", "epoch"] = "step",
        replace: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(replace=replace, name=name)
        number("WarmUpSteps", "warmup", warmup, 0)
        factor("WarmUpSteps", "gamma", gamma)
        if interval not in ("step", "epoch"):
            raise ValueError(f"WarmUpSteps: interval is {interval!r}; give 'step' or 'epoch'.")
        if milestones and every is not None:
            raise ValueError(
                f"WarmUpSteps: both milestones={milestones} and every={every} were given; drop one of them."
            )
        if every is not None and not (finite(every) and every > 0):
            raise ValueError(f"WarmUpSteps: every is {every!r}; give a number of {interval}s above 0.")
        moments = list(milestones or [])
        if not all(finite(moment) and moment > 0 for moment in moments) or sorted(set(moments)) != moments:
            raise ValueError(f"WarmUpSteps: milestones are {moments}; give ascending numbers of {interval}s above 0.")
        self.milestones, self.every, self.gamma = moments, every, gamma
        self.warmup, self.interval = warmup, interval
        self._unit = 1

    def factor(self, step: int) -> float:
        every = None if self.every is None else self.every * self._unit
        moments = [moment * self._unit for moment in self.milestones]
        return stepped_rate(step, self.warmup * self._unit, self.gamma, moments, every)

    def plan(self, epoch: int | None, training: int | None) -> str | None:
        if self.interval == "epoch":
            if epoch is None:
                raise ValueError(
                    "WarmUpSteps: the optimizer steps of an epoch are not known here, so it cannot count in epochs; "
                    "pass interval='step' and all moments in optimizer steps."
                )
            self._unit = epoch
        if training is not None and self.warmup * self._unit >= training:
            return (
                f"WarmUpSteps: training ends after {training} optimizer steps, inside the warm-up of "
                f"{self.warmup * self._unit:g}; lower warmup={self.warmup} ({self.interval}s), or train longer."
            )
        return None

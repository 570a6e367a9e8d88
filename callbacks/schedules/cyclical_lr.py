"""CLR: rates that rise and fall in triangles, Smith 2017, arXiv:1506.01186, section 3.1.

    cycle = floor(1 + t / (2 stepsize)),    x = |t / stepsize - 2 cycle + 1|
    lr = base_lr + (max_lr - base_lr) max(0, 1 - x) scale

`t` is counted in optimizer steps, cycles from 1. `scale` is 1 (triangular), 2^(1 - cycle) (triangular2) or gamma^t
(exp_range). Where the fall takes another time than the rise, as torch has it, x is piecewise linear likewise. All is
computed from whole numbers, so the ends of triangles are exact however late they come.
"""

from typing import Literal, final

from ..hooks._checks import above_zero, factor, flag, momenta, number, whole
from ..hooks.schedule import Schedule

__all__ = ["CyclicalLR", "between", "cycle_height", "cycle_scale"]

# Of max_lr; section 3.3 of the paper advises a third or a quarter.
LOWEST = 0.25


def cycle_height(step: int, up: int, down: int) -> float:
    """How far up a triangle an optimizer step stands: max(0, 1 - x), 0 where a cycle begins and 1 at its peak.

    >>> [cycle_height(step, up=2, down=4) for step in range(8)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0, 0.5]
    """
    place = step % (up + down)
    return place / up if place <= up else (up + down - place) / down


def cycle_scale(step: int, length: int, mode: str, gamma: float = 1.0) -> float:
    """What the height of a cycle of `length` optimizer steps is multiplied by at one of them.

    >>> [cycle_scale(step, 4, "triangular2") for step in (0, 3, 4, 8)]
    [1.0, 1.0, 0.5, 0.25]
    """
    if mode == "triangular":
        return 1.0
    return float(0.5 ** (step // length) if mode == "triangular2" else gamma**step)


def between(low: float, high: float, height: float) -> float:
    """The value at a height from 0, which is `low`, to 1, which is `high`; both exactly."""
    return low * (1 - height) + high * height


@final
class CyclicalLR(Schedule):
    """Lets the learning rate rise and fall between two bounds in triangles, and momentum fall and rise with it.

    The rate of every parameter group is set before each optimizer step, as a function of `trainer.global_step`. The
    group with the highest rate of its own goes from `base_lr` to `max_lr`, both learning rates as in the paper, and all
    others keep their ratio to it, so layer-wise decay is kept; where all groups have one rate, as in the paper, all get
    exactly these. Weights and gradients stay untouched.

    Args:
        step_size_up: Length of a rise in units of `interval`, a whole number; the paper's stepsize, there 2 to 10
            epochs. Neutral is 0, which leaves rates and momentum alone.
        step_size_down: Length of a fall likewise, >= 1; None is that of the rise.
        base_lr: Lowest rate, >= 0; None is a quarter of the highest one, as the paper advises.
        max_lr: Highest rate, above 0, at least `base_lr`; None is the highest rate that the module gave a group.
        mode: `triangular` repeats the first cycle, `triangular2` halves the height with each cycle, and in `exp_range`
            it shrinks by `gamma` with each optimizer step.
        gamma: Factor of `exp_range`, above 0, at most 1; the paper has 0.99994.
        cycle_momentum: Move momentum (SGD's, or Adam's beta1) the other way; groups whose momentum is 0 keep 0.
        base_momentum: Lowest momentum, where rates are highest, 0 to below 1; torch's default.
        max_momentum: Highest momentum, where rates are lowest, at least `base_momentum`, below 1; torch's default.
        interval: Whether step sizes count optimizer steps or epochs; rates move every optimizer step in both cases.
        replace: Take the place of a schedule that the module has, for this fit.
        name: Part of the state key.

    Raises:
        ValueError: a setting outside its range; the module has a schedule and `replace` is false; no group has a
            momentum and `cycle_momentum` is true; `interval="epoch"` where the steps of an epoch are not known; an
            optimizer step that goes past Lightning, which does not count it.

    Example:
        >>> from lightning_vision.callbacks import CyclicalLR
        >>> schedule = CyclicalLR(step_size_up=4, base_lr=0.25, max_lr=1.0)
        >>> [schedule.factor(step) for step in (0, 2, 4, 6, 8)]
        [0.25, 0.625, 1.0, 0.625, 0.25]
        >>> [round(schedule.momentum(step), 3) for step in (0, 2, 4)]
        [0.9, 0.85, 0.8]

    Reference: Smith 2017, arXiv:1506.01186

    BibTeX:
        @inproceedings{smith2017cyclical,
          title = {Cyclical Learning Rates for Training Neural Networks},
          author = {Smith, Leslie N.},
          booktitle = {IEEE Winter Conference on Applications of Computer Vision},
          year = {2017},
          eprint = {1506.01186},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        Momentum is torch's and fastai's addition, as is a fall of another length; `cycle_momentum=False` is the paper.

    See also:
        `LRRangeTest`, which proposes the two bounds; `OneCycle`, a single cycle as long as the training;
        `torch.optim.lr_scheduler.CyclicLR`, which gives all groups the same two bounds unless it is given lists.
    """

    neutral = ({"step_size_up": 0},)

    def __init__(
        self,
        step_size_up: int = 2000,
        step_size_down: int | None = None,
        base_lr: float | None = None,
        max_lr: float | None = None,
        mode: Literal["triangular", "triangular2", "exp_range"] = "triangular",
        gamma: float = 1.0,
        cycle_momentum: bool = True,
        base_momentum: float = 0.8,
        max_momentum: float = 0.9,
        interval: Literal["step", "epoch"] = "step",
        replace: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(replace=replace, name=name)
        whole("CyclicalLR", "step_size_up", step_size_up, 0)
        if step_size_down is not None:
            whole("CyclicalLR", "step_size_down", step_size_down, 1)
        if base_lr is not None:
            number("CyclicalLR", "base_lr", base_lr, 0)
        if max_lr is not None:
            above_zero("CyclicalLR", "max_lr", max_lr)
        if base_lr is not None and max_lr is not None and base_lr > max_lr:
            raise ValueError(f"CyclicalLR: base_lr={base_lr} is above max_lr={max_lr}; exchange them.")
        if mode not in ("triangular", "triangular2", "exp_range"):
            raise ValueError(f"CyclicalLR: mode is {mode!r}; give 'triangular', 'triangular2' or 'exp_range'.")
        factor("CyclicalLR", "gamma", gamma)
        flag("CyclicalLR", "cycle_momentum", cycle_momentum)
        momenta("CyclicalLR", base_momentum, max_momentum)
        if interval not in ("step", "epoch"):
            raise ValueError(f"CyclicalLR: interval is {interval!r}; give 'step' or 'epoch'.")
        self.step_size_up, self.step_size_down = step_size_up, step_size_down
        self.base_lr, self.max_lr, self.mode, self.gamma = base_lr, max_lr, mode, gamma
        self.cycle_momentum, self.base_momentum, self.max_momentum = cycle_momentum, base_momentum, max_momentum
        self.interval = interval
        self._unit = 1

    def height(self, step: int) -> float:
        """How far from the lowest rate, 0, to the highest, 1, an optimizer step stands."""
        up, down = self._lengths
        return cycle_height(step, up, down) * cycle_scale(step, up + down, self.mode, self.gamma)

    def factor(self, step: int) -> float:
        highest = self.share(self.max_lr)
        lowest = LOWEST * highest if self.base_lr is None else self.share(self.base_lr)
        return between(lowest, highest, self.height(step))

    def momentum(self, step: int) -> float | None:
        return between(self.max_momentum, self.base_momentum, self.height(step)) if self.cycle_momentum else None

    def plan(self, epoch: int | None, training: int | None) -> str | None:
        if self.interval == "epoch":
            if epoch is None:
                raise ValueError(
                    "CyclicalLR: how many optimizer steps an epoch has is not known (a loader without length, manual "
                    "optimisation or a GradientAccumulationScheduler); give step sizes in steps with interval='step'."
                )
            self._unit = epoch
        if self.max_lr is None and self.base_lr is not None and self.share(self.base_lr) > 1:
            raise ValueError(
                f"CyclicalLR: base_lr={self.base_lr} is above {self.own_rate:g}, the highest rate of the module, which "
                "is the upper bound without max_lr; give max_lr, or a lower base_lr."
            )
        cycle = sum(self._lengths)
        if training is None or training % cycle == 0:
            return None
        before, after = (count * cycle // self._unit for count in (training // cycle, training // cycle + 1))
        return (
            f"CyclicalLR: training ends after {training} optimizer steps, in the middle of a cycle, while the rate is "
            f"lowest at a cycle's end; train for {f'{before} or ' if before else ''}{after} {self.interval}s to end "
            "there."
        )

    @property
    def _lengths(self) -> tuple[int, int]:
        """Optimizer steps of a rise and of a fall."""
        down = self.step_size_up if self.step_size_down is None else self.step_size_down
        return self.step_size_up * self._unit, down * self._unit

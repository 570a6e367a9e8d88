"""SGDR: a cosine that starts anew, Loshchilov and Hutter 2016, arXiv:1608.03983, Eq. 5.

    eta_t = eta_min + (eta_max - eta_min) (1 + cos(pi T_cur / T_i)) / 2,    T_{i+1} = T_mult T_i

Here eta_max is each parameter group's own base rate and all rates are fractions of it. Cycles are counted from 0; cycle
`i` is `T_i = t_0 t_mult**i` steps long, and `T_cur`, the steps since it began, is 0 .. T_i - 1. The paper lets T_cur
grow by fractions of an epoch; counted in optimizer steps both are whole numbers, so rounding moves no restart.
"""

import math
from typing import Literal, final

from ..hooks._checks import factor, number, whole
from ..hooks.ensemble import Ensemble
from ..hooks.schedule import Schedule

__all__ = ["WarmRestarts", "cosine_annealing", "restart_position", "restart_start"]


def restart_start(cycle: int, t_0: int, t_mult: int) -> int:
    """The optimizer steps before a cycle of warm restarts begins.

    They are 0, t_0, t_0 (1 + t_mult), t_0 (1 + t_mult + t_mult^2) and so on, for `cycle` = 0, 1, 2, 3.
    """
    return t_0 * cycle if t_mult == 1 else t_0 * (t_mult**cycle - 1) // (t_mult - 1)


def restart_position(t: int, t_0: int, t_mult: int) -> tuple[int, int, int]:
    """Where an optimizer step stands among warm restarts.

    Returns the cycle of step `t`, the steps since the cycle began (T_cur) and the cycle's length (T_i).
    """
    if t_mult == 1:
        return t // t_0, t % t_0, t_0
    # The cycle is the largest i with t_mult**i <= grown; the logarithm may miss it by one, the powers are exact.
    grown = t * (t_mult - 1) // t_0 + 1
    cycle = round(math.log(grown, t_mult))
    if t_mult**cycle > grown:
        cycle -= 1
    return cycle, t - restart_start(cycle, t_0, t_mult), t_0 * t_mult**cycle


def cosine_annealing(t_cur: float, t_i: float, peak: float = 1.0, floor: float = 0.0) -> float:
    """A learning rate that falls along half a cosine, from its peak to its floor.

    Eq. 5: `peak` at `t_cur = 0`, half-way at `t_i / 2`, `floor` at `t_i`.
    """
    return floor + (peak - floor) * (1 + math.cos(math.pi * t_cur / t_i)) / 2


@final
class WarmRestarts(Schedule, Ensemble):
    """Lets the learning rate fall along a cosine and start anew, each cycle `t_mult` times as long as the last.

    The rate of every parameter group is set before each optimizer step, as a function of `trainer.global_step` times
    the group's own base rate, so layer-wise decay is kept. Weights, gradients and momentum stay untouched. With
    `snapshots` the weights at the end of each cycle are kept, and tests evaluate their ensemble.

    Args:
        t_0: Length of the first cycle in units of `interval`, a whole number >= 1; the paper uses 1, 10, 50, 100 and
            200 epochs.
        t_mult: Growth of the cycles, a whole number >= 1; the paper uses 1 and 2.
        eta_min: Lowest rate as a fraction of the group's base rate, 0 to 1, the paper's eta_min / eta_max; torch's
            `eta_min` divided by `lr`. The default is the paper's. Neutral is 1.
        interval: Whether `t_0` counts optimizer steps or epochs; the rate moves every optimizer step in both cases.
        restart_decay: Factor on the height of the peak at each restart, above 0, at most 1; the paper's is 1.
        snapshots: How many of the latest cycle ends are kept for the ensemble; 0 keeps none.
        replace: Take the place of a schedule that the module has, for this fit.
        name: Part of the state key.

    Shape:
        For the ensemble, `pl_module(...)` returns logits `(B, K)` and during tests log-probabilities `(B, K)`.

    Raises:
        ValueError: a setting outside its range; the module has a schedule and `replace` is false; the first cycle is
            longer than the training; `interval="epoch"` where the steps of an epoch are not known; an optimizer step
            that goes past Lightning, which does not count it.

    Example:
        >>> from lightning_vision.callbacks import WarmRestarts
        >>> schedule = WarmRestarts(t_0=10, t_mult=2, interval="step")
        >>> [schedule.factor(step) for step in (0, 5, 10, 20, 30)]
        [1.0, 0.5, 1.0, 0.5, 1.0]

    Reference: Loshchilov and Hutter 2016, arXiv:1608.03983

    BibTeX:
        @inproceedings{loshchilov2017sgdr,
          title = {{SGDR}: Stochastic Gradient Descent with Warm Restarts},
          author = {Loshchilov, Ilya and Hutter, Frank},
          booktitle = {International Conference on Learning Representations},
          year = {2017},
          eprint = {1608.03983},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        The floor is relative to each group's rate; `restart_decay` is timm's. The ensemble follows Huang et al. 2017,
        arXiv:1704.00109, with this schedule in place of theirs, whose cycles are all of one length.

    See also:
        `torch.optim.lr_scheduler.CosineAnnealingWarmRestarts`, which has one floor for all groups and counts its own
        calls.
    """

    neutral = ({"eta_min": 1.0},)

    def __init__(
        self,
        t_0: int,
        t_mult: int = 1,
        eta_min: float = 0.0,
        interval: Literal["step", "epoch"] = "step",
        restart_decay: float = 1.0,
        snapshots: int = 0,
        replace: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(replace=replace, snapshots=snapshots, name=name)
        whole("WarmRestarts", "t_0", t_0, 1)
        whole("WarmRestarts", "t_mult", t_mult, 1)
        number("WarmRestarts", "eta_min", eta_min, 0, 1)
        factor("WarmRestarts", "restart_decay", restart_decay)
        if interval not in ("step", "epoch"):
            raise ValueError(f"WarmRestarts: interval is {interval!r}; give 'step' or 'epoch'.")
        self.t_0, self.t_mult, self.eta_min = t_0, t_mult, eta_min
        self.interval, self.restart_decay = interval, restart_decay
        self._unit = 1

    def factor(self, step: int) -> float:
        cycle, t_cur, t_i = restart_position(step, self.t_0 * self._unit, self.t_mult)
        return cosine_annealing(t_cur, t_i, max(self.restart_decay**cycle, self.eta_min), self.eta_min)

    def due(self, step: int) -> bool:
        return restart_position(step, self.t_0 * self._unit, self.t_mult)[1] == 0

    def plan(self, epoch: int | None, training: int | None) -> str | None:
        if self.interval == "epoch":
            if epoch is None:
                raise ValueError(
                    "WarmRestarts: how many optimizer steps an epoch has is not known (a loader without length, manual "
                    "optimisation or a GradientAccumulationScheduler); give t_0 in steps with interval='step'."
                )
            self._unit = epoch
        if training is None:
            return None
        if training < self.t_0 * self._unit:
            raise ValueError(
                f"WarmRestarts: the first cycle takes {self.t_0 * self._unit} optimizer steps and training ends after "
                f"{training}; lower t_0={self.t_0} ({self.interval}s), or train longer."
            )
        cycle, t_cur, _ = restart_position(training, self.t_0 * self._unit, self.t_mult)
        if t_cur == 0:
            return None
        before, after = (restart_start(it, self.t_0, self.t_mult) for it in (cycle, cycle + 1))
        return (
            f"WarmRestarts: training ends after {training} optimizer steps, in the middle of a cycle, while the "
            f"solution to use is the one at a cycle's end; train for {before} or {after} {self.interval}s to end there."
        )

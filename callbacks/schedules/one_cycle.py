"""1cycle: one rise of the learning rate and one long fall, Smith and Topin 2017, arXiv:1708.07120, section 3.

With T optimizer steps, counted from 0, a rise ends at step `pct_start T - 1` and the fall at T - 1, the last one, as
torch has it. The rate goes from `max_lr / div_factor` to `max_lr` to `max_lr / (div_factor final_div_factor)`, momentum
the other way. Section 4 estimates the best rate from three weights in a row (`hessian_free_rate`).
"""

from collections.abc import Mapping, Sequence
from typing import Literal, final

import torch
from torch import Tensor

from ..hooks._checks import above_zero, flag, momenta, number
from ..hooks.schedule import Schedule
from ..hooks.trail import Trail
from .warm_restarts import cosine_annealing

__all__ = ["OneCycle", "annealed", "hessian_free_rate", "moves_and_bends"]


def annealed(step: int, values: Sequence[float], ends: Sequence[float], shape: str = "cos") -> float:
    """A value that goes from the first of `values` to the next ones, which it has at the steps `ends`; then it stays.

    Args:
        step: Optimizer steps done.
        values: One more than `ends`.
        ends: Steps, ascending, of which the first may be below 0: then it is on its way already.
        shape: `cos`, half a cosine from one value to the next, or `linear`.

    >>> [round(annealed(step, (0.0, 1.0, 0.5), (2, 6)), 3) for step in range(8)]
    [0.0, 0.5, 1.0, 0.927, 0.75, 0.573, 0.5, 0.5]
    """
    begin = 0.0
    for start, stop, end in zip(values[:-1], values[1:], ends, strict=True):
        if step <= end:
            done = (step - begin) / (end - begin) if end > begin else 1.0
            return cosine_annealing(done, 1.0, start, stop) if shape == "cos" else start + (stop - start) * done
        begin = end
    return values[-1]


def moves_and_bends(
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    third: Sequence[Tensor],
    rates: Sequence[float],
    next_rates: Sequence[float],
) -> Tensor:
    """Absolute values summed over weights, float64 `(3,)`: of the first move, the second, the change of the gradient.

    A step of rate e moves w by -e g, so g_i is (w_i - w_{i+1}) / e_i. Weights whose rate is 0 are left out.

    Args:
        first: Tensors of weights w_i.
        second: The same after a step, w_{i+1}.
        third: The same after another, w_{i+2}.
        rates: Learning rate of each tensor in the first step.
        next_rates: Likewise in the second.
    """
    total = torch.zeros(3, dtype=torch.float64, device=first[0].device if first else None)
    for before, between, after, rate, next_rate in zip(first, second, third, rates, next_rates, strict=True):
        if rate and next_rate:
            exact = torch.promote_types(between.dtype, torch.float32)
            move, next_move = between.to(exact) - before, after.to(exact) - between
            bend = torch.sub(move / rate, next_move, alpha=1 / next_rate)
            total += torch.stack([it.abs_().sum(dtype=torch.float64) for it in (move, next_move, bend)])
    return total


def hessian_free_rate(
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    third: Sequence[Tensor],
    rates: Sequence[float],
    next_rates: Sequence[float] | None = None,
) -> float:
    """The learning rate that three weights in a row call for, without any second derivative.

    Eq. 8: `lr (w_{i+1} - w_i) / (2 w_{i+1} - w_i - w_{i+2})` for each weight; for one rate of all, numerators and
    denominators are summed over weights as absolute values. Of gradient descent on a quadratic it is 1 / h, the inverse
    of the curvature, also where the rate changes from one step to the next.

    Args:
        first: Tensors of weights w_i.
        second: The same after a step, w_{i+1}.
        third: The same after another, w_{i+2}.
        rates: Learning rate of each tensor in the first step.
        next_rates: Likewise in the second; None are the same.

    Returns:
        Above 0; infinity where weights move along a straight line, and not a number where a step moved none.

    >>> w = [torch.tensor([1.0 * (1 - 0.25 * 2.0) ** step]) for step in range(3)]  # h = 2, lr = 0.25
    >>> hessian_free_rate(w[:1], w[1:2], w[2:], [0.25])
    0.5
    """
    return _rate(moves_and_bends(first, second, third, rates, rates if next_rates is None else next_rates).tolist())


def _rate(sums: Sequence[float]) -> float:
    move, next_move, bend = sums
    if not (move and next_move):
        return float("nan")
    return move / bend if bend else float("inf")


@final
class OneCycle(Schedule, Trail):
    """Lets the learning rate rise once and fall far below its start by the training's last step.

    The rate of every parameter group is set before each optimizer step, as a function of `trainer.global_step`. The
    group with the highest rate of its own rises to `max_lr`, a learning rate, and all others keep their ratio to it, so
    layer-wise decay is kept. The length is the Trainer's (`max_epochs` or `max_steps`, whichever ends first, in
    optimizer steps of all devices), so that the last step has the final rate. Momentum moves the other way. Weights and
    gradients stay untouched.

    Args:
        max_lr: Highest rate, above 0; None is the highest rate that the module gave a group.
        pct_start: Share of the training that the rise takes, 0 to 1.
        div_factor: `max_lr` over the first rate, above 0; neutral is 1, together with `final_div_factor=1`,
            `max_lr=None`, `cycle_momentum=False` and `estimate_every=0`.
        final_div_factor: The first rate over the last one, above 0; neutral likewise.
        anneal: Half a cosine (`cos`) or a straight line (`linear`) from one rate to the next; the paper's is the line.
        three_phase: Fall to the first rate in as many steps as the rise took, and then on to the last one, as the paper
            does; otherwise fall all the way at once, as fastai does.
        cycle_momentum: Move momentum (SGD's, or Adam's beta1), too; groups whose momentum is 0 keep 0.
        base_momentum: Lowest momentum, where rates are highest, 0 to below 1.
        max_momentum: Highest momentum, where the cycle begins and ends, at least `base_momentum`, below 1.
        estimate_every: Optimizer steps from one estimate of the best rate to the next, at least 3 for each optimizer,
            which loggers get as `hessian_free_lr`; it takes two copies of the weights while it looks. 0 makes none.
        replace: Take the place of a schedule that the module has, for this fit.
        name: Part of the state key.

    Raises:
        ValueError: a setting outside its range; the module has a schedule and `replace` is false; no group has a
            momentum and `cycle_momentum` is true; an optimizer step that goes past Lightning, which does not count it.

    Example:
        >>> from lightning_vision.callbacks import OneCycle
        >>> schedule = OneCycle(max_lr=1.0, pct_start=0.3, anneal="linear", div_factor=10, final_div_factor=100)
        >>> schedule.plan(epoch=None, training=10)
        >>> [round(schedule.factor(step), 3) for step in range(10)]
        [0.1, 0.55, 1.0, 0.857, 0.715, 0.572, 0.429, 0.286, 0.144, 0.001]

    Reference: Smith and Topin 2017, arXiv:1708.07120

    BibTeX:
        @article{smith2017superconvergence,
          title = {Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates},
          author = {Smith, Leslie N. and Topin, Nicholay},
          journal = {arXiv preprint arXiv:1708.07120},
          year = {2017},
          eprint = {1708.07120},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        Defaults are torch's, which are fastai's. The estimate knows that the rate changed between its two steps; what
        momentum, weight decay or Adam's scaling move is in it, as it was in the authors' runs.

    See also:
        `LRRangeTest`, which proposes `max_lr`; `CyclicalLR`, which cycles again and again;
        `torch.optim.lr_scheduler.OneCycleLR`, which must be told the length.
    """

    neutral = ({"max_lr": None, "div_factor": 1, "final_div_factor": 1, "cycle_momentum": False, "estimate_every": 0},)

    def __init__(
        self,
        max_lr: float | None = None,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        anneal: Literal["cos", "linear"] = "cos",
        three_phase: bool = False,
        cycle_momentum: bool = True,
        base_momentum: float = 0.85,
        max_momentum: float = 0.95,
        estimate_every: int = 0,
        replace: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(replace=replace, estimate_every=estimate_every, name=name)
        if max_lr is not None:
            above_zero("OneCycle", "max_lr", max_lr)
        number("OneCycle", "pct_start", pct_start, 0, 1)
        above_zero("OneCycle", "div_factor", div_factor)
        above_zero("OneCycle", "final_div_factor", final_div_factor)
        if anneal not in ("cos", "linear"):
            raise ValueError(f"OneCycle: anneal is {anneal!r}; give 'cos' or 'linear'.")
        flag("OneCycle", "three_phase", three_phase)
        if three_phase and pct_start > 0.5:
            raise ValueError(
                f"OneCycle: a fall as long as the rise of pct_start={pct_start} does not fit behind it; give at most "
                "0.5, or three_phase=False."
            )
        flag("OneCycle", "cycle_momentum", cycle_momentum)
        momenta("OneCycle", base_momentum, max_momentum)
        self.max_lr, self.pct_start, self.anneal, self.three_phase = max_lr, pct_start, anneal, three_phase
        self.div_factor, self.final_div_factor = div_factor, final_div_factor
        self.cycle_momentum, self.base_momentum, self.max_momentum = cycle_momentum, base_momentum, max_momentum
        # In optimizer steps, once `plan` has been told of the training.
        self._total: int | None = None

    def factor(self, step: int) -> float:
        highest = self.share(self.max_lr)
        first = highest / self.div_factor
        return self._at(step, first, highest, first / self.final_div_factor)

    def momentum(self, step: int) -> float | None:
        high, low = self.max_momentum, self.base_momentum
        return self._at(step, high, low, high) if self.cycle_momentum else None

    def plan(self, epoch: int | None, training: int | None) -> str | None:
        self._total = training
        if training is None:
            return (
                "OneCycle: the end of this training is not known, so the learning rate stays where the cycle begins "
                f"({self.factor(0) * self.own_rate:g}); set max_epochs or max_steps."
            )
        return None

    def read(
        self,
        first: Sequence[Tensor],
        second: Sequence[Tensor],
        third: Sequence[Tensor],
        rates: Sequence[float],
        next_rates: Sequence[float],
    ) -> Tensor:
        return moves_and_bends(first, second, third, rates, next_rates)

    def estimates(self, sums: Sequence[float]) -> Mapping[str, float]:
        rate = _rate(sums)
        return {"hessian_free_lr": rate} if 0 < rate < float("inf") else {}

    def _at(self, step: int, first: float, top: float, last: float) -> float:
        """The value at an optimizer step of what goes from `first` to `top` and by the end to `last`."""
        if self._total is None:
            return first
        rise = self.pct_start * self._total
        if self.three_phase:
            return annealed(step, (first, top, first, last), (rise - 1, 2 * rise - 2, self._total - 1), self.anneal)
        return annealed(step, (first, top, last), (rise - 1, self._total - 1), self.anneal)

"""The LR range test: the loss while the learning rate rises, Smith 2017, arXiv:1506.01186, section 3.3.

Of rates lr_i and the losses before their steps, as means over a window around each (`smoothed`):

    max_lr  = half of the rate at which the loss is lowest
    base_lr = the rate at which a tenth of the fall to there is done, at most a quarter of max_lr

On a quadratic of curvature L the loss falls until the rate is 2 / L, where gradient descent stops converging, so half
is 1 / L, the best constant rate. The quarter is the paper's advice.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal, final

import numpy as np
from numpy.typing import NDArray

from ..hooks._checks import number, whole
from ..hooks.forerun import Conclusion, Forerun

__all__ = ["Divergence", "LRRangeTest", "diverges", "proposed_rates", "rates_between", "smoothed"]

BEGUN, LOWEST = 0.1, 0.25  # of the fall, and of max_lr


def rates_between(min_lr: float, max_lr: float, num_steps: int, mode: str = "linear") -> list[float]:
    """The rates of the test's steps, from the first to the last, equally far apart or in equal ratios.

    >>> rates_between(0.0, 1.0, 5), rates_between(0.25, 1.0, 3, "exponential")
    ([0.0, 0.25, 0.5, 0.75, 1.0], [0.25, 0.5, 1.0])
    """
    spaced = np.linspace if mode == "linear" else np.geomspace
    return [float(it) for it in spaced(min_lr, max_lr, num_steps)]


def smoothed(losses: Sequence[float], window: int) -> NDArray[np.float64]:
    """Means over a window of steps around each; the first and the last loss stand for what lies beyond.

    >>> smoothed([3.0, 0.0, 3.0, 6.0], window=3).tolist()
    [2.0, 2.0, 3.0, 5.0]
    """
    padded = np.pad(np.asarray(losses, dtype=np.float64), (window // 2, (window - 1) // 2), mode="edge")
    # Each window is summed anew: what a running sum leaves of large losses would be more than small ones are.
    return np.asarray(np.lib.stride_tricks.sliding_window_view(padded, window).mean(axis=1))


def diverges(losses: Sequence[float], window: int, factor: float) -> bool:
    """Whether the mean of the last `window` losses is `factor` times the lowest such mean, or a loss is not finite.

    Where the lowest mean is below 0, it is so far above it as it would be above its absolute value.

    >>> diverges([4.0, 1.0, 3.0], 1, 4.0), diverges([4.0, 1.0, 4.1], 1, 4.0), diverges([1.0, float("nan")], 5, 4.0)
    (False, True, True)
    """
    met = Divergence(window, factor)
    return [met(it) for it in losses][-1]


class Divergence:
    """What `diverges` says of the losses so far, as they come one by one.

    Args:
        window: Steps over which losses are averaged.
        factor: Of the lowest mean, above 1.
    """

    def __init__(self, window: int, factor: float) -> None:
        self.factor, self.lowest, self.finite = factor, math.inf, True
        self.last = deque[float](maxlen=window)

    def __call__(self, loss: float) -> bool:
        """Whether they diverge, with this one as the next."""
        self.finite = self.finite and math.isfinite(loss)
        if not self.finite:
            return True
        self.last.append(loss)
        mean = float(np.mean(self.last))
        self.lowest = min(self.lowest, mean)
        return mean > self.lowest + (self.factor - 1) * abs(self.lowest)


def proposed_rates(rates: Sequence[float], losses: Sequence[float], window: int = 5) -> tuple[float, float] | None:
    """`base_lr` and `max_lr`, to three digits, from the rates of steps and the losses before them.

    Args:
        rates: Ascending.
        losses: As many; from the first that is not finite on they are left out.
        window: Steps over which losses are averaged.

    Returns:
        None where the loss does not fall.

    >>> proposed_rates([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [2.0, 2.0, 1.5, 1.0, 0.5, 3.0], window=1)
    (0.0625, 0.25)
    """
    finite = np.isfinite(losses)
    count = len(losses) if finite.all() else int(finite.argmin())
    if not count:
        return None
    curve = smoothed(losses[:count], window)
    lowest = int(curve.argmin())
    fall = curve[0] - curve[lowest]
    if not fall > 0:
        return None
    highest = rates[lowest] / 2
    begun = rates[int((curve <= curve[0] - BEGUN * fall).argmax())]
    return float(f"{min(begun, LOWEST * highest):.3g}"), float(f"{highest:.3g}")


@final
class LRRangeTest(Forerun):
    """Raises the learning rate over some steps before the first, plots the loss against it and proposes bounds for it.

    The steps are taken on training batches before the fit's first step, and everything is put back: weights, buffers,
    plain attributes of the module (tensors, generators, numbers, containers of them), optimizer, random streams,
    metrics, logs and the loader's place, so the fit after it is the fit without it. A table
    (`report/lr_range_test.csv`), a picture (`media/train/lr_range_test/`, and in loggers that take pictures) and a line
    that names the settings of `CyclicalLR` and `OneCycle` are left. All ranks take the same steps. Rates are those of
    the parameter group whose own rate is highest; others keep their ratio to it.

    Args:
        min_lr: Rate of the first step, >= 0, above 0 if `exponential`.
        max_lr: Rate of the last step, above `min_lr`.
        num_steps: Optimizer steps, at least 2; the paper takes a few epochs. Neutral is 0.
        mode: `linear`, as the paper, or `exponential`, as fastai, which is right where the order of magnitude is open.
        window: Steps over which losses are averaged, at least 1.
        divergence: The test ends where the mean of a window is so many times the lowest one, above 1.
        then: `report` only; `use` the proposed `max_lr` in this fit, as if the module had given it to its highest
            group; or `stop` before the first step.
        name: Part of the state key, and the name of table and picture.

    Raises:
        ValueError: a setting outside its range; at set-up under manual optimisation, beside `overfit_batches`, and if
            `then="stop"` meets `min_epochs` or `min_steps`; before the first step, if there are several training
            loaders, the loader or the optimizer cannot be copied, there is no optimizer or its step needs a closure
            (`LBFGS`), `then="use"` meets a schedule of the module, or `training_step` needs what the module makes in
            `on_train_start` or `on_train_epoch_start`, which come later.

    Example:
        >>> from lightning_vision.callbacks import LRRangeTest
        >>> LRRangeTest(min_lr=0.0, max_lr=1.0, num_steps=5).rates()
        [0.0, 0.25, 0.5, 0.75, 1.0]

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
        The paper reads test accuracy off a plot by eye; here the training loss is followed, and rates come from a rule.
        Other callbacks take no part in the steps: nothing is mixed, distilled or perturbed.

    See also:
        `CyclicalLR` and `OneCycle`, for which it proposes; Lightning's `Tuner.lr_find`, which proposes one rate.
    """

    neutral = ({"num_steps": 0},)
    title = "lr_range_test"

    def __init__(
        self,
        min_lr: float = 1e-5,
        max_lr: float = 1.0,
        num_steps: int = 100,
        mode: Literal["linear", "exponential"] = "linear",
        window: int = 5,
        divergence: float = 4.0,
        then: Literal["report", "use", "stop"] = "report",
        name: str | None = None,
    ) -> None:
        super().__init__(then=then, name=name)
        if mode not in ("linear", "exponential"):
            raise ValueError(f"LRRangeTest: mode is {mode!r}; give 'linear' or 'exponential'.")
        number("LRRangeTest", "min_lr", min_lr, 0)
        number("LRRangeTest", "max_lr", max_lr, 0)
        if not min_lr < max_lr:
            raise ValueError(f"LRRangeTest: max_lr={max_lr} is not above min_lr={min_lr}; raise it.")
        if mode == "exponential" and not min_lr:
            raise ValueError(
                "LRRangeTest: min_lr is 0, from which no ratio leads up; give a rate above 0, or 'linear'."
            )
        whole("LRRangeTest", "num_steps", num_steps, 0)
        if num_steps == 1:
            raise ValueError("LRRangeTest: num_steps is 1, and a curve takes at least 2; give more, or 0 for no test.")
        whole("LRRangeTest", "window", window, 1)
        number("LRRangeTest", "divergence", divergence, 1)
        if divergence == 1:
            raise ValueError("LRRangeTest: divergence is 1, which every loss reaches; give a number above 1.")
        self.min_lr, self.max_lr, self.num_steps, self.mode = min_lr, max_lr, num_steps, mode
        self.window, self.divergence = window, divergence

    def rates(self) -> list[float]:
        return rates_between(self.min_lr, self.max_lr, self.num_steps, self.mode)

    def ends(self) -> Callable[[float], bool]:
        return Divergence(self.window, self.divergence)

    def conclude(self, rates: Sequence[float], losses: Sequence[float]) -> Conclusion:
        proposed = proposed_rates(rates, losses, self.window)
        rows = [
            {"step": step, "lr": rate, "loss": loss, "smoothed": float(mean)}
            for step, (rate, loss, mean) in enumerate(zip(rates, losses, smoothed(losses, self.window), strict=True))
        ]
        if not math.isfinite(losses[0]):
            why = "before any step was taken, so no rate is to blame; look at the data and the module"
            return Conclusion(None, f"LRRangeTest: the first loss is {losses[0]}, {why}", rows)
        if proposed is None:
            tried = f"{rates[0]:.3g} and {rates[-1]:.3g}"
            return Conclusion(
                None, f"LRRangeTest: the loss never fell between {tried}; begin with a lower min_lr", rows
            )
        low, high = proposed
        still = " or more, for the loss still fell at the last rate" if high * 2 >= 0.99 * self.max_lr else ""
        text = (
            f"LRRangeTest: base_lr={low:g} and max_lr={high:g}{still}: --callbacks.cyclical_lr.base_lr {low:g} "
            f"--callbacks.cyclical_lr.max_lr {high:g}, or --callbacks.one_cycle.max_lr {high:g}"
        )
        return Conclusion(high, text, rows)

    def draw(self, found: Conclusion) -> NDArray[np.uint8]:
        # Here, for matplotlib takes a while to import and most runs end elsewhere.
        from ._range_picture import range_picture

        return range_picture(found.rows, self.mode, proposed_rates(*self._curve(found), self.window))

    @staticmethod
    def _curve(found: Conclusion) -> tuple[list[float], list[float]]:
        return [it["lr"] for it in found.rows], [it["loss"] for it in found.rows]

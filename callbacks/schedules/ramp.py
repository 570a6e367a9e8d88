"""A number of the training that moves from one value to another.

With a share s of the stretch done, 0 before it and 1 after it:

    linear       start + (end - start) s
    cosine       start + (end - start) (1 - cos(pi s)) / 2
    exponential  start (end / start)^s
"""

from collections.abc import Sequence
from typing import Literal, final

from lightning.pytorch import LightningModule

from ..hooks._checks import flag
from ..hooks.values import Moment, Values
from ._stretch import Interval, Shape, Stretch, checked_shape, finite, moved

__all__ = ["Ramp"]

Own = Literal["own"]


@final
class Ramp(Values):
    """Moves any number that the training reads, by its dotted name, from one value to another.

    The number is set before each training batch, before a datamodule of the house augments it on the device, as a
    function of `trainer.global_step` alone; what it was before is put back after the fit. All micro-batches of a step
    and all processes have the same. A number that is read only when an object is made cannot be told from one that is
    read in each step: setting it changes nothing, and nobody knows.

    Args:
        attribute: Its dotted name. Of the module, `criterion.temperature`, `network.3.p` (a submodule by its number) or
            `network.*.p` (that of all submodules that have one); `optimizer.weight_decay` or another entry of the
            parameter groups, of all groups that have it, where a weight decay of 0 stays 0; `datamodule. ...`;
            `callbacks.MixUp.alpha` for another callback of the Trainer, by its state key or, if there is one of it, its
            class. A tensor of one element, such as a buffer, is filled. Files hold `hparams. ...` as it was
            before the fit.
        end: Value of the last step and after it; `own` is what the number was before the fit.
        start: Value before the stretch; likewise. Neutral: both `own`.
        begin: Where the stretch begins, in the unit of `interval`, >= 0.
        length: How long it is, above 0, likewise; None: to the end of the training.
        interval: Unit of both: `training`, all of it, so that they are shares; `epoch`; or `step`, an optimizer step.
        shape: `linear`, `cosine` (half a wave) or `exponential` (the same factor each step).
        whole: Set whole numbers alone, the nearest.
        name: Part of the state key.

    Raises:
        ValueError: a setting outside its range; before the first batch, if the name leads to no number that can be set,
            to a parameter or a learning rate, another callback sets the same number, or the training's end is needed
            and not known; at an optimizer step that goes past Lightning.

    Example:
        >>> from lightning_vision.callbacks import Ramp
        >>> from lightning_vision.callbacks.hooks.values import Moment
        >>> ramp = Ramp("criterion.temperature", start=4.0, end=1.0, interval="step", begin=2, length=4)
        >>> [ramp.value("criterion.temperature", 4.0, Moment(step, 10, 0, None, 0)) for step in range(8)]
        [4.0, 4.0, 4.0, 3.25, 2.5, 1.75, 1.0, 1.0]

    See also:
        `WeightDecayRamp`, a recipe's ramp of weight decay; `WarmUpCosine`, `WarmUpSteps` and `WarmRestarts`, which move
        learning rates; `ScheduledDropPath`, by depth.
    """

    neutral = ({"start": "own", "end": "own"},)

    def __init__(
        self,
        attribute: str,
        end: float | Own,
        start: float | Own = "own",
        begin: float = 0.0,
        length: float | None = None,
        interval: Interval = "training",
        shape: Shape = "linear",
        whole: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        if not isinstance(attribute, str) or not attribute:
            raise ValueError(f"Ramp: attribute is {attribute!r}; give a dotted name, such as 'criterion.temperature'.")
        for argument, value in (("start", start), ("end", end)):
            if value != "own" and not finite(value):
                raise ValueError(f"Ramp: {argument} is {value!r}; give a finite number, or own.")
        checked_shape("Ramp", shape)
        flag("Ramp", "whole", whole)
        self.attribute, self.end, self.start, self.shape, self.whole = attribute, end, start, shape, whole
        self.begin, self.length, self.interval = begin, length, interval
        self.stretch = Stretch("Ramp", begin, length, interval)
        if not isinstance(start, str) and not isinstance(end, str):
            self._check_signs(start, end)

    def names(self, pl_module: LightningModule) -> Sequence[str]:
        return (self.attribute,)

    def bounds(self, name: str, own: float) -> Sequence[float]:
        ends = [float(own if it == "own" else it) for it in (self.start, self.end)]
        self._check_signs(*ends)
        return [float(round(it)) for it in ends] if self.whole else ends

    def value(self, name: str, own: float, moment: Moment) -> float:
        start, end = (own if it == "own" else it for it in (self.start, self.end))
        value = moved(self.stretch.share(moment), start, end, self.shape)
        return round(value) if self.whole else value

    def begins(self, moment: Moment) -> str | None:
        return self.stretch.check(moment)

    def _check_signs(self, start: float, end: float) -> None:
        if self.shape == "exponential" and not start * end > 0:
            raise ValueError(
                f"Ramp: an exponential from {start:g} to {end:g} does not exist, for both must be above or below 0; "
                "give other ends, or shape='linear'."
            )

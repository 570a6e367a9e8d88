"""Exponential moving average of the weights: what is scored and written lags behind what is trained.

The average m follows the weights w after each optimizer step t, m <- d m + (1 - d) w. Averaging the iterates of
stochastic gradient descent is Polyak and Juditsky's; the exponential form with a rising decay is the teacher of
Tarvainen and Valpola 2017, arXiv:1703.01780, section 2; giving the decay as a half-life is common for diffusion models.
"""

from typing import final

from ..hooks._checks import number
from ..hooks.averages import Averages

__all__ = ["EMA", "ema_share", "half_life_to_decay"]


def half_life_to_decay(half_life: float) -> float:
    """The decay per step with which half of a weight is left after `half_life` steps.

    It is 2 ** (-1 / half_life).

    >>> half_life_to_decay(1.0)
    0.5
    """
    return 0.5 ** (1.0 / half_life)


def ema_share(updates: int, decay: float, warmup: float = 1.0, every_n_steps: int = 1) -> float:
    """The share of the current weights in an exponential moving average, after so many earlier updates.

    It is 1 - d ** n, where d = min(decay, (1 + t) / (warmup + t)).

    Args:
        updates: Earlier updates u; t = u * n is the number of earlier steps.
        decay: d of one step, in [0, 1).
        warmup: 1 gives d = decay from the first step on.
        every_n_steps: Steps n from one update to the next.

    >>> ema_share(0, decay=0.75, every_n_steps=2)
    0.4375
    """
    steps = updates * every_n_steps
    return 1.0 - min(decay, (1.0 + steps) / (warmup + steps)) ** every_n_steps


@final
class EMA(Averages):
    """Scores and saves an exponential moving average of the weights, while training goes on with the weights.

    It acts after each optimizer step, on a copy: the trained weights, their gradients, the optimizer and the random
    streams are untouched. Validation runs on the average; every checkpoint's `state_dict` holds it, weights-only or
    not, so the best checkpoint is the one that was scored; a resumed fit goes on with the trained weights, which stand
    in the callback's state. After a fit the module holds the average; after an exception it holds the trained weights,
    and so does what `trainer.save_checkpoint` writes from then on, unlike files written while the exception was heard.

    Args:
        decay: What remains of the average after one optimizer step, in [0, 1); 0.999 if no half-life is given (as
            Tarvainen and Valpola). 0 is neutral.
        half_life: Instead of `decay`: optimizer steps after which half of a weight's contribution remains, above 0.
        warmup: After t earlier steps the decay is at most (1 + t) / (warmup + t), so that the first weights are soon
            forgotten; 1 or more, where 1 switches it off (10 as in TensorFlow's ExponentialMovingAverage).
        every_n_steps: Optimizer steps from one update to the next, with the decay to this power; at least 1.
        start_step: The average starts with the weights as they are after this many optimizer steps.
        name: Part of the state key.

    Shape:
        One more tensor for each floating parameter and saved floating buffer, of its shape, on its device; of its
        type, but float32 for half precision.

    Raises:
        ValueError: from the constructor, for a setting out of range or both decay and half-life; at set-up, if the
            Trainer has a second average of weights, be it Lightning's; at the first update, if a buffer that files
            hold has changed its shape; at an optimizer step that goes past Lightning, which does not count it.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import EMA
        >>> trainer = Trainer(callbacks=[EMA(half_life=500)], accelerator="cpu", logger=False)

    Reference: Tarvainen and Valpola 2017, arXiv:1703.01780

    BibTeX:
        @inproceedings{tarvainen2017mean,
          title = {Mean teachers are better role models: Weight-averaged consistency targets improve semi-supervised
            deep learning results},
          author = {Tarvainen, Antti and Valpola, Harri},
          booktitle = {Advances in Neural Information Processing Systems},
          year = {2017},
          eprint = {1703.01780},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        There the average is the teacher of a consistency loss, and the decay is min(1 - 1 / (t + 1), decay); here it
        is only scored and saved, and the warm-up is TensorFlow's.

    See also:
        `WarmRestarts`, whose snapshots are averaged as predictions instead of weights.
    """

    neutral = ({"decay": 0.0},)

    def __init__(
        self,
        decay: float | None = None,
        half_life: float | None = None,
        warmup: float = 10.0,
        every_n_steps: int = 1,
        start_step: int = 0,
        name: str | None = None,
    ) -> None:
        super().__init__(every_n_steps=every_n_steps, start_step=start_step, name=name)
        if decay is not None and half_life is not None:
            raise ValueError(f"EMA: both decay={decay} and half_life={half_life} were given; leave one of them None.")
        if decay is not None and not 0.0 <= decay < 1.0:
            raise ValueError(f"EMA: decay is {decay!r}; give a number from 0 (no average) to below 1.")
        if half_life is not None and not 0.0 < half_life < float("inf"):
            raise ValueError(f"EMA: half_life is {half_life!r}; give a finite number of optimizer steps above 0.")
        number("EMA", "warmup", warmup, 1.0)
        self.decay, self.half_life, self.warmup = decay, half_life, warmup

    def share(self, updates: int) -> float:
        decay = 0.999 if self.decay is None else self.decay
        if self.half_life is not None:
            decay = half_life_to_decay(self.half_life)
        return ema_share(updates, decay, self.warmup, self.every_n_steps)

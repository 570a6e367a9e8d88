"""The trail seam: weights before three optimizer steps in a row, every so many steps, for numbers that are logged.

A trail that a checkpoint finds unfinished is in the callback's state, so a resumed run logs what the straight one does;
between trails no weights are kept.

Public hooks used: `setup`, `on_train_start`, `on_before_optimizer_step`.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from ._checks import whole
from .method import Method

__all__ = ["Trail"]


class Trail(Method):
    """Keeps copies of the weights before two steps of each optimizer and compares them with those before the third.

    Args:
        estimate_every: Optimizer steps from one trail to the next, at least 3 for each optimizer, for the steps of all
            are counted; 0 keeps nothing and costs nothing.
        others: Go to the next base class.

    Raises:
        ValueError: `estimate_every` is out of its range; when training starts, if it is too small for several
            optimizers.
    """

    def __init__(self, *, estimate_every: int, **others: Any) -> None:
        super().__init__(**others)
        kind = type(self).__name__
        whole(kind, "estimate_every", estimate_every, 0)
        if 0 < estimate_every < 3:
            raise ValueError(
                f"{kind}: estimate_every is {estimate_every}, and an estimate takes three steps; give 0 or at least 3."
            )
        self.estimate_every = estimate_every
        self._begun = -1  # number of the latest trail
        # By the optimizer's number: weights and rates before its first and second step, and at last what was read.
        self._steps: dict[int, list[tuple[list[Tensor], list[float]]]] = {}
        self._sums: dict[int, list[float]] = {}

    @abstractmethod
    def read(
        self,
        first: Sequence[Tensor],
        second: Sequence[Tensor],
        third: Sequence[Tensor],
        rates: Sequence[float],
        next_rates: Sequence[float],
    ) -> Tensor:
        """Sums over weights, `(n,)`, of an optimizer's tensors before three steps and their rates in the first two.

        What several optimizers give is added up.
        """

    @abstractmethod
    def estimates(self, sums: Sequence[float]) -> Mapping[str, float]:
        """The numbers to log, by name; none where they mean nothing."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._steps, self._sums = {}, {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self.estimate_every and not self.off:
            least = 3 * len(trainer.optimizers)
            if self.estimate_every < least:
                raise ValueError(
                    f"{type(self).__name__}: estimate_every is {self.estimate_every}, and an estimate takes three "
                    f"steps of each of the {len(trainer.optimizers)} optimizers; give at least {least}, or 0."
                )
            self._begun = (trainer.global_step - 1) // self.estimate_every

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        if self.off or not self.estimate_every or not trainer.loggers:
            return
        number = next(index for index, it in enumerate(trainer.optimizers) if it is optimizer)
        trail = trainer.global_step // self.estimate_every
        if trail > self._begun:
            self._begun, self._sums = trail, {}
            self._steps = {index: [] for index in range(len(trainer.optimizers))}
        if number in self._steps:
            self._walk(trainer, optimizer, number)

    def _walk(self, trainer: Trainer, optimizer: Optimizer, number: int) -> None:
        weights = [it.detach() for group in optimizer.param_groups for it in group["params"]]
        steps = self._steps[number]
        if len(steps) < 2:
            rates = [float(group["lr"]) for group in optimizer.param_groups for _ in group["params"]]
            steps.append(([it.clone() for it in weights], rates))
            return
        (first, rates), (second, next_rates) = self._steps.pop(number)
        first, second = ([it.to(like) for it, like in zip(them, weights, strict=True)] for them in (first, second))
        self._sums[number] = self.read(first, second, weights, rates, next_rates).tolist()
        if not self._steps and trainer.is_global_zero:
            found = self.estimates([sum(them) for them in zip(*self._sums.values(), strict=True)])
            for logger in trainer.loggers if found else ():
                logger.log_metrics(dict(found), trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps, "sums": self._sums} if self._steps else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._steps, self._sums = state_dict.get("steps", {}), state_dict.get("sums", {})

"""Learners with a second branch that follows the first."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .joint import JointEmbedding
from .key_queue import KeyQueue
from .momentum_copy import MomentumCopy
from .schedules import cosine_ramp

__all__ = ["MomentumLearner"]


class MomentumLearner(JointEmbedding):
    """Base of learners with a target: a copy of the first parts of `network` that moves once an optimizer step.

    Args:
        momentum: tau, the share of the target that stays at a step, 0..1, at the fit's start.
        momentum_end: tau at the fit's end, reached along a cosine; None keeps `momentum`, as does a fit of no known
            length.
        **common: As `JointEmbedding`.

    Raises:
        ValueError: as `JointEmbedding`; a momentum lies outside 0..1.
    """

    target: MomentumCopy
    # Parts of `network`, counted from the backbone, that the target copies; behind them stands the predictor.
    copied: int = 2

    def __init__(self, momentum: float = 0.99, momentum_end: float | None = 1.0, **common: Any) -> None:
        super().__init__(**common)
        # Of a method that keeps embeddings of the target; those of a micro-batch are put aside under its number.
        self.queue: KeyQueue | None = None
        self._batch_idx = 0
        self.momentum, self.momentum_end = momentum, momentum if momentum_end is None else momentum_end
        for name, value in (("momentum", self.momentum), ("momentum_end", self.momentum_end)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; give the share of the target that stays at a step, 0 to 1")

    @property
    def source(self) -> nn.Sequential:
        """What the target copies."""
        return self.network[: self.copied]

    def tau(self, step: int) -> float:
        """The momentum of optimizer step `step`, counted from 0."""
        total = self.trainer.estimated_stepping_batches
        # Lightning says -1 of a stream whose length nobody knows.
        if total == float("inf") or total < 0:
            return self.momentum
        return cosine_ramp(self.momentum, self.momentum_end, step, int(total))

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.queue is not None:
            self.queue.forget()  # an aborted fit's

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self._batch_idx = batch_idx
        return super().training_step(batch, batch_idx)

    def collect(self, keys: Tensor) -> None:
        """Keep embeddings of the target `(B, D)` for the queue, as unit vectors, if they are of a training step."""
        # Batch norms are measured again by steps without gradients.
        if self.queue is not None and self.training and torch.is_grad_enabled():
            self.queue.collect(self._batch_idx, F.normalize(keys, dim=1))

    def follow(self, step: int) -> None:
        self.target.follow(self.source, self.tau(step))
        if self.queue is not None:
            self.queue.enqueue()

"""Scalars on their way from a step to the loggers, without a call of `self.log` in each step."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor

from .sums import Sums

__all__ = ["ScalarLog"]


class ScalarLog:
    """Logs scalars as `self.log(on_step=True, on_epoch=True, sync_dist=True)` would, at a fraction of the cost.

    `train/NAME_step` reaches the host on log steps only; `train/NAME_epoch`, `val/NAME` and `test/NAME` are means over
    the epoch, weighted by batch size, summed over all ranks in one all-reduce.

    Args:
        module: The LightningModule whose steps call `log`.
        progress_bar: Names that the progress bar shows.
    """

    def __init__(self, module: LightningModule, progress_bar: tuple[str, ...] = ("loss", "acc")) -> None:
        self._module = module
        self._progress_bar = progress_bar
        self._sums: defaultdict[str, Sums] = defaultdict(Sums)
        self._epoch = 0

    def log(self, stage: str, values: Mapping[str, Tensor], weight: int) -> None:
        """Count the scalars of one batch.

        Args:
            stage: `train`, `val` or `test`.
            values: Scalars on one device, by name; the same names on every rank.
            weight: Samples in the batch.
        """
        module = self._module
        if stage == "train" and self._epoch != module.current_epoch:
            # After a checkpoint of an epoch's very last step Lightning starts the next epoch without its hook.
            self.start("train")
        stacked = self._sums[stage].add(values, weight)
        # Private, both: `trainer` raises outside a Trainer, and with accumulated gradients only the connector knows
        # which batch reaches the loggers.
        if stage == "train" and module._trainer and module._trainer._logger_connector.should_update_logs:
            for name, value in zip(values, stacked.float().cpu(), strict=True):
                shown = name in self._progress_bar
                module.log(f"train/{name}_step", value, prog_bar=shown, on_step=True, on_epoch=False)

    def start(self, stage: str) -> None:
        """Begin an epoch: forget what an interrupted one has left."""
        self._sums[stage].reset()
        if stage == "train":
            self._epoch = self._module.current_epoch

    def finish(self, stage: str) -> None:
        """End an epoch: hand the means over all ranks to Lightning."""
        suffix = "_epoch" if stage == "train" else ""
        for name, mean in self._sums[stage].means(self._over_ranks).items():
            how: dict[str, Any] = {"prog_bar": name in self._progress_bar, "on_step": False, "on_epoch": True}
            # Equal on all ranks, of which their maximum is exact; without `sync_dist` Lightning advises to set it.
            self._module.log(f"{stage}/{name}{suffix}", mean, sync_dist=True, reduce_fx="max", **how)
        self._sums[stage].reset()

    def state(self) -> dict[str, Any]:
        """Sums of every rank, for a checkpoint; all ranks must call it."""
        counted = {stage: sums for stage, sums in self._sums.items() if sums}
        return {
            "epoch": self._epoch,
            "stages": {
                stage: {"names": sums.names(), "ranks": self._ranks(sums.vector())} for stage, sums in counted.items()
            },
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from `state()`; with another number of ranks, rank 0 takes over all that was counted."""
        self._sums.clear()
        self._epoch = state["epoch"]
        rank, world_size = self._rank_and_world_size()
        for stage, saved in state["stages"].items():
            ranks = saved["ranks"]
            if len(ranks) == world_size:
                own = ranks[rank]
            else:
                own = ranks.sum(0) if rank == 0 else ranks.new_zeros(ranks.shape[1])
            self._sums[stage].load(saved["names"], own)

    def _rank_and_world_size(self) -> tuple[int, int]:
        trainer = self._module._trainer
        return (trainer.global_rank, trainer.world_size) if trainer else (0, 1)

    def _over_ranks(self, vector: Tensor) -> Tensor:
        if self._rank_and_world_size()[1] == 1:
            return vector
        strategy = self._module.trainer.strategy
        summed: Tensor = strategy.reduce(vector.to(strategy.root_device), reduce_op="sum")
        return summed

    def _ranks(self, vector: Tensor) -> Tensor:
        if self._rank_and_world_size()[1] == 1:
            return vector.cpu()[None]
        strategy = self._module.trainer.strategy
        return strategy.all_gather(vector.to(strategy.root_device)).cpu()

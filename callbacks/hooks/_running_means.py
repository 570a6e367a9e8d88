"""The sums behind Lightning's epoch means, as plain data that can be saved and put back in mid-epoch.

Lightning keeps them in `_ResultCollection`, saves none of it and has no public access, so a resumed epoch would log the
mean of its second half. `tests/callbacks/resume/test_lightning.py` fails when the collection changes.
"""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

__all__ = ["logged_metrics", "read_means", "write_means"]

STATES = ("value", "cumulated_batch_size")


def read_means(trainer: Trainer) -> list[dict[str, Any]]:
    """One entry a name logged with `on_epoch=True` since the epoch began: how it was logged and its sums."""
    return [
        {
            "fx": result.meta.fx,
            "name": result.meta.name,
            "prog_bar": result.meta.prog_bar,
            "logger": result.meta.logger,
            "on_step": result.meta.on_step,
            "reduce_fx": result.meta.reduce_fx.__name__,
            "add_dataloader_idx": result.meta.add_dataloader_idx,
            "metric_attribute": result.meta.metric_attribute,
            "sync_dist": result.meta.sync.should,
            "rank_zero_only": result.meta.sync.rank_zero_only,
            "last": None if result._forward_cache is None else result._forward_cache.detach().cpu(),
            "sums": {name: getattr(result, name).cpu() for name in STATES if name in result._defaults},
        }
        for result in trainer.fit_loop.epoch_loop._results.values()
        if result.meta.on_epoch and not result.has_reset
    ]


def logged_metrics(trainer: Trainer) -> set[int]:
    """The ids of the torchmetrics that the running stage has logged and Lightning resets at its end."""
    results = trainer._results
    return set() if results is None else {id(result.value) for result in results.values() if not result.is_tensor}


def write_means(trainer: Trainer, pl_module: LightningModule, entries: list[dict[str, Any]]) -> None:
    """Put back what `read_means` returned, before the first batch."""
    results = trainer.fit_loop.epoch_loop._results
    for entry in entries:
        how = {key: value for key, value in entry.items() if key not in ("last", "sums")}
        metric = entry["metric_attribute"]
        value: Any = pl_module.get_submodule(metric) if metric else torch.zeros((), device=pl_module.device)
        results.log(**how, value=value, on_epoch=True, batch_size=1, sync_dist_fn=trainer.strategy.reduce)
        result = results[f"{entry['fx']}.{entry['name']}"]
        for name, total in entry["sums"].items():
            setattr(result, name, total.to(pl_module.device))
        result._forward_cache = _on(entry["last"], pl_module.device)
        result._computed = None
    # The first log of an epoch forgets what is there; this is not the first.
    trainer._logger_connector._first_loop_iter = True


def _on(value: Tensor | None, device: torch.device) -> Tensor | None:
    return None if value is None else value.to(device)

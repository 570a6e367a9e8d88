"""The training images as evaluation sees them, in the middle of a run and without moving the training loader."""

from collections.abc import Generator
from itertools import islice
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader, rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, arange
from torch.utils.data import DataLoader, DistributedSampler

from ._attributes_kept import data_kept
from ._batch_norm import on_device, twin

__all__ = ["bank_batches", "bank_size", "placed_batches"]


def bank_batches(trainer: Trainer, pl_module: LightningModule) -> Generator[Any, None, None] | None:
    """Batches of this rank's training images, moved to the device and through the data's hooks; None if nobody has any.

    They come from the datamodule's `bank_dataloader()`, which those of this project have: each training image once, at
    the size of evaluation, in one random order that stays. Without it from a copy of the fit's training loader, of
    several the first, or outside of a fit from a new one of the datamodule or module. The Trainer is in an evaluation,
    so hooks that augment only while it trains do not; what a dataset itself changes at random stays.
    """
    loader, shared = _loader(trainer, pl_module)
    if loader is None:
        return None
    return _moved(trainer, loader, shared)


def bank_size(trainer: Trainer, pl_module: LightningModule) -> int | None:
    """How many training images there are over all ranks, where a dataset tells; nothing is loaded."""
    loader, _ = _loader(trainer, pl_module)
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError):
        return None


def placed_batches(trainer: Trainer, pl_module: LightningModule) -> Generator[tuple[Tensor, Any], None, None]:
    """This rank's training images as evaluation sees them, while fitting: positions int64 `(B,)`, and their batch.

    They come from the datamodule's `bank_dataloader()`, else in order from the dataset of the fit's loader, which
    `TrainingSamples` has taken; each once, over all ranks. To the data's hooks the Trainer seems to validate, so those
    that augment only while it trains do not; what a dataset itself changes at random stays, and the dataset is put back
    to where it was (`data_kept`). It is to be read to its end or closed.
    """
    data: Any = getattr(trainer, "datamodule", None)
    loader: Any = CombinedLoader(trainer.train_dataloader).flattened[0]
    mine: Any = None
    if hasattr(data, "bank_dataloader"):
        loader = data.bank_dataloader()
    elif isinstance(loader, DataLoader):
        mine = arange(trainer.global_rank, len(loader.dataset), trainer.world_size)  # type: ignore[arg-type]  # has one
        # As in the fit, for a dataset may be opened in its workers.
        same = ("num_workers", "collate_fn", "worker_init_fn", "multiprocessing_context", "prefetch_factor", "timeout")
        size, given = loader.batch_size, {name: getattr(loader, name) for name in same}
        loader = DataLoader(loader.dataset, size, sampler=mine.tolist(), **given)
        mine = iter(mine.split(size or 1))
    else:
        loader = twin(loader)
        loader.visit(None)
    stage = trainer.state.stage
    try:
        with data_kept(loader):
            for batch in loader:
                positions = loader.here if mine is None else next(mine)
                trainer.validating = True
                try:
                    moved = on_device(trainer, batch)
                finally:
                    trainer.state.stage = stage
                yield positions, moved
    finally:
        if hasattr(loader, "close"):
            loader.close()


def _moved(trainer: Trainer, loader: Any, shared: bool) -> Generator[Any, None, None]:
    # Lightning deals a loader's samples to the ranks only where it makes the loader itself.
    mine = islice(loader, trainer.global_rank, None, trainer.world_size) if shared else iter(loader)
    try:
        with data_kept(loader):
            for batch in mine:
                yield on_device(trainer, batch)
    finally:
        if hasattr(loader, "close"):
            loader.close()


def _loader(trainer: Trainer, pl_module: LightningModule) -> tuple[Any, bool]:
    """A loader of its own, or None, and whether all ranks have the same one."""
    data: Any = getattr(trainer, "datamodule", None)
    if hasattr(data, "bank_dataloader"):
        return data.bank_dataloader(), False
    if trainer.train_dataloader is not None:
        return twin(CombinedLoader(trainer.train_dataloader).flattened[0]), False
    for owner in (data, pl_module):
        if owner is not None and is_overridden("train_dataloader", owner):
            try:
                loader = CombinedLoader(owner.train_dataloader()).flattened[0]
            except AttributeError as error:
                # Many a datamodule makes its training set in setup("fit") alone.
                kind = type(owner).__name__
                rank_zero_warn(f"{kind}.train_dataloader() does not work outside of a fit, {error}; make what it needs "
                               "in every stage of setup() and probes have a bank.")  # fmt: skip
                return None, False
            sampler = getattr(loader, "sampler", None)
            shared = isinstance(loader, DataLoader) and not isinstance(sampler, DistributedSampler)
            return loader, shared and trainer.world_size > 1
    return None, False

"""What one image of a fit looks like to a network, found out at set-up without moving anything.

Lightning makes the training loader after set-up and tells before that only privately where it will come from;
`tests/callbacks/hooks/test_taught.py` fails when it tells so no more.
"""

import copy
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader

from ._batch_norm import twin
from ._fields import Fields
from ._replay import read_streams, rewind

__all__ = ["image_shape"]


def image_shape(trainer: Trainer, pl_module: LightningModule, fields: Fields) -> tuple[int, int, int]:
    """(C, H, W) of the images that `training_step` will see.

    From the module's `example_input_array`; else from `preprocessing` of the datamodule or the module; else from a
    batch of the training loader's copy, of which the loader, its sampler and the random streams know nothing; a loader
    that cannot be copied and can be iterated again is asked itself.

    Raises:
        ValueError: None of them tells, or batches stand where Lightning takes loaders.
    """
    example = pl_module.example_input_array
    for it in example if isinstance(example, (list, tuple)) else [example]:
        if isinstance(it, Tensor) and it.ndim == 4:
            return (it.shape[1], it.shape[2], it.shape[3])
    for source in (getattr(trainer, "datamodule", None), pl_module):
        told = getattr(source, "preprocessing", None)
        if isinstance(told, Mapping) and told.keys() >= {"channels", "image_size"}:
            return (told["channels"], *told["image_size"])
    streams = read_streams(trainer.strategy.root_device)
    try:
        batch = _first_batch(trainer.fit_loop._data_source.dataloader())
    except Exception as error:  # of the user's own loader
        found = f"asking the training loader for a batch failed ({error})"
        raise ValueError(_sentence(fields.owner, pl_module, found)) from error
    finally:
        rewind(streams)
    images = fields.image(batch)
    if not isinstance(images, Tensor) or images.ndim != 4:
        found = str(tuple(images.shape)) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(_sentence(fields.owner, pl_module, f"those of the training loader are {found}"))
    return (images.shape[1], images.shape[2], images.shape[3])


def _first_batch(given: Any) -> Any:
    """Of one loader, or of a list or mapping of several, whose batches Lightning puts together."""
    loaders = copy.copy(given) if isinstance(given, CombinedLoader) else CombinedLoader(given, "max_size_cycle")
    if any(isinstance(it, Tensor) for it in loaders.flattened):
        raise ValueError(
            "a list of batches is for Lightning a list of loaders; give DataLoader(batches, batch_size=None)"
        )
    loaders.flattened = [_copy_of(it) for it in loaders.flattened]
    return next(iter(loaders))[0]


def _copy_of(loader: Any) -> Any:
    try:
        copied = twin(loader)
    except TypeError:  # what it holds cannot be copied, as a lock or an open file
        # What goes on where it stopped would miss its first batch.
        if hasattr(loader, "__next__") or hasattr(loader, "state_dict"):
            raise
        return loader
    if isinstance(copied, DataLoader):
        # One batch is not worth a start of processes.
        copied.num_workers, copied.timeout, copied.prefetch_factor = 0, 0, None
    return copied


def _sentence(owner: str, pl_module: LightningModule, found: str) -> str:
    return (
        f"{owner}: images of the shape (C, H, W) are needed at set-up, and {found}; set `self.example_input_array = "
        f"torch.zeros(1, C, H, W)` in {type(pl_module).__name__}."
    )

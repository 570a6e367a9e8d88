"""Some of the training images with their labels, by the evaluation's transform, held in memory."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from ..hooks._bank import bank_batches
from ..hooks._fields import Fields
from ..hooks._readings import from_all_ranks, labels_in
from ..hooks._unnoticed import as_if_nobody_looked

__all__ = ["few_images"]


def few_images(
    trainer: Trainer, pl_module: LightningModule, fields: Fields, choose: Callable[[Tensor], list[Tensor]]
) -> list[tuple[Tensor, Tensor]] | None:
    """Images `(M, C, H, W)` and classes `(M,)` of each choice of `choose`; None if nobody has training images.

    The loader is walked twice, for all labels and for the images on which a choice fell. All processes call this and
    get the same.

    Args:
        trainer: It is in an evaluation.
        pl_module: Its module, which sees nothing of it.
        fields: Where images and labels stand in a batch.
        choose: Says which positions to take, int64, of all classes `(N,)`.

    Raises:
        ValueError: batches have no classes, or images no common size.
    """
    with as_if_nobody_looked(trainer, pl_module):
        if (first := _batches(trainer, pl_module)) is None:
            return None
        own = torch.cat([_labels(fields, batch) for batch in first])
        labels = from_all_ranks(trainer, own)
        before = int(from_all_ranks(trainer, own.new_tensor([len(own)]))[: trainer.global_rank].sum())
        choices = [it.to(own.device) for it in choose(labels)]
        wanted = torch.cat(choices).unique()
        mine = torch.zeros(len(labels), dtype=torch.bool, device=own.device)
        mine[wanted] = True
        parts, seen = [], before
        for batch in _batches(trainer, pl_module) or ():
            image: Any = fields.image(batch)
            if not isinstance(image, Tensor):
                kind = type(image).__name__
                raise ValueError(f"{fields.owner}: a batch holds images as a {kind}; give them one size, (B, C, H, W).")
            kept = mine[seen : seen + len(image)]
            if not torch.equal(_labels(fields, batch), labels[seen : seen + len(image)]):
                raise ValueError(
                    f"{fields.owner}: the loader of training images gave others the second time, so no labels could be "
                    "chosen; give it an order that is the same each time."
                )
            parts.append(image[kept].float())
            seen += len(image)
        images = from_all_ranks(trainer, torch.cat(parts))
        return [(images[torch.searchsorted(wanted, choice)], labels[choice]) for choice in choices]


def _batches(trainer: Trainer, pl_module: LightningModule) -> Iterator[Any] | None:
    # Loaders that shuffle by the global stream give the same images each time.
    torch.manual_seed(0)
    return bank_batches(trainer, pl_module)


def _labels(fields: Fields, batch: Any) -> Tensor:
    found = labels_in(fields, batch, len(fields.image(batch)))
    if found is None:
        raise ValueError(
            f"{fields.owner}: batches of training images have no whole numbers (B,) as labels; let the loader yield "
            "(images, labels), or name their place with target_key=."
        )
    return found

"""Features of a validation or test and of the training images, read once for all probes of a Trainer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from ._bank import bank_batches
from ._fields import Fields
from ._unnoticed import as_if_nobody_looked

__all__ = ["Read", "Readings", "features_of", "from_all_ranks", "labels_in"]


@dataclass(frozen=True)
class Read:
    """What was read of N images, of all ranks.

    Args:
        features: Float32 `(N, D)` on the module's device.
        targets: Classes, int64 `(N,)`, negative where unknown; None if the batches have none.
        extra: What a probe itself read beside them, `(N, ...)` by name.
    """

    features: Tensor
    targets: Tensor | None
    extra: Mapping[str, Tensor] = field(default_factory=dict)


class Readings:
    """Features of the batches of one validation or test, and of the training images at the same weights.

    Args:
        trainer: It is in an evaluation.
        pl_module: Whose features.
        fields: Where images and labels stand in a batch.
    """

    def __init__(self, trainer: Trainer, pl_module: LightningModule, fields: Fields) -> None:
        self.trainer, self.pl_module, self.fields = trainer, pl_module, fields
        self._parts: list[tuple[Tensor, Tensor | None]] = []
        self._read: Read | None = None
        self._banks: dict[int | None, Read | None] = {}

    def add(self, batch: Any, index: int) -> None:
        """Read a batch, unless another probe had it read already; `index` is its number."""
        if index >= len(self._parts):
            with as_if_nobody_looked(self.trainer, self.pl_module):
                self._parts.append(self._features(batch))

    @property
    def unlabelled(self) -> bool:
        """Whether the latest batch had no classes."""
        return bool(self._parts) and self._parts[-1][1] is None

    def seen(self) -> Read | None:
        """What the batches held, over all ranks, which all call this; None if no batch came."""
        if self._read is None and self._parts:
            self._read, self._parts = self._together(self._parts), []
        return self._read

    def bank(self, samples: int | None) -> Read | None:
        """The training images over all ranks, which all call this; None if nobody has any.

        Args:
            samples: So many at most, the same share of each rank; None takes all.
        """
        if samples not in self._banks:
            self._banks[samples] = self._bank(samples)
        return self._banks[samples]

    def _bank(self, samples: int | None) -> Read | None:
        own = None if samples is None else -(-samples // self.trainer.world_size)
        parts: list[tuple[Tensor, Tensor | None]] = []
        with as_if_nobody_looked(self.trainer, self.pl_module):
            # Loaders that shuffle by the global stream give the same images each time.
            torch.manual_seed(0)
            if (batches := bank_batches(self.trainer, self.pl_module)) is None:
                return None
            for batch in batches:
                parts.append(self._features(batch))
                if own is not None and sum(len(it) for it, _ in parts) >= own:
                    batches.close()
                    break
        if not parts:
            raise ValueError(
                f"{self.fields.owner}: the loader of training images gave process {self.trainer.global_rank} no batch; "
                "give it images, or fewer processes."
            )
        read = self._together([(it[:own], None if label is None else label[:own]) for it, label in parts], own)
        return Read(read.features[:samples], None if read.targets is None else read.targets[:samples])

    def _features(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        image = self.fields.image(batch)
        found = features_of(self.fields.owner, self.pl_module, image)
        return found, labels_in(self.fields, batch, len(found))

    def _together(self, parts: list[tuple[Tensor, Tensor | None]], own: int | None = None) -> Read:
        features = from_all_ranks(self.trainer, torch.cat([it for it, _ in parts])[:own])
        labels = [label for _, label in parts if label is not None]
        # Either all batches of a loader have labels or none has, on every rank.
        complete = len(labels) == len(parts)
        return Read(features, from_all_ranks(self.trainer, torch.cat(labels)[:own]) if complete else None)


def features_of(owner: str, pl_module: LightningModule, image: Any) -> Tensor:
    """`pl_module.features(image)` in evaluation mode, in which it is left: float32 `(B, D)` without gradients.

    Raises:
        ValueError: no row of numbers an image comes back.
    """
    pl_module.eval()
    with torch.no_grad():
        found: Any = pl_module.features(image)  # type: ignore[operator]  # the seam asks for it at set-up
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(image):
        got = f"{tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise ValueError(
            f"{owner}: features of {type(pl_module).__name__} answered {got} to {len(image)} images; let it return one "
            "row of numbers an image, (B, D), pooled over positions."
        )
    return found.detach().float()


def labels_in(fields: Fields, batch: Any, count: int) -> Tensor | None:
    """The classes of a batch of `count` images, int64 `(count,)`; None where it holds none."""
    labelled = fields.target_key in batch if isinstance(batch, Mapping) else len(batch) > 1
    labels = fields.target(batch) if labelled else None
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex() or labels.shape != (count,):
        return None
    return labels.detach().long()


def from_all_ranks(trainer: Trainer, rows: Tensor) -> Tensor:
    """Rows of all ranks, one rank after the other; they may have different numbers of rows."""
    if trainer.world_size == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(trainer.world_size)]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    lengths = [int(it) for it in counts]
    padded = rows.new_zeros(max(lengths), *rows.shape[1:])
    padded[: len(rows)] = rows
    everyone = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(everyone, padded)
    return torch.cat([them[:length] for them, length in zip(everyone, lengths, strict=True)])

"""The scoring seam: features of real images and of made ones, over all ranks, for numbers that compare the two.

Public hooks used: those of `making.py`, `on_fit_start`, `on_fit_end`.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from ._checks import whole
from ._feature_networks import FeatureNetwork, refuse_shared
from ._fields import Fields
from ._lengths import validation_images
from ._readings import labels_in
from ._reference_features import Reference, read_reference, write_reference
from ._replay import read_streams, rewind
from ._shares import by_the_first, in_order, shares
from .evaluation import Stage
from .making import Making

__all__ = ["Scoring"]


class Scoring(Making):
    """Compares made images with the real ones of a validation or test, by features, and logs what is found.

    Real are the first images of the first loader, over all ranks, each time read anew; or those whose features a file
    holds. Made are the numbers 0 to `samples` - 1, of which each rank makes its share; where the module makes images on
    demand, they have the labels of the real ones. Nothing is left behind. Numbers are logged as `val/NAME` or
    `test/NAME`, with a name of the callback's as `val/CALLBACK/NAME` (callback metrics, too, so a checkpoint may be
    monitored by them), and a printed line says what they were taken of. In a sanity check a few images are made, so
    that what is refused is refused soon.

    Args:
        samples: Images that are made, >= 2.
        real: Real images at most, >= 2; None takes as many as are made.
        features: See `FeatureNetwork`.
        weights: File of `inception`.
        statistics: File with features of real images, written where there is none.
        batch_size: Images that a rank makes at a time, >= 1.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, if batches are mappings; in other batches they come second. There may be none.
        others: Go to the next base class, among them `seed`, `every_n_epochs` and `name`.

    Raises:
        ValueError: a number out of its range; before the first step, if features cannot be had or a file holds other
            ones; in the first batches, sanity check included, if images do not fit.
    """

    def __init__(
        self,
        *,
        samples: int,
        real: int | None,
        features: nn.Module | str | None,
        weights: str | None,
        statistics: str | None,
        batch_size: int,
        image_key: str,
        target_key: str,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        kind = type(self).__name__
        whole(kind, "samples", samples, 2)
        if real is not None:
            whole(kind, "real", real, 2)
        whole(kind, "batch_size", batch_size, 1)
        if weights is not None and features != "inception":
            raise ValueError(f"{kind}: weights is {weights!r}, a file for features='inception'; leave it out.")
        self.samples, self.real, self.batch_size = samples, real, batch_size
        self.features, self.weights, self.statistics = features, weights, statistics
        self.image_key, self.target_key = image_key, target_key
        self.fields = Fields(kind, image_key, target_key)
        self._network: FeatureNetwork | None = None  # during a run
        self._known: Reference | None = None  # from the file
        self._scored = False
        self._parts: list[tuple[Tensor, Tensor | None]] = []  # of this rank's real images
        self._shape: tuple[int, ...] = ()
        self._batch = 0

    @abstractmethod
    def refuse(self, real: int, made: int, width: int) -> None:
        """Raise a ValueError where so many images, of features `(N, width)`, are too few."""

    @abstractmethod
    def score(self, real: Tensor, made: Tensor) -> Mapping[str, float]:
        """Numbers by name, of finite features `(N, D)` and `(M, D)`; called on the first rank alone.

        In a rehearsal there are fewer images than were asked for, and what they are too few for is left out.
        """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._scored = False
        self.undo_later(self._release)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if not self.off:
            self._prepare(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_end(trainer, pl_module)
        if not (self.off or self._scored):
            rank_zero_warn(f"{type(self).__name__}: no validation was scored in this fit, so there is no number.")

    def starts(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        self._prepare(trainer, pl_module)
        self._parts = []
        path, kind = self.statistics, type(self).__name__
        if path is not None and self._known is None:
            # The first rank's file is everybody's: other machines have other disks.
            self._known = by_the_first(trainer, lambda: read_reference(kind, path, self._told(trainer, pl_module)))

    def batch_ends(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_index: int, stage: Stage
    ) -> None:
        missing = -(-self._wanted // trainer.world_size) - sum(len(it) for it, _ in self._parts)
        if self._known is not None or missing <= 0:
            return
        images = batch if isinstance(batch, Tensor) else self.fields.image(batch)
        if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
            got = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(
                f"{type(self).__name__}: a batch holds {got} where normalised images (B, C, H, W) are to be compared; "
                "say with image_key= where they stand."
            )
        labels = None if isinstance(batch, Tensor) else labels_in(self.fields, batch, len(images))
        self._shape, self._batch = tuple(images.shape[1:]), len(images)
        with torch.inference_mode(False):
            found = self._features(trainer, images[:missing])
            self._parts.append((found, None if labels is None else labels[:missing].clone()))

    def epoch_ends(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        rehearses = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # Lightning declares it nowhere
        brief = trainer.sanity_checking or rehearses
        there = self._known or self._together(trainer, pl_module)
        if there is None:
            return
        path, real = self.statistics, there.first(self._wanted)
        if path is not None and self._known is None and not brief:
            by_the_first(trainer, lambda: write_reference(path, real, self._told(trainer, pl_module)))
            self._known = real
        count, width = len(real.features), real.features.shape[1]
        if not rehearses:
            self.refuse(self._to_come(trainer) if trainer.sanity_checking else count, self.samples, width)
        samples = min(self.samples, max(self.batch_size, 2)) if brief else self.samples
        made = self._made(trainer, pl_module, real, samples)
        found = by_the_first(trainer, lambda: self._compared(real.features, made)) if count > 1 or not brief else {}
        if trainer.sanity_checking:
            return
        if found is None:
            rank_zero_warn(f"{type(self).__name__}: some features are not finite, so nothing was scored.")
            return
        self._scored = True
        for name, value in found.items():
            pl_module.log("/".join(filter(None, (stage, self.name, name))), value, sync_dist=True)
        if trainer.is_global_zero and self._network is not None:
            made_so = ", ".join([f"seed {self.seed}", *self.circumstances(trainer, pl_module)])
            source = "" if self._known is None else f" of {self.statistics}"
            print(
                f"{stage}: {samples} made images ({made_so}) beside {count} real ones{source}, by {self._network.name}"
            )

    def ends(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        self._parts = []

    @property
    def _wanted(self) -> int:
        """How many real images."""
        return self.real or self.samples

    def _prepare(self, trainer: Trainer, pl_module: LightningModule) -> FeatureNetwork:
        """The network of the features on the device, built once a run and without a trace in the random streams."""
        streams = read_streams(trainer.strategy.root_device)
        try:
            # Modes and parameters of a network that was built in inference mode could not be put back.
            with torch.inference_mode(False):
                if self._network is None:
                    refuse_shared(type(self).__name__, self.features, pl_module)
                    known = self.normalised(trainer, pl_module)
                    self._network = FeatureNetwork(type(self).__name__, self.features, self.weights, known)
                self._network.to(pl_module.device)
        finally:
            rewind(streams)
        return self._network

    def _told(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, str]:
        """What features of real images depend on."""
        network = self._prepare(trainer, pl_module)
        return {"features": network.fingerprint, "normalisation": str(self.normalised(trainer, pl_module))}

    def _features(self, trainer: Trainer, images: Tensor) -> Tensor:
        streams = read_streams(trainer.strategy.root_device)
        try:
            assert self._network is not None
            return self._network(images)
        finally:
            rewind(streams)

    def _together(self, trainer: Trainer, pl_module: LightningModule) -> Reference | None:
        """The real images of all ranks, in the order in which a sampler dealt them out; None if there are none."""
        own = torch.tensor(self._parts[0][0].shape[1] if self._parts else 0, device=pl_module.device)
        width = int(trainer.strategy.reduce(own, reduce_op="max"))
        if not width:
            return None
        rows = torch.cat([torch.zeros(0, width, device=pl_module.device), *(it for it, _ in self._parts)])
        order = torch.arange(len(rows), device=rows.device) * trainer.world_size + trainer.global_rank
        labels = [it for _, it in self._parts if it is not None]
        labels_too = torch.cat(labels) if labels and sum(map(len, labels)) == len(rows) else torch.full_like(order, -1)
        rows, labels_too = in_order(trainer, order, rows, labels_too)
        self._parts = []
        return Reference(rows.cpu(), labels_too.cpu() if (labels_too >= 0).any() else None, self._shape)

    def _made(self, trainer: Trainer, pl_module: LightningModule, real: Reference, count: int) -> Tensor:
        """Features of the made images of all ranks, by their numbers."""
        labels, classes = real.labels, self.labelled(pl_module)
        if labels is not None:
            labels = labels[(labels >= 0) & (labels < classes)]
        pieces = shares(count, self.batch_size, trainer.global_rank, trainer.world_size, self.numbered(pl_module))
        found = [torch.zeros(0, real.features.shape[1], device=pl_module.device)]
        for images in self.made(trainer, pl_module, pieces, labels if labels is not None and len(labels) else None):
            if tuple(images.shape[1:]) != tuple(real.shape):
                raise ValueError(
                    f"{type(self).__name__}: {type(pl_module).__name__} makes images {tuple(images.shape[1:])} and the "
                    f"real ones are {tuple(real.shape)}; compare those of one size."
                )
            found.append(self._features(trainer, images))
        numbers = torch.tensor([number for piece in pieces for number in piece], dtype=torch.int64)
        return in_order(trainer, numbers.to(pl_module.device), torch.cat(found))[0]

    def _compared(self, real: Tensor, made: Tensor) -> dict[str, float] | None:
        """The numbers; None where a feature is not finite."""
        if not (real.isfinite().all() and made.isfinite().all()):
            return None
        return dict(self.score(real.to(made.device), made))

    def _to_come(self, trainer: Trainer) -> int:
        """How many real images a validation will have at most, as far as a sanity check can tell."""
        most = validation_images(trainer, self._batch) if self._known is None else len(self._known.features)
        return int(min(most, self._wanted))

    def _release(self) -> None:
        if self._network is not None:
            self._network.give_back()
        self._network, self._known, self._parts = None, None, []

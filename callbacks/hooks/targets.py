"""The targets seam: a method that mixes images and, with them, what their labels ask of the network.

A method overrides `draw`, which makes all random choices of a batch and returns them as a frozen record, and `mix`,
which is mathematics: it gives a `Mix` of the changed images, the partner of each image and the share of its own label.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast, get_args

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from ._around import Around
from ._checks import number, whole
from ._fields import Fields
from ._memory import Blocks
from ._mixed_labels import MixedTensor, Mixture
from ._mixed_step import MixedStep
from .batch import Batch
from .method import Place

__all__ = ["Mix", "Targets"]

How = Literal["loss", "soft", "sampled"]


@dataclass(frozen=True)
class Mix:
    """What a method made of the images of one batch.

    Args:
        images: `(B, C, H, W)`, mixed.
        partner: Which image each was mixed with, int64 `(B,)`.
        lam: Share of the image's own label, 0..1: one for the batch, or one for each sample `(B,)`.
        beside: If given, what the loss of the mixed images is multiplied by when it is added to that of the images as
            they were, on which the batch is trained, too (`_halves.py`).
        twin: If given, the labels that have the rest of the share, in the place of the partners', `(B,)`.
    """

    images: Tensor
    partner: Tensor
    lam: float | Tensor
    beside: float | None = None
    twin: Tensor | None = None


class Targets(Batch):
    """Base of callbacks that mix images and labels.

    With `targets="loss"` the labels in the batch stay what they are for everybody who reads them, metrics too, and
    each loss L that is computed from them in `training_step` becomes `lam L(own) + (1 - lam) L(partner's)`. A batch
    of one sample, which has no partner, is left alone. Whether the loss can be seen is tried in the first step of each
    fit, by a mixture of each image with itself if that batch is not to be mixed. Labels that leave torch
    (`labels.tolist()`) beside a loss that is mixed are warned about once a fit. A label that nobody knows, NaN, makes
    that of the mixture unknown, whichever of the two it is: half of an answer would be trained on as if it were all.

    Args:
        prob: Probability that a batch is mixed, 0..1; neutral 0.
        targets: `"loss"` mixes the loss. `"soft"` puts probabilities, float `(B, K)`, in the place of the labels, also
            in batches that are not mixed. `"sampled"` keeps the own label with probability lam and takes the partner's
            otherwise, for each sample.
        num_classes: K of `"soft"`; None asks the module, then the datamodule, for its `num_classes`.
        seed: See `Batch`.
        image_key: See `Batch`.
        target_key: See `Batch`.
        name: Part of the state key.

    Raises:
        ValueError: a setting is out of its range; at set-up, if two callbacks mix the loss or K is unknown; at the
            first step, if the batch is none of images and labels or no loss was computed from the labels.
    """

    place = Place.TARGETS
    # Why another of this seam cannot use its `draw` and `mix`; empty where it can.
    stands_alone: ClassVar[str] = ""

    def __init__(self, *, prob: float, targets: How, num_classes: int | None, **others: Any) -> None:
        # The loss is mixed after labels are changed by others, so that it is the loss of changed labels.
        super().__init__(acts_last=targets == "loss", **others)
        own = type(self).__name__
        number(own, "prob", prob, 0, 1)
        if targets not in get_args(How):
            raise ValueError(f"{own}: targets is {targets!r}; give 'loss', 'soft' or 'sampled'.")
        if num_classes is not None:
            whole(own, "num_classes", num_classes, 1)
        self.prob, self.targets, self.num_classes = prob, targets, num_classes
        self._classes = num_classes
        self._step: MixedStep | None = None  # during a fit
        # For the images that `mix` makes, so that a step need not touch fresh memory.
        self.blocks = Blocks()

    @abstractmethod
    def draw(self, shape: torch.Size, random: np.random.Generator) -> Any:
        """All random choices for a batch of images of `shape`, as a frozen record."""

    @abstractmethod
    def mix(self, images: Tensor, draw: Any) -> Mix:
        """Mix the images `(B, C, H, W)` as `draw` says; they are left alone."""

    def ready(self, trainer: Trainer, pl_module: LightningModule, fields: Fields) -> None:
        """Get what `mix` needs besides images, at the set-up of a fit; `undo_later` frees it.

        Args:
            trainer: Of the fit.
            pl_module: The module.
            fields: Where batches have their images.
        """

    def helpers(self) -> Sequence["Targets"]:
        """Others of this seam whose `draw` and `mix` it uses; they are made ready and freed with it."""
        return ()

    def mixes_in(self, epoch: int) -> bool:
        """Whether batches of this epoch, counted from 0, are mixed at all."""
        return True

    def coin(self, random: np.random.Generator) -> float:
        """A number drawn evenly from 0 to 1; the batch is mixed where it is below `prob`."""
        return random.random()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self.off or stage != "fit":
            return
        own = type(self).__name__
        self.ready(trainer, pl_module, self.fields)
        for mixer in self.helpers():
            self.undo_later(mixer._undo.close)
            mixer.ready(trainer, pl_module, self.fields)
        rivals = cast(list[Targets], self.rivals(trainer, Targets))
        twin = next((it for it in rivals if self.targets == it.targets == "loss"), None)
        if twin is not None:
            raise ValueError(
                f"{own}: {type(twin).__name__} mixes the loss too; keep one of them, or give one targets='soft' or "
                "targets='sampled', which is applied first."
            )
        if self.targets == "soft":
            sources = (self, pl_module, getattr(trainer, "datamodule", None))
            known = (getattr(source, "num_classes", None) for source in sources)
            self._classes = next((it for it in known if isinstance(it, int)), None)
            if self._classes is None:
                raise ValueError(
                    f"{own}: targets='soft' needs the number of classes, and neither the module nor the datamodule has "
                    "a num_classes; pass num_classes."
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        for mixer in (self, *self.helpers()):
            self.undo_later(mixer.blocks.clear)
        if self.targets == "loss" and not self.off:
            self._step = MixedStep(pl_module, self.fields)
            self.undo_later(Around(trainer.strategy, "training_step", self._step).undo)
            self.undo_later(self._forget)

    def change(self, batch: Any, random: np.random.Generator) -> Any:
        images, labels = self.fields.image(batch), self.fields.target(batch)
        self._check(images, labels)
        # A ramp of a setting may switch it off for a while.
        if not self.off and self.mixes_in(self.epoch) and self.coin(random) < self.prob and len(images) > 1:
            mix = self.mix(images, self.draw(images.shape, random))
        elif self.targets == "soft" or (self._step is not None and self._step.untried):
            # One kind of labels for the whole run, whatever is drawn; a loss that is not seen is refused at once.
            mix = Mix(images, torch.arange(len(images), device=labels.device), 1.0)
        else:
            return batch
        mixed = self._mixed(labels, mix, random)
        if mix.beside is None:
            return self.fields.replaced(batch, mix.images, mixed)
        self._refuse_others(batch, len(images))
        return self.fields.replaced(batch, torch.cat([images, mix.images]), mixed)

    def _mixed(self, labels: Tensor, mix: Mix, random: np.random.Generator) -> Tensor:
        own, twin = labels, labels[mix.partner] if mix.twin is None else mix.twin
        if labels.is_floating_point():
            unknown = labels.isnan() | twin.isnan()
            labels, twin = (it.masked_fill(unknown, float("nan")) for it in (labels, twin))
        if self.targets == "loss":
            lam = mix.lam if isinstance(mix.lam, Tensor) else float(mix.lam)
            if mix.beside is not None:
                ones = torch.ones(len(labels), device=labels.device)
                lam = torch.cat([ones, torch.as_tensor(lam, dtype=ones.dtype, device=ones.device).expand(len(labels))])
                labels, twin = torch.cat([own, labels]), torch.cat([own, twin])
            return MixedTensor.of(labels, twin, Mixture(type(self).__name__, lam, len(labels), mix.beside), lam)
        share = torch.as_tensor(mix.lam, dtype=torch.float32, device=labels.device).expand(len(labels))
        share = share.view(-1, *[1] * (labels.ndim - 1))
        if self.targets == "sampled":
            drawn = torch.from_numpy(random.random(len(labels))).to(labels.device)
            return torch.where(drawn.view_as(share) < share, labels, twin)
        if not labels.is_floating_point():
            labels, twin = (self._one_hot(it).to(share.dtype) for it in (labels, twin))
            share = share.unsqueeze(-1)
        return share * labels + (1 - share) * twin

    def _one_hot(self, labels: Tensor) -> Tensor:
        assert self._classes is not None
        try:
            return F.one_hot(labels, self._classes)
        except RuntimeError:
            raise ValueError(
                f"{type(self).__name__}: targets='soft' with num_classes={self._classes} takes labels from 0 to "
                f"{self._classes - 1}, and those of this batch run from {labels.min()} to {labels.max()}; give the "
                "num_classes of the data."
            ) from None

    def _forget(self) -> None:
        self._step = None

    def _refuse_others(self, batch: Any, size: int) -> None:
        for name, value in self.fields.others(batch).items():
            has_rows = isinstance(value, (list, tuple)) or (isinstance(value, Tensor) and value.ndim > 0)
            if has_rows and len(value) == size:
                raise ValueError(
                    f"{type(self).__name__}: the batch has {name} for {size} samples beside images and labels, and "
                    "training on plain and mixed images makes twice as many; let the loader leave it out."
                )

    def _check(self, images: Any, labels: Any) -> None:
        own = type(self).__name__
        if not isinstance(images, Tensor) or images.ndim != 4 or not _numbers(images):
            raise ValueError(
                f"{own}: images must be a (B, C, H, W) tensor, floating or uint8, got {_described(images)}; "
                "say with image_key= which entry of the batch they are."
            )
        if not isinstance(labels, Tensor) or labels.ndim == 0 or len(labels) != len(images):
            raise ValueError(
                f"{own}: labels must be a tensor of as many as there are images, {len(images)}, got "
                f"{_described(labels)}; say with target_key= which entry of the batch they are."
            )
        if self.targets == "soft" and labels.ndim == 1 and labels.is_floating_point():
            raise ValueError(
                f"{own}: targets='soft' takes integer labels (B,) or probabilities (B, K), got {_described(labels)}; "
                "pass targets='loss' or targets='sampled', or make the labels integers."
            )


def _numbers(images: Tensor) -> bool:
    return images.is_floating_point() or images.dtype == torch.uint8


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} of {', '.join(map(repr, value))}"
    return f"a {type(value).__name__}"

"""Fine-tuning on few labels, as papers report it at 1% and 10%: what the weights are worth as a beginning."""

from collections.abc import Mapping
from typing import Any, ClassVar, final

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Generator, Tensor

from ..hooks._checks import above_zero, flag, number, whole
from ..hooks._unnoticed import as_if_nobody_looked
from ..hooks.evaluation import Stage
from ..hooks.probing import Probing, Read
from ._few_images import few_images
from ._fine_tuning import Tuned, fine_tuned, from_scratch, own_tensors
from .linear_heads import batches_of_an_epoch, few_a_class, members_of_classes

__all__ = ["FineTuneProbe"]

# SimCLR's: rate of batches of 256, and epochs at 1% of the labels or few of a class, and at more.
RATE, EPOCHS, EPOCHS_OF_MORE = 0.05, 60, 30


@final
class FineTuneProbe(Probing):
    """Fine-tunes copies of the network on a few labelled training images and logs their accuracy on validation images.

    For each entry of `labels` a copy of the module's tensors, with a new linear classifier behind `features(images)`,
    is trained on so many images, and beside it, with `scratch`, the same network drawn anew. The copies answer to the
    validation's batches as they come. Numbers are shares of right answers: `probe/fine_tune_1_percent`,
    `probe/fine_tune_1_percent_scratch`, and `probe/fine_tune_10_labels` where ten of every class were asked for. The
    module is not trained: weights, buffers, gradients and random streams are as if nothing had happened. The chosen
    images are held in memory in float32, as are two networks for each entry until the validation is over.

    Args:
        labels: How many of the training images have a label, an entry each: a share below 1 (of every class, at least
            one), or a whole number of every class; None is 1% and 10%.
        scratch: Also train the same network drawn anew: layers by their own `reset_parameters`, tokens and positions
            normal with a standard deviation of 0.02.
        epochs: Passes over the chosen images, >= 1; None takes SimCLR's: 60 at 1% or a number of every class, else 30.
        lr: Learning rate of batches of 256, above 0, which grows in proportion with `batch_size`; falls by a cosine.
        batch_size: Images in a batch of the fine-tuning, >= 2. Each process trains on all of them.
        seed: Of the choice of images, the order of batches, the classifier and the network drawn anew.
        every_n_epochs: While fitting, validations of every n-th epoch are measured, from the first on, and the last
            that `max_epochs` or `max_steps` allows; None measures only that one. `validate` and `test` always. Neutral:
            0, which measures nothing.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, if batches are mappings; in other batches they come second.
        name: Part of the state key, and what the numbers are called instead of `fine_tune`.

    Shape:
        Images `(B, C, H, W)` of one size; features `(B, D)` of the module's `features(images)`; labels int `(B,)`.

    Raises:
        ValueError: from the constructor, for a setting out of range; at set-up, if the module has no `features`; in the
            first batch, sanity check included, if labels are missing or `features` gives no gradient.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import FineTuneProbe
        >>> trainer = Trainer(callbacks=[FineTuneProbe(labels=[0.01, 10])], accelerator="cpu", logger=False)

    Reference: Chen et al. 2020, arXiv:2002.05709

    BibTeX:
        @inproceedings{chen2020simclr,
          title = {A Simple Framework for Contrastive Learning of Visual Representations},
          author = {Chen, Ting and Kornblith, Simon and Norouzi, Mohammad and Hinton, Geoffrey},
          booktitle = {International Conference on Machine Learning},
          year = {2020},
          eprint = {2002.05709},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        Images are not augmented, where the authors crop and mirror; batches have 256 images in place of 4096, at the
        rate that their rule gives for that. A network drawn anew starts as its layers draw themselves, which is not how
        timm starts some of its networks; all weights train, frozen ones too. For the whole recipe fine-tune the file of
        `BackboneFile` in a run of its own, with `labels_per_class` of the datamodule.

    See also:
        `LinearProbe`, where the network rests.
    """

    title: ClassVar[str] = "fine_tune"

    def __init__(
        self,
        labels: list[float] | None = None,
        scratch: bool = True,
        epochs: int | None = None,
        lr: float = RATE,
        batch_size: int = 256,
        seed: int = 0,
        every_n_epochs: int | None = None,
        image_key: str = "image",
        target_key: str = "target",
        name: str | None = None,
    ) -> None:
        super().__init__(every_n_epochs=every_n_epochs, image_key=image_key, target_key=target_key, name=name)
        entries = [0.01, 0.1] if labels is None else labels
        for it in entries:
            number("FineTuneProbe", "labels", it, 0)
            if it == 0 or (it >= 1 and it % 1):
                raise ValueError(
                    f"FineTuneProbe: labels has {it!r}; give a share above 0 and below 1, or a whole number of every "
                    "class."
                )
        if not entries or len({_called(it) for it in entries}) < len(entries):
            raise ValueError(f"FineTuneProbe: labels is {entries!r}; give at least one number, and each once.")
        flag("FineTuneProbe", "scratch", scratch)
        if epochs is not None:
            whole("FineTuneProbe", "epochs", epochs, 1)
        above_zero("FineTuneProbe", "lr", lr)
        whole("FineTuneProbe", "batch_size", batch_size, 2)
        whole("FineTuneProbe", "seed", seed, 0)
        self.labels, self.scratch, self.epochs, self.lr = entries, scratch, epochs, lr
        self.batch_size, self.seed = batch_size, seed
        self._tuned: dict[str, Tuned] = {}

    @property
    def protocol(self) -> str:
        # Theirs augments.
        return "simclr*"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {
            "labels": self.labels,
            "scratch": self.scratch,
            "epochs": [self._epochs(it) for it in self.labels],
            "lr": self.lr,
            "batch_size": self.batch_size,
            "momentum": 0.9,
            "nesterov": True,
            "schedule": "cosine",
            "weight_decay": 0,
            "seed": self.seed,
            "augmented": False,
        }

    def starts(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        super().starts(trainer, pl_module, stage)
        if self.rehearsing:
            return
        found = few_images(trainer, pl_module, self.fields, self._choices)
        if found is None:
            rank_zero_warn(
                "FineTuneProbe: nobody has training images to fine-tune on, so nothing was measured; give the Trainer "
                "the datamodule of the fit."
            )
            return
        with as_if_nobody_looked(trainer, pl_module):
            for labels, (images, classes) in zip(self.labels, found, strict=True):
                epochs, called = self._epochs(labels), _called(labels)
                self._tuned[called] = self._trained(pl_module, images, classes, epochs, scratch=False)
                if self.scratch:
                    self._tuned[f"{called}_scratch"] = self._trained(pl_module, images, classes, epochs, scratch=True)

    def extra(self, pl_module: LightningModule, image: Tensor, batch_index: int) -> Mapping[str, Tensor]:
        with torch.autocast(image.device.type, enabled=False):
            if self.rehearsing and batch_index == 0 and len(image) > 1:
                # One step, by which a module is refused that cannot be fine-tuned.
                self._trained(pl_module, image[:2].clone(), image.new_zeros(2).long(), 1, self.scratch)
                pl_module.eval()
            return {name: it.classes(pl_module, image) for name, it in self._tuned.items()}

    def measure(self, pl_module: LightningModule, images: Read, bank: Read | None) -> Mapping[str, float]:
        assert images.targets is not None
        asked = images.targets >= 0
        if not asked.any():
            return {}
        right = {name: it[asked] == images.targets[asked] for name, it in images.extra.items()}
        return {name: float(it.double().mean()) for name, it in right.items()}

    def _release(self) -> None:
        super()._release()
        self._tuned = {}

    def _epochs(self, labels: float) -> int:
        if self.epochs is not None:
            return self.epochs
        return EPOCHS if labels <= 0.01 or labels >= 1 else EPOCHS_OF_MORE

    def _choices(self, known: Tensor) -> list[Tensor]:
        """Positions of the images that have a label, for each entry; those of unknown class have none."""
        found = []
        for labels in self.labels:
            random = Generator().manual_seed(self.seed)
            if labels >= 1:
                chosen = few_a_class(known, int(labels), random)
            else:
                members = members_of_classes(known, random)
                chosen = torch.cat([it[: max(1, round(labels * len(it)))] for it in members])
            found.append(chosen[known.cpu()[chosen] >= 0])
        return found

    def _trained(self, pl_module: LightningModule, images: Tensor, labels: Tensor, epochs: int, scratch: bool) -> Tuned:
        random = Generator().manual_seed(self.seed)
        torch.manual_seed(self.seed)
        tensors = from_scratch(pl_module) if scratch else own_tensors(pl_module)
        pl_module.train()
        classes, rate = int(labels.max()) + 1, self.lr * self.batch_size / 256
        batches: list[Tensor] = []
        for _ in range(epochs):
            some = batches_of_an_epoch(len(images), self.batch_size, random)
            # Batch norm cannot measure one image.
            batches += some[:-1] if len(some) > 1 and len(some[-1]) == 1 else some
        with torch.autocast(images.device.type, enabled=False):
            return fine_tuned("FineTuneProbe", pl_module, tensors, images, labels, classes, rate, batches, random)


def _called(labels: float) -> str:
    """What an entry of `labels` is called: `1_percent` or `10_labels`."""
    return f"{int(labels)}_labels" if labels >= 1 else f"{labels * 100:g}_percent"

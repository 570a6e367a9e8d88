"""Adversarial accuracy: how often a classifier is still right when gradients look for what makes it wrong.

Attacks of Goodfellow et al. 2014, arXiv:1412.6572, and Carlini and Wagner 2016, arXiv:1608.04644; see `attacks.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from ..hooks._checks import above_zero, number, whole
from ..hooks._fields import Fields
from ..hooks._heard import own_paths
from ..hooks._metadata import Pixels, normalised_by
from ..hooks.evaluation import Stage
from ..hooks.observe import Observe
from .attacks import Classifier, carlini_wagner, fgsm

__all__ = ["AdversarialAccuracy"]


@final
class AdversarialAccuracy(Observe):
    """Logs the accuracy on images that FGSM and Carlini-Wagner attacks have changed, and by how much they did.

    The first batches of a validation or test are attacked after their step, with gradients, and everything is put back.
    Pixels count from 0 to 1, as the datamodule's `mean` and `std` tell them; where nobody tells, 0 and 1 are the least
    and the largest value of each batch. Logged are, after `val/adversarial/` or `test/adversarial/`: `clean`, the
    accuracy on the very images; `fgsm_EPSILON`, that after one step of the size epsilon, and `fgsm_EPSILON_l2`, how far
    images moved; `cw`, the accuracy after the C&W attack, and `cw_l2`, how far those moved that were right and are no
    more. They are sums over all processes, and a checkpoint may be monitored by them.

    Args:
        epsilons: Sizes of FGSM's step, pixels of 0 to 1, each in [0, 1]; 0 leaves the clean accuracy. May be empty.
        cw_steps: Steps of Adam a search of C&W, >= 0; 0 leaves the attack out. The authors have 1000.
        cw_searches: Values of c that C&W tries, >= 1; 9 as the authors.
        cw_lr: Learning rate of its Adam, above 0; 0.01 as the authors.
        cw_kappa: By how much the wrong logit must lead, >= 0.
        cw_first_c: The first c, above 0; the authors have 0.001, from which few searches do not get far.
        batches: Batches that are attacked, the first ones of the first loader, >= 1.
        every_n_epochs: While fitting, validations of every n-th epoch are attacked, from the first on, >= 0; `validate`
            and `test` always. Neutral: 0, which attacks nothing.
        network: Path of the part of the module that makes logits of images; empty is the module itself.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, if batches are mappings; in other batches they come second.
        name: Part of the state key, and what numbers are called instead of `adversarial`.

    Shape:
        Images `(B, C, H, W)`, integer labels `(B,)` (outside 0..K-1 are passed over), logits `(B, K)`, K >= 2.

    Raises:
        ValueError: from the constructor, for a setting out of range; at set-up, if there is no such part; in the first
            batch, sanity check included, if images are no floating-point numbers, labels no integers `(B,)` or logits
            not `(B, K)`.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import AdversarialAccuracy
        >>> trainer = Trainer(callbacks=[AdversarialAccuracy([0.03])], accelerator="cpu", logger=False)

    Reference: Carlini and Wagner 2016, arXiv:1608.04644

    BibTeX:
        @inproceedings{carlini2017towards,
          title = {Towards Evaluating the Robustness of Neural Networks},
          author = {Carlini, Nicholas and Wagner, David},
          booktitle = {IEEE Symposium on Security and Privacy},
          year = {2017},
          eprint = {1608.04644},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        Attacks have no target class; searches are fewer and shorter unless told otherwise, so that `cw` and `cw_l2`
        are upper bounds.

    See also:
        `DefensiveDistillation`, whose networks hide their gradients from the first attack and not from the second.
    """

    every_rank = True

    def __init__(
        self,
        epsilons: Sequence[float] = (0.01, 0.03),
        cw_steps: int = 100,
        cw_searches: int = 5,
        cw_lr: float = 0.01,
        cw_kappa: float = 0.0,
        cw_first_c: float = 1.0,
        batches: int = 1,
        every_n_epochs: int = 1,
        network: str = "",
        image_key: str = "image",
        target_key: str = "target",
        name: str | None = None,
    ) -> None:
        super().__init__(every_n_epochs=every_n_epochs, batches=batches, name=name)
        kind = "AdversarialAccuracy"
        if not isinstance(epsilons, (list, tuple)):
            raise ValueError(f"{kind}: epsilons is {epsilons!r}; give a list of steps, such as [0.01, 0.03].")
        for epsilon in epsilons:
            number(kind, "one of the epsilons", epsilon, 0, 1)
        whole(kind, "cw_steps", cw_steps, 0)
        whole(kind, "cw_searches", cw_searches, 1)
        number(kind, "cw_kappa", cw_kappa, 0)
        for argument, value in (("cw_lr", cw_lr), ("cw_first_c", cw_first_c)):
            above_zero(kind, argument, value)
        self.epsilons, self.cw_steps, self.cw_searches = epsilons, cw_steps, cw_searches
        self.cw_lr, self.cw_kappa, self.cw_first_c = cw_lr, cw_kappa, cw_first_c
        self.network, self.image_key, self.target_key = network, image_key, target_key
        self.fields = Fields(kind, image_key, target_key)
        self._path = ""
        self._pixels: Pixels | None = None
        self._sums: dict[str, Tensor] = {}

    def starts(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        self._path = own_paths("AdversarialAccuracy", "the module", pl_module, [self.network])[self.network]
        self._pixels, self._sums = normalised_by(trainer), {}

    def look(self, pl_module: LightningModule, batch: Any, outputs: Any, batch_index: int) -> Mapping[str, float]:
        images, labels = self.fields.image(batch), self.fields.target(batch)
        if not (isinstance(labels, Tensor) and labels.ndim == 1 and not labels.is_floating_point()):
            came = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
            raise ValueError(
                f"AdversarialAccuracy: the labels of a batch are {came} and not whole numbers (B,), so there is no "
                "class to lead away from; say with target_key= where they stand, or leave it out."
            )
        if not images.is_floating_point():
            raise ValueError(
                f"AdversarialAccuracy: the images of a batch are {images.dtype}, in which no small step can be taken; "
                "let the datamodule make floating-point numbers of them, in on_after_batch_transfer for example."
            )
        low, high = self._range(images)
        network = pl_module.get_submodule(self._path)

        def answer(pixels: Tensor) -> Tensor:
            logits: Tensor = network((low + (high - low) * pixels).to(images.dtype))
            if logits.ndim != 2 or logits.shape[1] < 2:
                raise ValueError(
                    f"AdversarialAccuracy: the network answers with {tuple(logits.shape)} and not with logits (B, K) "
                    "of two or more classes; name with network= the part of the module that does."
                )
            return logits.float()

        # Images that leave the range of pixels, as padding may, are attacked as far as they lie in it.
        pixels = ((images.float() - low) / (high - low)).clamp(0, 1)
        for key, value in self._attacked(answer, pixels, labels.long()).items():
            self._sums[key] = self._sums.get(key, 0) + value.double()
        return {}

    def epoch_ends(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        if trainer.sanity_checking:
            return
        summed = torch.zeros(len(self._names()), dtype=torch.float64, device=pl_module.device)
        for place, key in enumerate(self._names()):
            summed[place] += self._sums.get(key, 0)
        self._sums = {}
        summed = trainer.strategy.reduce(summed, reduce_op="sum")
        found = dict(zip(self._names(), summed.tolist(), strict=True))
        images, fooled = found.pop("images"), found.pop("cw_fooled", 0)
        if not images:
            rank_zero_warn("AdversarialAccuracy: no image with a class came, so nothing was attacked.")
            return
        for key, value in found.items():
            count = fooled if key == "cw_l2" else images
            if count:
                pl_module.log(f"{stage}/{self.name or 'adversarial'}/{key}", value / count, sync_dist=True)

    def _names(self) -> list[str]:
        steps = [f"fgsm_{epsilon:g}{what}" for epsilon in self.epsilons for what in ("", "_l2")]
        return ["images", "clean", *steps, *(["cw", "cw_fooled", "cw_l2"] if self.cw_steps else [])]

    def _attacked(self, answer: Classifier, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Sums over the images of a batch, by the names of what they are."""

        with torch.no_grad():
            logits = answer(pixels)
        known = (labels >= 0) & (labels < logits.shape[1])
        pixels, labels, clean = pixels[known], labels[known], (logits.argmax(1) == labels)[known]
        if not len(labels):
            return {}

        def right(moved: Tensor) -> Tensor:
            with torch.no_grad():
                return answer(moved).argmax(1) == labels

        def distance(moved: Tensor) -> Tensor:
            return (moved - pixels).flatten(1).norm(dim=1)

        found = {"images": torch.ones_like(labels), "clean": clean}
        for epsilon in self.epsilons:
            moved = fgsm(answer, pixels, labels, epsilon)
            found |= {f"fgsm_{epsilon:g}": right(moved), f"fgsm_{epsilon:g}_l2": distance(moved)}
        if self.cw_steps:
            moved = carlini_wagner(
                answer,
                pixels,
                labels,
                kappa=self.cw_kappa,
                steps=self.cw_steps,
                searches=self.cw_searches,
                lr=self.cw_lr,
                first_c=self.cw_first_c,
            )
            robust = right(moved)
            fooled = clean & ~robust
            found |= {"cw": robust, "cw_fooled": fooled, "cw_l2": distance(moved) * fooled}
        return {key: value.sum() for key, value in found.items()}

    def _range(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What black and white are in the batch, `(C, 1, 1)` or numbers."""
        if self._pixels is None or not all(len(it) in (1, images.shape[1]) for it in self._pixels):
            low, high = images.float().aminmax()
            return low, torch.maximum(high, low + 1e-12)
        mean, std = (torch.tensor(it, dtype=torch.float32, device=images.device)[:, None, None] for it in self._pixels)
        return -mean / std, (1 - mean) / std

"""SelectMix: mix the samples whose label is in doubt with trusted ones of a class that they may have.

Liu et al. 2025, arXiv:2509.11265. Symbols: K-fold cross validation `k_folds`; lambda `lam`, the share of the own image;
alpha `alpha`; x_j `images[partner]`; letters: N training samples, B samples of the micro-batch, K classes, D features.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from ..hooks._checks import number, whole
from ..hooks._fields import Fields
from ..hooks.judged import Judged
from ..hooks.targets import Mix
from .confident_learning import Doubt, check_classes, label_doubt, out_of_sample_probabilities, read_probabilities
from .mixup import mixup_images

__all__ = ["SelectMix", "SelectMixDraw", "given_share", "select_peers"]


def select_peers(doubt: Doubt, which: Tensor, pick: Tensor) -> tuple[Tensor, Tensor]:
    """For each sample in doubt a trusted sample of the batch of a class that it may have.

    The class is the given one with probability `keep`, the predicted one otherwise; where no trusted sample of the
    batch has it, it is the other one. A sample without either, and one that is not in doubt, is its own partner.

    Args:
        doubt: Of the batch's B samples.
        which: Uniform in [0, 1), `(B,)`: chooses the class.
        pick: Uniform in [0, 1), `(B,)`: chooses among the trusted samples of that class.

    Returns:
        Partner int64 `(B,)`, and whether it has the class that was given to the sample, bool `(B,)`.
    """
    alike = doubt.trusted & (doubt.given == doubt.given[:, None])
    guessed = doubt.trusted & (doubt.given == doubt.predicted[:, None])
    toward_given = torch.where(which < doubt.keep, alike.any(1), ~guessed.any(1))
    peers = torch.where(toward_given[:, None], alike, guessed) & doubt.uncertain[:, None]
    # The place of the n-th peer, n drawn evenly.
    nth = (pick * peers.sum(1)).long() + 1
    partner = (peers.cumsum(1) == nth[:, None]).int().argmax(1)
    own = torch.arange(len(partner))
    return partner.where(peers.any(1), own), toward_given & peers.any(1)


def given_share(doubt: Doubt, lam: Tensor, mixed: Tensor, toward_given: Tensor) -> Tensor:
    """What the given class has of the target; the predicted class has the rest.

    The own share lambda is split between the two as the out-of-sample probabilities are, the peer's share 1 - lambda
    belongs to the class that the peer has:

        lam keep + (1 - lam) [the peer has the given class]

    Args:
        doubt: Of the batch's B samples.
        lam: Share of the own image, `(B,)`.
        mixed: Which samples have a peer; the others keep all of their image, bool `(B,)`.
        toward_given: Whose peer has the given class, bool `(B,)`.

    Returns:
        Share in [0, 1], `(B,)`; 1 of a sample that is not in doubt.
    """
    lam = lam.where(mixed, 1.0)
    share = lam * doubt.keep + (1 - lam) * toward_given
    return share.where(doubt.uncertain, 1.0)


@dataclass(frozen=True)
class SelectMixDraw:
    """All random choices that SelectMix makes for a batch.

    Args:
        lam: float64 `(B,)`, share of the own image in [0, 1].
        which: float64 `(B,)` in [0, 1), chooses the class of the peer.
        pick: float64 `(B,)` in [0, 1), chooses the peer.
    """

    lam: Tensor
    which: Tensor
    pick: Tensor


@final
class SelectMix(Judged):
    """Finds samples whose label is in doubt, and mixes them, and only them, with trusted ones of a class they may have.

    Before `start_epoch`, and again every `refresh_every` epochs, each training sample, whatever `limit_train_batches`
    and `fast_dev_run` say, gets class probabilities from a classifier that was not fitted to it: a linear one on the
    features of the network as it is then, cross validated over the training set, or a file. By confident learning a
    sample is in doubt where a class that is not its own reaches the probability which samples of that class have on
    average, or where no class is likelier than `confidence_threshold`. In each training micro-batch a sample in doubt
    is mixed with a trusted one of its given or its predicted class, and its loss becomes that of both classes with the
    shares of `given_share`. Samples that are not in doubt are trained on as they are; so is one that has no peer in the
    batch, but for its target. Integer labels stay integers, so metrics count the given label. Validation, test and
    prediction stay untouched.

    Args:
        k_folds: Parts of the cross validation, at least 2.
        confidence_threshold: Below which highest probability a sample is in doubt whatever it is, 0 to 1; at 0 only
            confident learning decides.
        alpha: Both parameters of the Beta distribution of lambda, >= 0. Neutral: 0.
        start_epoch: Epochs of plain training before samples are judged, at least 0; short, for a network that has
            learned wrong labels by heart has features of them.
        refresh_every: Epochs between two looks at all samples; None looks once, as the paper does.
        probabilities: File of probabilities from outside, rows of the training samples in their order, `.npy` or the
            first array of a `.npz`, `(N, K)`; then nothing is cross validated, and the network's features are not read.
        network: Path of the part of the module that makes logits `(B, K)` of images, as `network`; empty is the module
            itself.
        prob: Probability that a batch is mixed, 0 to 1. Neutral: 0.
        targets: "loss" mixes the loss; "soft" puts probabilities `(B, num_classes)` in the place of the labels,
            also where a batch is not mixed; "sampled" takes the given or the predicted label by their shares.
        num_classes: K; None asks the module, then the datamodule, for "soft", and else the labels.
        seed: Seed of the callback's own random stream and of the folds, >= 0.
        image_key: Key of the images where batches are mappings; elsewhere they come first.
        target_key: Key of the labels where batches are mappings; elsewhere they come second.
        name: Part of the state key.

    Shape:
        images `(B, C, H, W)`, floating point; labels int64 `(B,)`.

    Raises:
        ValueError: a setting outside its range; a file that holds no probabilities, or at set-up other classes; another
            callback mixes the loss; before the first batch, a loader that does not tell its samples apart or a file of
            other samples; at the first batch with them, images that are not floating point and labels that are none of
            the K classes, as -1; before a look, labels that are no classes, or fewer samples of every class than folds.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import SelectMix
        >>> mixing = SelectMix(k_folds=5, start_epoch=2, refresh_every=2)
        >>> trainer = Trainer(max_epochs=20, callbacks=[mixing], accelerator="cpu", logger=False)

    Reference: Liu et al. 2025, arXiv:2509.11265

    BibTeX:
        @article{liu2025selectmix,
          title = {{SelectMix}: Enhancing Label Noise Robustness through Targeted Sample Mixing},
          author = {Liu, Qiuhao and Li, Ling and Lu, Yao and Xuan, Qi and Zhu, Zhaowei and Wei, Jiaheng},
          year = {2025},
          eprint = {2509.11265},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        Its base model is trained anew for every fold; here a linear classifier is, on features of the one network that
        trains, which has seen all labels: its probabilities are out-of-sample for the classifier, not for the features.
        Those of a base model are given as a file. A sample of the paper is in doubt where the predicted class is not
        the given one; here that class must also be as likely as it is for its own samples (confident learning,
        Northcutt et al. 2021). Peers come from the batch, not from the training set. How the paper shares a target
        among the given, the predicted and the peer's class could not be read in full; the shares are ours.

    See also:
        `MixUp`, which mixes all samples with any; `DataDiet`, which leaves samples out.
    """

    neutral = ({"alpha": 0.0}, {"prob": 0.0})

    def __init__(
        self,
        k_folds: int = 5,
        confidence_threshold: float = 0.0,
        alpha: float = 1.0,
        start_epoch: int = 1,
        refresh_every: int | None = None,
        probabilities: str | None = None,
        network: str = "",
        prob: float = 1.0,
        targets: Literal["loss", "soft", "sampled"] = "loss",
        num_classes: int | None = None,
        seed: int = 0,
        image_key: str = "image",
        target_key: str = "target",
        name: str | None = None,
    ) -> None:
        super().__init__(
            network=network,
            prob=prob,
            targets=targets,
            num_classes=num_classes,
            seed=seed,
            image_key=image_key,
            target_key=target_key,
            name=name,
        )
        whole("SelectMix", "k_folds", k_folds, 2)
        number("SelectMix", "confidence_threshold", confidence_threshold, 0, 1)
        number("SelectMix", "alpha", alpha, 0)
        whole("SelectMix", "start_epoch", start_epoch, 0)
        if refresh_every is not None:
            whole("SelectMix", "refresh_every", refresh_every, 1)
        self.k_folds, self.confidence_threshold, self.alpha = k_folds, confidence_threshold, alpha
        self.start_epoch, self.refresh_every, self.probabilities = start_epoch, refresh_every, probabilities
        self._from_file = None if probabilities is None else read_probabilities(Path(probabilities))

    def judges_in(self, epoch: int) -> bool:
        since = epoch - self.start_epoch
        if since < 0 or self._from_file is not None or self.refresh_every is None:
            return since >= 0 and self.judged is None
        return since % self.refresh_every == 0 or self.judged is None

    def needs_features(self) -> bool:
        return self._from_file is None

    def known_for(self, samples: int) -> None:
        if self._from_file is not None and len(self._from_file) != samples:
            raise ValueError(
                f"SelectMix: {self.probabilities} has probabilities of {len(self._from_file)} samples, and the "
                f"training set has {samples}; give those of this training set, in its order."
            )

    def ready(self, trainer: Trainer, pl_module: LightningModule, fields: Fields) -> None:
        owners, found = (self, pl_module, getattr(trainer, "datamodule", None)), self._from_file
        told = [it for owner in owners if isinstance(it := getattr(owner, "num_classes", None), int)]
        if found is not None and told and told[0] != (columns := found.shape[1]):
            why = f"has probabilities of {columns} classes, and num_classes is {told[0]}; give a column for each class."
            raise ValueError(f"SelectMix: {self.probabilities} {why}")

    def takes(self, labels: Tensor) -> None:
        check_classes(labels, self._classes if self._from_file is None else self._from_file.shape[1])

    def judge(self, features: Tensor, labels: Tensor) -> Tensor:
        found = self._from_file
        if found is None:
            found = out_of_sample_probabilities(features, labels, self.k_folds, self.seed, self._classes)
        return label_doubt(found, labels, self.confidence_threshold).rows()

    def mixes_in(self, epoch: int) -> bool:
        return self.here is not None and bool(Doubt.of(self.here).uncertain.any())

    def draw(self, shape: torch.Size, random: np.random.Generator) -> SelectMixDraw:
        lam = torch.from_numpy(random.beta(self.alpha, self.alpha, shape[0]))
        which, pick = torch.from_numpy(random.random((2, shape[0])))
        return SelectMixDraw(lam, which, pick)

    def mix(self, images: Tensor, draw: SelectMixDraw) -> Mix:
        """Mix as `draw` says; `here` says what is known of the batch's samples."""
        assert self.here is not None
        doubt = Doubt.of(self.here)
        partner, toward_given = select_peers(doubt, draw.which, draw.pick)
        mixed = partner != torch.arange(len(partner))
        # Rounded to the images' dtype first, so that images and labels are mixed in the same shares.
        lam = draw.lam.to(images.dtype).where(mixed, 1.0)
        share, own = given_share(doubt, lam.double(), mixed, toward_given).float(), images.device
        partner, lam, share, twin = (it.to(own, non_blocking=True) for it in (partner, lam, share, doubt.predicted))
        return Mix(mixup_images(images, partner, lam, self.blocks), partner, share, twin=twin)

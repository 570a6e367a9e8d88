"""DyBAT: further training on the mini-batches of highest loss, Sahayam, Zakkam and Jayaraman 2023, arXiv:2304.03486.

Symbols: delta `delta`, the share of the n mini-batches of an epoch that is trained on.
"""

import math
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from ..hooks._checks import number, whole
from ..hooks.recorded_losses import RecordedLosses, sample_losses
from ..hooks.training_order import Visit

__all__ = ["HardBatches", "hardest_batches"]


def hardest_batches(losses: Tensor, batches: Tensor, delta: float) -> Tensor:
    """DyBAT's choice: positions of the samples in the `ceil(delta n)` batches of highest mean loss, int64.

    The batches come in their own order, but for one that is smaller than others, which comes last.

    Args:
        losses: Of each sample, `(N,)`; one with NaN does not come.
        batches: In which batch each sample is, `(N,)`; NaN for samples in none.
        delta: Share of the n batches, 0 to 1.

    Example:
        >>> losses, batches = torch.tensor([1.0, 0.0, 4.0, 3.0, 0.0]), torch.tensor([0, 1, 0, 2, 1])
        >>> hardest_batches(losses, batches, 0.5).tolist()
        [0, 2, 3]
    """
    positions = (~(batches.isnan() | losses.isnan())).nonzero()[:, 0]
    numbers, batch = batches[positions].unique(return_inverse=True)
    sizes = batch.bincount(minlength=len(numbers))
    mean = torch.zeros(len(numbers)).index_add_(0, batch, losses[positions].float()) / sizes
    hard = mean.argsort(descending=True, stable=True)[: math.ceil(delta * len(numbers))]
    place = torch.full((len(numbers),), len(numbers))
    place[hard] = hard + len(numbers) * (sizes[hard] < sizes.max())
    chosen = torch.isin(batch, hard)
    order = place[batch[chosen]].argsort(stable=True)
    return positions[chosen][order]


@final
class HardBatches(RecordedLosses):
    """Trains further on the share `delta` of the mini-batches that have the highest loss.

    With `mode="replay"` each epoch that sees every batch is followed by one that repeats its hardest batches alone, by
    the loss that they had. With `mode="select"` each epoch begins with a forward pass over all training images, without
    gradients and as evaluation sees them, and trains on the hardest of its batches alone. Batches stay together and
    are augmented anew; samples that are left out cost nothing more. Losses and labels, and validation, stay untouched.

    Args:
        delta: Share of the mini-batches of an epoch, 0 to 1; of n it is `ceil(delta n)`. At 1 "replay" sees each batch
            twice. Neutral: 0.
        mode: "replay" or "select".
        warmup_epochs: Epochs of plain training before, at least 0; `select` would begin with what an untrained network
            finds hard.
        network: Path of the part of the module that makes logits `(B, K)` of images, as `network`; empty is the module
            itself, whose forward `training_step` calls.
        seed: Of the batches that "select" chooses from, >= 0.
        image_key: Key of the images where batches are mappings; elsewhere they come first.
        target_key: Key of the labels where batches are mappings; elsewhere they come second.
        name: Part of the state key.

    Shape:
        Logits `(B, K)` of two classes or more; labels int64 `(B,)`, or shares of classes `(B, K)` that sum to 1.

    Raises:
        ValueError: a setting outside its range; at set-up, if another callback chooses samples or there is no such
            part; before the first batch, if the loader does not tell its samples apart or gives some more than once;
            in the first batch, if there are no such logits or labels.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import HardBatches
        >>> trainer = Trainer(max_epochs=20, callbacks=[HardBatches(delta=0.3)], accelerator="cpu", logger=False)

    Reference: Sahayam et al. 2023, arXiv:2304.03486

    BibTeX:
        @article{sahayam2023hard,
          title = {Can we learn better with hard samples?},
          author = {Sahayam, Subin and Zakkam, John and Jayaraman, Umarani},
          journal = {arXiv preprint arXiv:2304.03486},
          year = {2023},
        }

    Differs from the paper:
        Its abstract, which is what was followed, leaves open whether hard batches are trained on after all or instead
        of all; both are here. A repetition is an epoch of its own, so that validation and logs come between.

    See also:
        `DynamicDataPruning`, which chooses single samples.
    """

    neutral = ({"delta": 0.0},)

    def __init__(
        self,
        delta: float = 0.3,
        mode: Literal["replay", "select"] = "replay",
        warmup_epochs: int = 0,
        network: str = "",
        seed: int = 0,
        image_key: str = "image",
        target_key: str = "target",
        name: str | None = None,
    ) -> None:
        super().__init__(network=network, image_key=image_key, target_key=target_key, name=name)
        number("HardBatches", "delta", delta, 0, 1)
        whole("HardBatches", "warmup_epochs", warmup_epochs, 0)
        whole("HardBatches", "seed", seed, 0)
        if mode not in ("replay", "select"):
            raise ValueError(f"HardBatches: mode is {mode!r}; give 'replay' or 'select'.")
        self.delta, self.mode, self.warmup_epochs, self.seed = delta, mode, warmup_epochs, seed

    def visits(self, epoch: int, samples: int) -> Visit | None:
        since = epoch - self.warmup_epochs
        losses = self.known_losses(samples)
        if self.mode == "replay":
            # The batches of the epoch before, which saw them all.
            hard = since >= 0 and since % 2 == 1 and bool(losses.isfinite().any())
            return Visit(hardest_batches(losses, self.batches.cpu(), self.delta), ordered=True) if hard else None
        if since < 0:
            return None
        assert self.training_set is not None
        losses = self.scored(lambda *asked: sample_losses(self.answers(*asked), asked[2]))
        place = torch.from_numpy(np.random.default_rng((self.seed, epoch)).permutation(samples))
        batches = torch.div(place, self.training_set.batch_size, rounding_mode="floor")
        return Visit(hardest_batches(losses, batches.float(), self.delta), ordered=True)

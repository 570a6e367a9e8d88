"""Linear evaluation on frozen features, as papers report it: one pass over the images, then heads alone are trained.

Letters: N training images (the bank), D features, K classes, G heads.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, final, get_args

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Generator, Tensor

from ..hooks._checks import above_zero, number, whole
from ..hooks.probing import Probing, Read
from .linear_heads import (
    batches_of_an_epoch,
    few_a_class,
    head_scores,
    held_out,
    logistic_regression,
    standardised,
    train_heads,
)

__all__ = ["LinearProbe"]

Protocol = Literal["dinov2", "simclr", "few_labels"]
# Rates are those of batches of 256, and grow in proportion with the batch.
PROTOCOLS: dict[str, dict[str, Any]] = {
    "dinov2": {
        "rates": [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1],
        "decays": [0.0],
        "epochs": 10,
        "batch_size": 128,
    },
    "simclr": {"rates": [0.1], "decays": [0.0], "epochs": 90, "batch_size": 256},
    "few_labels": {"labels_per_class": 10, "penalty": 1.0},
}
# Deviation of the weights that heads begin with, DINOv2's.
START = 0.01


@final
class LinearProbe(Probing):
    """Trains linear classifiers on frozen features of the training images and logs their validation accuracy.

    The images go through the network once, by the evaluation's transform and without gradients; all heads of a grid
    then train together on these features. Which head counts is chosen on a part of the *training* features that was
    held out, never on validation images; then it is trained anew on all of them. The number is a share of right
    answers, `probe/linear`, in tests `probe/test/linear`; beside it stand the chosen learning rate (`_lr`), weight
    decay (`_decay`) and held-out share (`_held_out`) where there was a choice. Training sees nothing of it. Images
    without a class (negative) have no part. A fit that a callback stops early has no last validation to measure: give
    `every_n_epochs`, or validate afterwards.

    Args:
        protocol: `dinov2`, 13 learning rates at once, SGD with momentum 0.9, cosine, no weight decay, 10 epochs of
            batches of 128; `simclr`, one head with rate 0.1 * batch_size / 256, likewise, 90 epochs of batches of 256;
            `few_labels`, logistic regression on 10 images of every class, drawn by `seed`, whose features are
            standardised by them. The first two are called `dinov2*` and `simclr*` beside their numbers, for their
            authors augment; the third is called `few_labels*` with a changed setting.
        rates: Learning rates of the grid instead, >= 0, of batches of 256; the rate used is that times
            `batch_size` / 256. Of `dinov2` and `simclr`, as are the next four.
        decays: Weight decays instead, >= 0; there is a head for each rate with each of them.
        epochs: Passes over the features instead, >= 1.
        batch_size: Features in a batch instead, >= 1.
        holdout: Share of each class's training features by which the head is chosen, above 0, below 1: the head that
            gets most of them, of equals the one with the smaller loss.
        labels_per_class: Images of every class instead, >= 1. Of `few_labels`, as is the next.
        penalty: On half the sum of squared weights, beside the sum of the losses, above 0; `1 / C` of scikit-learn.
        seed: Of the heads' first weights, the order of batches, what is held out and which few labels there are.
        max_samples: Training images at most; None takes all, as the protocols do.
        every_n_epochs: While fitting, validations of every n-th epoch are measured, from the first on, and the last
            that `max_epochs` or `max_steps` allows; None measures only that one. `validate` and `test` always. Neutral:
            0, which measures nothing.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, if batches are mappings; in other batches they come second.
        name: Part of the state key, and what the numbers are called instead of `linear`.

    Shape:
        Features `(B, D)` of the module's `features(images)`; labels int `(B,)`.

    Raises:
        ValueError: from the constructor, for a setting out of range or of another protocol; at set-up, if the module
            has no `features`; in the first batch, sanity check included, if labels are missing.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import LinearProbe
        >>> probes = [LinearProbe("dinov2"), LinearProbe("few_labels", name="ten_labels")]
        >>> trainer = Trainer(callbacks=probes, accelerator="cpu", logger=False)

    Reference: Oquab et al. 2023, arXiv:2304.07193

    BibTeX:
        @article{oquab2024dinov2,
          title = {{DINOv2}: Learning Robust Visual Features without Supervision},
          author = {Oquab, Maxime and Darcet, Timoth{\\'e}e and Moutakanni, Th{\\'e}o and Vo, Huy and others},
          journal = {Transactions on Machine Learning Research},
          year = {2024},
          eprint = {2304.07193},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        Images are not augmented, for that would be a pass over them each epoch, where both published protocols crop and
        mirror. Only the pooled features are tried, not those of several blocks. The authors choose the head by its
        accuracy on validation images, which is no longer an estimate of it.

    See also:
        `OnlineProbe`, whose head trains while the network does; `KNNProbe`, where nothing trains.
    """

    title: ClassVar[str] = "linear"
    uses_bank = True

    def __init__(
        self,
        protocol: Protocol = "dinov2",
        rates: list[float] | None = None,
        decays: list[float] | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        holdout: float = 0.1,
        labels_per_class: int | None = None,
        penalty: float | None = None,
        seed: int = 0,
        max_samples: int | None = None,
        every_n_epochs: int | None = None,
        image_key: str = "image",
        target_key: str = "target",
        name: str | None = None,
    ) -> None:
        super().__init__(
            every_n_epochs=every_n_epochs,
            max_samples=max_samples,
            image_key=image_key,
            target_key=target_key,
            name=name,
        )
        if protocol not in get_args(Protocol):
            raise ValueError(f"LinearProbe: protocol is {protocol!r}; give 'dinov2', 'simclr' or 'few_labels'.")
        for argument, values in (("rates", rates), ("decays", decays)):
            if values is not None and not values:
                raise ValueError(f"LinearProbe: {argument} is empty; give at least one number, or None.")
            for value in values or ():
                number("LinearProbe", argument, value, 0)
        for argument, count in (("epochs", epochs), ("batch_size", batch_size), ("labels_per_class", labels_per_class)):
            if count is not None:
                whole("LinearProbe", argument, count, 1)
        above_zero("LinearProbe", "holdout", holdout)
        number("LinearProbe", "holdout", holdout, 0, 0.99)
        if penalty is not None:
            above_zero("LinearProbe", "penalty", penalty)
        whole("LinearProbe", "seed", seed, 0)
        given: dict[str, Any] = {"rates": rates, "decays": decays, "epochs": epochs, "batch_size": batch_size}
        given |= {"labels_per_class": labels_per_class, "penalty": penalty}
        changed = {argument: value for argument, value in given.items() if value is not None}
        foreign = [argument for argument in changed if argument not in PROTOCOLS[protocol]]
        if foreign:
            raise ValueError(
                f"LinearProbe: {foreign[0]} is no setting of protocol {protocol!r}; leave it out, or change one of "
                f"{', '.join(PROTOCOLS[protocol])}."
            )
        self._named: Protocol = protocol
        self.rates, self.decays, self.epochs, self.batch_size = rates, decays, epochs, batch_size
        self.holdout, self.labels_per_class, self.penalty, self.seed = holdout, labels_per_class, penalty, seed
        self._used: dict[str, Any] = PROTOCOLS[protocol] | changed
        self._labels = 0  # few ones that there were at the last measurement

    @property
    def protocol(self) -> str:
        as_named = self._used == PROTOCOLS[self._named] and self.max_samples is None
        return self._named if as_named and self._named == "few_labels" else f"{self._named}*"

    @property
    def settings(self) -> Mapping[str, Any]:
        common = {**self._used, "seed": self.seed, "max_samples": self.max_samples, "augmented": False}
        if self._named == "few_labels":
            return {**common, "labels": self._labels, "standardised": True}
        return {**common, "holdout": self.holdout, "momentum": 0.9, "schedule": "cosine"}

    def measure(self, pl_module: LightningModule, images: Read, bank: Read | None) -> Mapping[str, float]:
        assert bank is not None and bank.targets is not None and images.targets is not None
        known, asked = bank.targets >= 0, images.targets >= 0
        features, labels = bank.features[known], bank.targets[known]
        queries, truth = images.features[asked], images.targets[asked]
        if not len(features) or not len(queries):
            return {}
        classes = int(torch.cat([labels, truth]).max()) + 1
        random = Generator().manual_seed(self.seed)
        # The run's precision is the network's affair.
        with torch.autocast(features.device.type, enabled=False):
            if self._named == "few_labels":
                head, told = self._few(features, labels, classes, random)
                queries = standardised(queries, features[told])
                numbers: dict[str, float] = {}
            else:
                head, numbers = self._best(features, labels, classes, random)
            return {"": float(head_scores(queries, truth, *head)[0])} | numbers

    def _few(
        self, features: Tensor, labels: Tensor, classes: int, random: Generator
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """The head of few labels, and the positions of these."""
        wanted = self._used["labels_per_class"]
        chosen = few_a_class(labels, wanted, random).to(features.device)
        some, own = features[chosen], labels[chosen]
        self._labels = len(chosen)
        present = own.bincount()
        if not self.rehearsing and int(present[present > 0].min()) < wanted:
            rank_zero_warn(
                f"LinearProbe: some class has fewer than labels_per_class={wanted} training images, so it is measured "
                f"with {self._labels} labels in all."
            )
        return logistic_regression(standardised(some, some), own, classes, self._used["penalty"]), chosen

    def _best(
        self, features: Tensor, labels: Tensor, classes: int, random: Generator
    ) -> tuple[tuple[Tensor, Tensor], dict[str, float]]:
        """The head that held-out features choose, trained on all, and what was chosen."""
        used = self._used
        grid = [(rate, decay) for rate in used["rates"] for decay in used["decays"]]
        start = torch.randn(features.shape[1], classes, generator=random, dtype=torch.float32)
        start = START * start.to(features.device)

        def trained(among: Tensor, heads: Sequence[tuple[float, float]]) -> tuple[Tensor, Tensor]:
            epochs = 1 if self.rehearsing else used["epochs"]
            size = min(used["batch_size"], len(among))
            batches = [among[it] for _ in range(epochs) for it in batches_of_an_epoch(len(among), size, random)]
            rates = [rate * used["batch_size"] / 256 for rate, _ in heads]
            return train_heads(features, labels, start, rates, [decay for _, decay in heads], batches)

        everyone = torch.arange(len(features))
        if len(grid) == 1:
            return trained(everyone, grid), {}
        kept, apart = held_out(labels, self.holdout, random)
        if not len(apart):
            kept = apart = everyone
        place = apart.to(features.device)
        shares, losses = (it.tolist() for it in head_scores(features[place], labels[place], *trained(kept, grid)))
        # Of few held-out images several heads get all: the surest of them.
        best = max(range(len(grid)), key=lambda it: (shares[it], -losses[it]))
        chosen = {"lr": grid[best][0], "held_out": shares[best]}
        if len(used["decays"]) > 1:
            chosen["decay"] = grid[best][1]
        return trained(everyone, grid[best : best + 1]), chosen

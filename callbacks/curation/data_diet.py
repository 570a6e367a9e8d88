"""Data diet: a few epochs tell which samples are hard, and the training goes on with these.

Paul, Ganguli and Dziugaite 2021, arXiv:2107.07075, sections 3 and 4; the scores stand in `scores.py`.
"""

from collections.abc import Sequence
from typing import Any, Literal, final

from torch import Tensor, nn

from ..hooks._checks import flag, number, whole
from ..hooks.training_order import TrainingOrder, Visit
from .scores import el2n, grand, hardest_samples, read_scores, write_scores

__all__ = ["DataDiet"]


@final
class DataDiet(TrainingOrder):
    """Scores every training sample after a few epochs, and trains from then on only on those of highest score.

    After `score_epoch` epochs the network is asked once for each training image, as evaluation sees it; scores are
    written to `report/data_diet.csv` in the run's folder. The paper means over several first weights: run some short
    trainings with other seeds and `keep_fraction=1`, and give their files to the real one as `score_files`, which then
    leaves samples out from its first epoch on. Batches, losses and validation stay untouched. A second fit of the same
    Trainer goes on with the scores of its first.

    Args:
        keep_fraction: Share of the samples that are trained on, above 0, at most 1; the paper's 0.5 on CIFAR-10. At 1
            samples are only scored, and the run is that of a plain one. Neutral: 1.
        score: "el2n", the norm of the error, which takes a forward pass, or "grand", the norm of the gradient, which
            takes a backward pass for each sample.
        score_epoch: Epochs after which samples are scored, at least 0; the paper's EL2N needs a few (10 of 200), GraNd
            tells at 0.
        score_files: Files of scores from other runs, whose mean counts, or one file; then nothing is scored, and
            samples are left out from the first epoch on.
        drop_top_fraction: Share of the samples of highest score that go first, as they may be wrongly labelled, 0 to
            below 1.
        last_layer_only: "grand" of that `nn.Linear` alone which `network` calls last.
        network: Path of the part of the module that makes logits `(B, K)` of images, as `network`; empty is the module
            itself.
        image_key: Key of the images where batches are mappings; elsewhere they come first.
        target_key: Key of the labels where batches are mappings; elsewhere they come second.
        name: Part of the state key, and the name of the file.

    Shape:
        Images `(B, C, H, W)`; logits `(B, K)` of two classes or more; labels int64 `(B,)`, or shares of classes
        `(B, K)` that sum to 1.

    Raises:
        ValueError: a setting outside its range; at set-up, if a file is none of scores, another callback chooses
            samples or there is no such part; before the first batch, if the loader does not tell its samples apart or,
            where some are left out, gives them more than once, files have other samples, or the first samples have no
            logits or no classes; when samples are scored, if others have none.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import DataDiet
        >>> diet = DataDiet(keep_fraction=0.5, score_epoch=10)
        >>> trainer = Trainer(max_epochs=200, callbacks=[diet], accelerator="cpu", logger=False)

    Reference: Paul et al. 2021, arXiv:2107.07075

    BibTeX:
        @inproceedings{paul2021diet,
          title = {Deep Learning on a Data Diet: Finding Important Examples Early in Training},
          author = {Paul, Mansheej and Ganguli, Surya and Dziugaite, Gintare Karolina},
          booktitle = {Advances in Neural Information Processing Systems},
          year = {2021},
          eprint = {2107.07075},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        With a `score_epoch` the training that scores is the one that goes on, with one score a sample; the paper trains
        anew, with scores averaged over ten networks, which `score_files` does.

    See also:
        `DynamicDataPruning`, which chooses anew in each epoch.
    """

    neutral = ({"keep_fraction": 1.0},)

    def __init__(
        self,
        keep_fraction: float = 0.5,
        score: Literal["el2n", "grand"] = "el2n",
        score_epoch: int = 10,
        score_files: Sequence[str] | str = (),
        drop_top_fraction: float = 0.0,
        last_layer_only: bool = False,
        network: str = "",
        image_key: str = "image",
        target_key: str = "target",
        name: str | None = None,
    ) -> None:
        super().__init__(network=network, image_key=image_key, target_key=target_key, name=name)
        number("DataDiet", "keep_fraction", keep_fraction, 0, 1)
        number("DataDiet", "drop_top_fraction", drop_top_fraction, 0, 1)
        flag("DataDiet", "last_layer_only", last_layer_only)
        whole("DataDiet", "score_epoch", score_epoch, 0)
        if score not in ("el2n", "grand"):
            raise ValueError(f"DataDiet: score is {score!r}; give 'el2n' or 'grand'.")
        if keep_fraction == 0 or keep_fraction + drop_top_fraction > 1:
            raise ValueError(
                f"DataDiet: keep_fraction={keep_fraction} and drop_top_fraction={drop_top_fraction} keep none of the "
                "samples, or more than are left; give a keep_fraction above 0 and at most 1 together."
            )
        self.keep_fraction, self.score, self.score_epoch = keep_fraction, score, score_epoch
        self.score_files = (score_files,) if isinstance(score_files, str) else tuple(score_files)
        self.drop_top_fraction = drop_top_fraction
        self.last_layer_only = last_layer_only
        # Of all samples, once they are known.
        self.found: Tensor | None = None

    @property
    def off(self) -> bool:
        # What is neutral to the training still scores.
        return False

    def ready(self) -> str | None:
        if self.found is None and self.score_files:
            try:
                self.found = read_scores(self.score_files)
            except ValueError as error:
                raise ValueError(f"DataDiet: {error}.") from None
        if self.score_files or self.max_epochs is None or self.score_epoch < self.max_epochs:
            return None
        return (
            f"DataDiet: score_epoch={self.score_epoch} comes after the last of {self.max_epochs} epochs, so nothing is "
            "scored; give a smaller score_epoch, or a longer training."
        )

    def begin(self) -> None:
        self.found = None

    def rehearse(self) -> None:
        if self.keep_fraction < 1:
            super().rehearse()
        soon = self.max_epochs is None or self.score_epoch < self.max_epochs
        if self.found is None and self.score_epoch > 0 and soon:
            self.scored(self._score, batches=1)

    def visits(self, epoch: int, samples: int) -> Visit | None:
        if self.found is None and epoch >= self.score_epoch:
            self.found = self.scored(self._score)
            if (file := self.report_file(f"{self.name or 'data_diet'}.csv")) is not None:
                write_scores(file, self.found)
        if self.found is not None and len(self.found) != samples:
            raise ValueError(
                f"DataDiet: there are scores of {len(self.found)} samples, and the training set has {samples}; give "
                "score_files of this training set."
            )
        # With all kept and none dropped the loader is left alone.
        if self.found is None or self.keep_fraction == 1:
            return None
        return Visit(hardest_samples(self.found, self.keep_fraction, self.drop_top_fraction))

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"found": self.found}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.found = state["found"]
        if self.keep_fraction == 1:
            # Resumed as a run that leaves nothing out, also inside an epoch that did.
            self._planned = None

    def _score(self, network: nn.Module, images: Any, targets: Any) -> Tensor:
        logits = self.answers(network, images, targets)
        if self.score == "el2n":
            return el2n(logits, targets)
        try:
            return grand(network, images, targets, self.last_layer_only)
        except ValueError as error:
            raise ValueError(f"DataDiet: {error}.") from None

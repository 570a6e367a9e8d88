"""Collapse alarm: says that a learner gives all images the same features, or features of few directions."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, final, get_args

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from ..hooks._checks import number
from ..hooks.evaluation import Stage
from ..hooks.probing import Probing, Read
from .representation import feature_spread, rank_me

__all__ = ["CollapseAlarm"]

Action = Literal["warn", "stop", "error"]


@final
class CollapseAlarm(Probing):
    """Warns, or ends the fit, when the features of validation images collapse.

    Two numbers are logged after each measured validation and compared with a threshold: `probe/collapse_spread`, the
    mean standard deviation of a feature on the sphere times the root of D, which is 1 at most and 0 where all images
    have the same features; and `probe/collapse_rank`, RankMe as a share of what it could be, (rank - 1) / (min(N, D) -
    1), which is 0 where one direction is left. Features that are not finite are an alarm, too. The sanity check before
    the fit is not judged, nor is a `validate` or `test`, for these have nothing to stop: they warn.

    Args:
        least_spread: Below it the alarm is raised, 0 to 1; 0 leaves the spread out.
        least_rank: Likewise of the rank's share, 0 to 1.
        action: `warn` says so; `stop` ends the fit after the epoch, with its checkpoints; `error` raises at once.
        every_n_epochs: While fitting, validations of every n-th epoch are measured, from the first on, and the last, >=
            0; `validate` and `test` always. Neutral: 0, which measures nothing.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, which are not read, if batches are mappings.
        name: Part of the state key, and what the numbers are called instead of `collapse`.

    Shape:
        Features `(B, D)` of the module's `features(images)`.

    Raises:
        ValueError: from the constructor, for a setting out of range; at set-up, if the module has no `features`.
        RuntimeError: with `action="error"`, at the end of a validation whose features collapsed.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import CollapseAlarm
        >>> trainer = Trainer(callbacks=[CollapseAlarm(action="stop")], accelerator="cpu", logger=False)

    Reference: Chen and He 2021, arXiv:2011.10566

    BibTeX:
        @inproceedings{chen2021simsiam,
          title = {Exploring Simple Siamese Representation Learning},
          author = {Chen, Xinlei and He, Kaiming},
          booktitle = {Conference on Computer Vision and Pattern Recognition},
          year = {2021},
          eprint = {2011.10566},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        It watches the deviation of the head's outputs (section 4.1, Figure 2), here it is that of the backbone's
        features; the rank and both thresholds are ours.

    See also:
        `Representation`, which logs more and judges nothing.
    """

    title: ClassVar[str] = "collapse"
    protocol = "collapse"
    uses_labels = False

    def __init__(
        self,
        least_spread: float = 0.05,
        least_rank: float = 0.01,
        action: Action = "warn",
        every_n_epochs: int = 1,
        image_key: str = "image",
        target_key: str = "target",
        name: str | None = None,
    ) -> None:
        super().__init__(every_n_epochs=every_n_epochs, image_key=image_key, target_key=target_key, name=name)
        number("CollapseAlarm", "least_spread", least_spread, 0, 1)
        number("CollapseAlarm", "least_rank", least_rank, 0, 1)
        if action not in get_args(Action):
            raise ValueError(f"CollapseAlarm: action is {action!r}; give 'warn', 'stop' or 'error'.")
        self.least_spread, self.least_rank = least_spread, least_rank
        self.action: Action = action

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"least_spread": self.least_spread, "least_rank": self.least_rank, "action": self.action}

    def measure(self, pl_module: LightningModule, images: Read, bank: Read | None) -> Mapping[str, float]:
        possible = min(images.features.shape)
        if possible < 2:
            # One image or one feature is of one direction, whatever it was trained to be.
            return {}
        rank = max(0.0, rank_me(images.features) - 1) / (possible - 1)
        return {"spread": float(feature_spread(images.features).mean()), "rank": rank}

    def concluded(self, trainer: Trainer, numbers: Mapping[str, float] | None, stage: Stage) -> None:
        if numbers is None:
            found = ["some are not finite"]
        else:
            least = {"spread": self.least_spread, "rank": self.least_rank}
            found = [
                f"their {key} is {value:.3g}, below {least[key]:g}"
                for key, value in numbers.items()
                if value < least[key]
            ]
        if not found:
            return
        sentence = (
            f"CollapseAlarm: after step {trainer.global_step} the features of the {stage} images have collapsed "
            f"({' and '.join(found)}); lower the learning rate, or look for what keeps branches apart in the loss."
        )
        fits = trainer.state.fn == "fit"
        if fits and self.action == "error":
            raise RuntimeError(sentence)
        rank_zero_warn(sentence + (" The fit ends here." if fits and self.action == "stop" else ""))
        if fits and self.action == "stop":
            trainer.should_stop = True

"""RandomMix: for each batch one of several mixers, drawn with given probabilities, and none from some epoch on.

Liu, Shen, Zhao and Nie 2022, arXiv:2205.08728; before it timm's `Mixup`, whose switch between MixUp and CutMix is the
case of two. Symbols: w_k `weights[k]`, K mixers, of which k is drawn with probability w_k / (w_1 + ... + w_K).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor

from ..hooks._checks import number, whole
from ..hooks.targets import Mix, Targets

__all__ = ["RandomMix", "RandomMixDraw", "drawn_mixer"]

# What a mixer's own settings must be, since nobody asks for them, and where to put them instead.
_LEFT_ALONE = {
    "prob": (1.0, "say with weights= how often it is drawn, or with prob= of RandomMix how many batches are mixed"),
    "targets": ("loss", "give it to RandomMix"),
    "num_classes": (None, "give it to RandomMix"),
    "seed": (0, "give it to RandomMix"),
    "image_key": ("image", "give it to RandomMix"),
    "target_key": ("target", "give it to RandomMix"),
    "name": (None, "give it to RandomMix"),
}


def drawn_mixer(weights: Sequence[float], random: np.random.Generator) -> int:
    """Which of several is drawn, with probabilities in proportion to `weights`; a weight of 0 never is.

    Args:
        weights: At least 0, not all 0.
        random: Where the one number that decides comes from.
    """
    shares = np.asarray(weights, dtype=np.float64)
    return int(random.choice(len(shares), p=shares / shares.sum()))


@dataclass(frozen=True)
class RandomMixDraw:
    """All random choices that RandomMix makes for a batch.

    Args:
        mixer: Which of the mixers, counted from 0.
        draw: What that one has drawn.
    """

    mixer: int
    draw: Any


@final
class RandomMix(Targets):
    """Mixes each batch by one of several mixers, drawn with given probabilities, up to some epoch.

    Of a mixer its `draw` and `mix` are used. Which one is drawn is decided on a stream beside that of its draws, so a
    batch is mixed exactly as the one that was drawn would have mixed it alone, with the seed and `prob` given here;
    RandomMix of one mixer is that mixer. Labels, losses, metrics, evaluations and a batch of one sample are as with
    each of the mixers.

    Args:
        mixers: Callbacks of the family, at least one, with default `prob`, `targets`, `seed`, keys and name: what those
            would say is said here.
        weights: How often each mixer is drawn, in proportion; >= 0, not all 0. None draws all alike. timm's
            `switch_prob` p is `[1 - p, p]` for MixUp and CutMix. At 0 a mixer is never drawn.
        prob: Probability that a batch is mixed, 0 to 1. Neutral: 0.
        off_epoch: Epoch, counted from 0, from which on batches are left as they are; None for never. As timm's
            `mixup_off_epoch`, but that timm's 0 means never and here 0 is from the first on. Neutral: 0.
        targets: "loss" mixes the loss; "soft" puts probabilities `(B, num_classes)` in the place of the labels,
            also where a batch is not mixed and from `off_epoch` on; "sampled" keeps a label with probability lambda and
            takes the partner's otherwise.
        num_classes: Classes of `targets="soft"`; None asks the module, then the datamodule.
        seed: Seed of the callback's own random stream, >= 0.
        image_key: Key of the images where batches are mappings; elsewhere they come first.
        target_key: Key of the labels where batches are mappings; elsewhere they come second.
        name: Part of the state key.

    Shape:
        images `(B, C, H, W)` of a type that each mixer takes; labels int64 `(B,)`, or any whose loss torch computes.

    Raises:
        ValueError: a setting outside its range; a mixer that has a setting of its own which nobody would ask for, is
            switched off by one, or needs more than images and its draw; another callback mixes the loss; the number of
            classes is unknown; whatever a mixer refuses.

    Example:
        >>> import numpy as np
        >>> from lightning_vision.callbacks import CutMix, MixUp
        >>> mix = RandomMix([MixUp(alpha=0.8), CutMix()], weights=[1, 3])
        >>> [drawn_mixer(mix.weights, np.random.default_rng(n)) for n in range(6)]
        [1, 1, 1, 0, 1, 1]

    Reference: Liu et al. 2022, arXiv:2205.08728

    BibTeX:
        @article{liu2022randommix,
          title = {{RandomMix}: A Mixed Sample Data Augmentation Method with Multiple Mixed Modes},
          author = {Liu, Xiaoliang and Shen, Furao and Zhao, Jian and Nie, Changhai},
          journal = {arXiv preprint arXiv:2205.08728},
          year = {2022},
        }

    Differs from the paper:
        Its four mixers are MixUp, CutMix, ResizeMix and Fmix; here they are any of the house's, each with settings of
        its own. `off_epoch`, `prob`, "soft" and "sampled" are additions.

    See also:
        `MixUp`, `CutMix`, `AttentiveCutMix`; `timm.data.Mixup`, which switches between the first two.
    """

    neutral = ({"prob": 0.0}, {"off_epoch": 0})
    stands_alone = "it draws among mixers itself"

    def __init__(
        self,
        mixers: Sequence[Targets],
        weights: Sequence[float] | None = None,
        prob: float = 1.0,
        off_epoch: int | None = None,
        targets: Literal["loss", "soft", "sampled"] = "loss",
        num_classes: int | None = None,
        seed: int = 0,
        image_key: str = "image",
        target_key: str = "target",
        name: str | None = None,
    ) -> None:
        super().__init__(
            prob=prob,
            targets=targets,
            num_classes=num_classes,
            seed=seed,
            image_key=image_key,
            target_key=target_key,
            name=name,
        )
        if off_epoch is not None:
            whole("RandomMix", "off_epoch", off_epoch, 0)
        if not isinstance(mixers, Sequence) or not mixers:
            raise ValueError(f"RandomMix: mixers is {mixers!r}; give a list of at least one, as [MixUp(), CutMix()].")
        if weights is not None and (not isinstance(weights, Sequence) or isinstance(weights, str)):
            raise ValueError(f"RandomMix: weights is {weights!r}; give a list of a number for each mixer, or None.")
        weights = [1.0] * len(mixers) if weights is None else list(weights)
        if len(weights) != len(mixers):
            raise ValueError(
                f"RandomMix: there are {len(weights)} weights of {len(mixers)} mixers; give each mixer one, or none."
            )
        for weight in weights:
            number("RandomMix", "one of weights", weight, 0)
        if not any(weights):
            raise ValueError("RandomMix: all weights are 0, so no mixer is ever drawn; to switch it off, set prob=0.")
        self.mixers, self.weights, self.off_epoch = tuple(mixers), weights, off_epoch
        for mixer, weight in zip(self.mixers, weights, strict=True):
            _refuse(mixer, weight)
            # One store of memory, whoever mixes.
            mixer.blocks = self.blocks

    def helpers(self) -> Sequence[Targets]:
        return [mixer for mixer, weight in zip(self.mixers, self.weights, strict=True) if weight]

    def mixes_in(self, epoch: int) -> bool:
        return self.off_epoch is None or epoch < self.off_epoch

    def draw(self, shape: torch.Size, random: np.random.Generator) -> RandomMixDraw:
        # From a stream beside, so that the mixer draws what it would have drawn alone.
        (beside,) = random.spawn(1)
        mixer = drawn_mixer(self.weights, beside)
        return RandomMixDraw(mixer, self.mixers[mixer].draw(shape, random))

    def mix(self, images: Tensor, draw: RandomMixDraw) -> Mix:
        try:
            return self.mixers[draw.mixer].mix(images, draw.draw)
        except ValueError as error:
            raise ValueError(f"RandomMix: one of its mixers refuses: {error}") from error


def _refuse(mixer: Targets, weight: float) -> None:
    kind = type(mixer).__name__
    if not isinstance(mixer, Targets):
        raise ValueError(f"RandomMix: {mixer!r} mixes no images and labels; give callbacks such as MixUp and CutMix.")
    if mixer.stands_alone:
        raise ValueError(f"RandomMix: {kind} cannot be one of several, for {mixer.stands_alone}; use it by itself.")
    if type(mixer).change is not Targets.change or type(mixer).setup is not Targets.setup:
        raise ValueError(
            f"RandomMix: {kind} changes more of a batch than its images, so it cannot be one of several; use it by "
            "itself."
        )
    for setting, (default, place) in _LEFT_ALONE.items():
        if (value := getattr(mixer, setting)) != default:
            raise ValueError(f"RandomMix: {setting}={value!r} of {kind} would be ignored; {place}.")
    if weight and mixer.off:
        raise ValueError(
            f"RandomMix: {kind} is switched off by its own setting, so it mixes nothing; leave it out, or set prob= of "
            "RandomMix for batches that are not to be mixed."
        )

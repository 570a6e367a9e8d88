"""How far made images are from real ones: Frechet and kernel distance, precision, recall, density and coverage.

Heusel et al. 2017, arXiv:1706.08500; Binkowski et al. 2018, arXiv:1801.01401; Kynkaanniemi et al. 2019,
arXiv:1904.06991; Naeem et al. 2020, arXiv:2002.09797. Letters: N real and M made images of D features, k neighbours.
"""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from ..hooks._checks import flag, whole
from ..hooks.scoring import Scoring
from .frechet import frechet_distance_of_features
from .kernel import kernel_distance
from .manifold import manifold_scores

__all__ = ["GenerationScores", "score_features"]


@torch.no_grad()
def score_features(
    real: Tensor,
    made: Tensor,
    k: int = 5,
    kid_subsets: int = 100,
    kid_subset_size: int = 1000,
    seed: int = 0,
    allow_few: bool = False,
) -> dict[str, float]:
    """`fid`, `kid`, `precision`, `recall`, `density` and `coverage` of two sets of features, computed in float64.

    Args:
        real: Of real images, `(N, D)`, finite.
        made: Of made ones, `(M, D)`, finite.
        k: Neighbours of `manifold_scores`, at least 1.
        kid_subsets: See `kernel_distance`.
        kid_subset_size: Likewise.
        seed: Of its draws.
        allow_few: Whether there may be too few images, at least 2: covariances of D images or fewer have no full rank,
            and then the distance says more about their number than about the images. With k images or fewer the last
            four are left out.

    Raises:
        ValueError: shapes do not fit, or there are too few images.

    Example:
        >>> import torch
        >>> from lightning_vision.callbacks import score_features
        >>> real = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
        >>> scores = score_features(real, real + 3.0)
        >>> round(scores["fid"], 3), scores["coverage"]
        (72.0, 0.0)
    """
    if real.ndim != 2 or made.ndim != 2 or real.shape[1] != made.shape[1]:
        raise ValueError(f"features are {tuple(real.shape)} and {tuple(made.shape)}; give (N, D) and (M, D)")
    if not allow_few and (reason := _too_few(len(real), len(made), real.shape[1], k)):
        raise ValueError(f"{reason}; give more images, or allow_few=True")
    if real.device.type == "mps":  # which has no float64
        real, made = real.cpu(), made.cpu()
    # Distances do not change, and fewer digits cancel.
    middle = real.double().mean(0)
    centred, others = real.double() - middle, made.double() - middle
    found = {
        "fid": float(frechet_distance_of_features(centred, others)),
        "kid": kernel_distance(real.double(), made.double(), kid_subset_size, kid_subsets, seed)[0],
    }
    if min(len(real), len(made)) > k:
        found |= vars(manifold_scores(centred, others, k))
    return found


def _too_few(real: int, made: int, width: int, k: int) -> str:
    """What so many images are too few for, as part of a sentence; empty if they are enough."""
    least = min(real, made)
    there = f"there are {real} real and {made} made images"
    if least <= k:
        return f"{there}, and with {k} neighbours each needs {k + 1}"
    if least <= width:
        return f"{there} and {width} features, whose covariance needs {width + 1} images"
    return ""


@final
class GenerationScores(Scoring):
    """Logs how far the images that the module makes are from those of a validation or test.

    Made are the same numbers of images each time, `sample(count)` of the module, with averaged weights where there are
    some, and with the labels of the real ones where the module makes images on demand. Both go through one network of
    features, and what is logged is `val/fid`, `val/kid`, `val/precision`, `val/recall`, `val/density` and
    `val/coverage`, in tests `test/...`. Numbers compare only where features, images and their number are the same: a
    printed line says which they were. Training sees nothing of it.

    Args:
        samples: Images that are made, >= 2.
        features: None compares pixels; the path of a checkpoint (`*.ckpt`) of a classifier, its features before the
            last layer, or of a learner, its `features`; `inception`, the network of published values; or a network
            `(B, C, H, W)` to `(B, D)`.
        weights: File of `inception`, torch-fidelity's; nothing is downloaded.
        real: Real images at most, the first ones, >= 2; None takes as many as are made.
        statistics: File (`*.safetensors`) with the features of real images: written where there is none, read where
            there is, then also by tests, and refused where other features are asked for. None reads images each time.
        neighbours: k of precision, recall, density and coverage, >= 1.
        kid_subsets: Random subsets of images over which the kernel distance is averaged, >= 1.
        kid_subset_size: Images in each, at most those there are, >= 2.
        batch_size: Images that a process makes at a time, >= 1.
        allow_few: Whether there may be as many images as features, or fewer, and as many as neighbours.
        seed: Fixes the images, and the subsets, at least 0.
        every_n_epochs: While fitting, validations of every n-th epoch are scored, from the first on, >= 0; `validate`
            and `test` always. Neutral: 0, which makes nothing.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, if batches are mappings; in other batches they come second. There may be none.
        name: Part of the state key, and of the numbers' names: `val/NAME/fid`.

    Shape:
        Real and made images float `(B, C, H, W)`, normalised alike; labels int `(B,)`.

    Raises:
        ValueError: from the constructor, for a setting out of range; at set-up, if the module has no `sample`; before
            the first step, if features cannot be had, or `statistics` holds other ones; in the first validation, sanity
            check included, if there are too few images, or made and real ones have two sizes.
        ModuleNotFoundError: `inception` needs `pip install "lightning_vision[fid]"`.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import GenerationScores
        >>> trainer = Trainer(callbacks=[GenerationScores(samples=2000)], accelerator="cpu", logger=False)

    Reference: Heusel et al. 2017, arXiv:1706.08500; Binkowski et al. 2018, arXiv:1801.01401; Kynkaanniemi et al. 2019,
        arXiv:1904.06991; Naeem et al. 2020, arXiv:2002.09797

    BibTeX:
        @inproceedings{heusel2017gans,
          title = {{GANs} Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium},
          author = {Heusel, Martin and Ramsauer, Hubert and Unterthiner, Thomas and Nessler, Bernhard and Hochreiter,
            Sepp},
          booktitle = {Advances in Neural Information Processing Systems},
          year = {2017},
          eprint = {1706.08500},
          archivePrefix = {arXiv},
        }
        @inproceedings{binkowski2018demystifying,
          title = {Demystifying {MMD} {GANs}},
          author = {Bi{\\'n}kowski, Miko{\\l}aj and Sutherland, Danica J. and Arbel, Michael and Gretton, Arthur},
          booktitle = {International Conference on Learning Representations},
          year = {2018},
          eprint = {1801.01401},
          archivePrefix = {arXiv},
        }
        @inproceedings{kynkaanniemi2019improved,
          title = {Improved Precision and Recall Metric for Assessing Generative Models},
          author = {Kynk{\\"a}{\\"a}nniemi, Tuomas and Karras, Tero and Laine, Samuli and Lehtinen, Jaakko and Aila,
            Timo},
          booktitle = {Advances in Neural Information Processing Systems},
          year = {2019},
          eprint = {1904.06991},
          archivePrefix = {arXiv},
        }
        @inproceedings{naeem2020reliable,
          title = {Reliable Fidelity and Diversity Metrics for Generative Models},
          author = {Naeem, Muhammad Ferjad and Oh, Seong Joon and Uh, Youngjung and Choi, Yunjey and Yoo, Jaejun},
          booktitle = {International Conference on Machine Learning},
          year = {2020},
          eprint = {2002.09797},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        Features are those of a network that the user names, not always Inception's; only with `inception` and as many
        images are numbers comparable with published ones.

    See also:
        `score_features`, the same numbers of any features; `SampleSheet`, which shows the images.
    """

    def __init__(
        self,
        samples: int = 1000,
        features: nn.Module | str | None = None,
        weights: str | None = None,
        real: int | None = None,
        statistics: str | None = None,
        neighbours: int = 5,
        kid_subsets: int = 100,
        kid_subset_size: int = 1000,
        batch_size: int = 64,
        allow_few: bool = False,
        seed: int = 0,
        every_n_epochs: int = 1,
        image_key: str = "image",
        target_key: str = "target",
        name: str | None = None,
    ) -> None:
        super().__init__(
            samples=samples,
            real=real,
            features=features,
            weights=weights,
            statistics=statistics,
            batch_size=batch_size,
            image_key=image_key,
            target_key=target_key,
            seed=seed,
            every_n_epochs=every_n_epochs,
            name=name,
        )
        whole("GenerationScores", "neighbours", neighbours, 1)
        whole("GenerationScores", "kid_subsets", kid_subsets, 1)
        whole("GenerationScores", "kid_subset_size", kid_subset_size, 2)
        flag("GenerationScores", "allow_few", allow_few)
        self.neighbours, self.allow_few = neighbours, allow_few
        self.kid_subsets, self.kid_subset_size = kid_subsets, kid_subset_size

    def refuse(self, real: int, made: int, width: int) -> None:
        if not self.allow_few and (reason := _too_few(real, made, width, self.neighbours)):
            raise ValueError(
                f"GenerationScores: {reason}; give more images with samples= and real=, or say with allow_few=True "
                "that numbers are compared within this run alone."
            )

    def score(self, real: Tensor, made: Tensor) -> Mapping[str, float]:
        return score_features(
            real, made, self.neighbours, self.kid_subsets, self.kid_subset_size, self.seed, allow_few=True
        )

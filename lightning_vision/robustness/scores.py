"""What is left of a score on corrupted images.

Michaelis et al. 2019, arXiv:1907.07484, Eq. 1 and 2: with P_(c,s) the score under corruption c at severity s,

    mPC = 1/N_c sum_c 1/N_s sum_s P_(c,s),    rPC = mPC / P_clean.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean

__all__ = ["CorruptionScores", "RobustnessScores", "robustness_scores"]


@dataclass(frozen=True)
class CorruptionScores:
    """The scores of one corruption.

    Args:
        by_severity: Severity and score.
        mean: Over the severities.
        relative: `mean` over the clean score; None where that is not above 0.
    """

    by_severity: dict[int, float]
    mean: float
    relative: float | None


@dataclass(frozen=True)
class RobustnessScores:
    """The scores of a model on clean and corrupted images.

    Args:
        clean: On the images as they are.
        mpc: Mean performance under corruption, over the corruptions' means.
        rpc: Relative performance under corruption, `mpc / clean`; None where `clean` is not above 0.
        corruptions: Each corruption's scores, in the order given.
    """

    clean: float
    mpc: float
    rpc: float | None
    corruptions: dict[str, CorruptionScores]


def robustness_scores(clean: float, corrupted: Mapping[tuple[str, int], float]) -> RobustnessScores:
    """Mean and relative performance under corruption, mPC and rPC, from the scores of every corruption and severity.

    Means are exact before they are rounded, so equal scores have an `rpc` of exactly 1.

    Args:
        clean: Score on the images as they are; larger is better, such as average precision or accuracy.
        corrupted: Score of each (corruption, severity).

    Raises:
        ValueError: there are no scores, or a corruption lacks a severity that another one has.

    Example:
        >>> scores = robustness_scores(0.8, {("fog", 1): 0.6, ("fog", 3): 0.4, ("snow", 1): 0.4, ("snow", 3): 0.2})
        >>> scores.mpc, scores.rpc
        (0.4, 0.5)
        >>> scores.corruptions["fog"].mean
        0.5

    Reference: Michaelis et al. 2019, arXiv:1907.07484

    BibTeX:
        @article{michaelis2019benchmarking,
          title = {Benchmarking Robustness in Object Detection: Autonomous Driving when Winter is Coming},
          author = {Michaelis, Claudio and Mitzkus, Benjamin and Geirhos, Robert and Rusak, Evgenia and
            Bringmann, Oliver and Ecker, Alexander S. and Bethge, Matthias and Brendel, Wieland},
          journal = {arXiv preprint arXiv:1907.07484},
          year = {2019},
          eprint = {1907.07484},
          archivePrefix = {arXiv},
        }
    """
    names = list(dict.fromkeys(name for name, _ in corrupted))
    severities = sorted({severity for _, severity in corrupted})
    if not names:
        raise ValueError("robustness_scores: there are no scores of corrupted images to average")
    if missing := [(name, level) for name in names for level in severities if (name, level) not in corrupted]:
        name, severity = missing[0]
        raise ValueError(f"robustness_scores: {name} has no score at severity {severity}, which another corruption has")
    found = {}
    for name in names:
        by_severity = {severity: float(corrupted[name, severity]) for severity in severities}
        average = mean(by_severity.values())
        found[name] = CorruptionScores(by_severity, average, _over(average, clean))
    mpc = mean(scores.mean for scores in found.values())
    return RobustnessScores(float(clean), mpc, _over(mpc, clean), found)


def _over(score: float, clean: float) -> float | None:
    return score / clean if clean > 0 else None

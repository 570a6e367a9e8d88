"""Model soups: the mean of the weights of several fine-tunings of one network, Wortsman et al. 2022.

The uniform soup is the mean over all ingredients. The greedy soup (Recipe 1) tries them from the best to the worst and
keeps one if the held-out score of the mean does not fall. Both have the cost of one network.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ._states import refuse_other_architectures

__all__ = ["GreedySoup", "greedy_soup", "uniform_soup"]


@dataclass(frozen=True)
class GreedySoup:
    """What `greedy_soup` found: the averaged weights, which ingredients are in them, and their score.

    Args:
        state_dict: The mean of the kept ingredients.
        kept: Their positions in the list that was given, from the best to the worst.
        score: What the mean scored.
        tried: Every ingredient's position with the score of the soup that had it in, in the order of the trials.
    """

    state_dict: dict[str, Tensor]
    kept: list[int]
    score: float
    tried: list[tuple[int, float]]


def uniform_soup(
    state_dicts: Sequence[Mapping[str, Tensor]],
    weights: Sequence[float] | None = None,
    labels: Sequence[str] | None = None,
) -> dict[str, Tensor]:
    """The mean of the weights of several networks, tensor by tensor and in any order the same.

    Means are taken in float64 and rounded once to the tensors' own type, so half precision neither overflows nor
    drifts. Integers and booleans have no mean: the largest is taken, which is the longest run's count of batches.
    Values in which all agree stay as they are bit for bit, also infinities.

    Args:
        state_dicts: Of one architecture, at least one.
        weights: Each one's weight, 0 or more, not all 0; only their ratios count. Equal if not given.
        labels: What errors call each of them, such as its file; its number if not given.

    Raises:
        ValueError: there is none, names or shapes differ, or a weight is missing, negative or not finite.

    Example:
        >>> import torch
        >>> from lightning_vision.merging import uniform_soup
        >>> uniform_soup([{"bias": torch.tensor([0.0, 4.0])}, {"bias": torch.tensor([1.0, 0.0])}])
        {'bias': tensor([0.5000, 2.0000])}

    Reference: Wortsman et al. 2022, arXiv:2203.05482

    BibTeX:
        @inproceedings{wortsman2022soups,
          title = {Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
            inference time},
          author = {Wortsman, Mitchell and Ilharco, Gabriel and Gadre, Samir Yitzhak and Roelofs, Rebecca and
            Gontijo-Lopes, Raphael and Morcos, Ari S. and Namkoong, Hongseok and Farhadi, Ali and Carmon, Yair and
            Kornblith, Simon and Schmidt, Ludwig},
          booktitle = {International Conference on Machine Learning},
          year = {2022},
          eprint = {2203.05482},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        Weights that are not equal are not the paper's learned soup: nothing is optimised.

    See also:
        `SWA`, the mean along one training.
    """
    if not state_dicts:
        raise ValueError("uniform_soup: there is no state dict; give at least one.")
    labels = labels or [f"state dict {number}" for number in range(1, len(state_dicts) + 1)]
    refuse_other_architectures(state_dicts, labels)
    weights = [1.0] * len(state_dicts) if weights is None else list(weights)
    if len(weights) != len(state_dicts) or not all(0 <= it < math.inf for it in weights) or not any(weights):
        raise ValueError(
            f"uniform_soup: weights are {weights} for {len(state_dicts)} state dicts; give each a finite weight of "
            "0 or more, not all of them 0."
        )
    chosen = [(state, weight) for state, weight in zip(state_dicts, weights, strict=True) if weight]
    shares = [weight / math.fsum(weights) for _, weight in chosen]
    return {name: _mean([state[name] for state, _ in chosen], shares) for name in chosen[0][0]}


def greedy_soup(
    state_dicts: Sequence[Mapping[str, Tensor]],
    score: Callable[[dict[str, Tensor]], float],
    scores: Sequence[float] | None = None,
    higher_is_better: bool = True,
    labels: Sequence[str] | None = None,
) -> GreedySoup:
    """The mean of those networks that do not make the mean's held-out score worse, tried from the best to the worst.

    Recipe 1 of the paper: the best ingredient alone is the first soup, so its score is the least that comes out. An
    ingredient whose score is not a number is tried last and never kept.

    Args:
        state_dicts: Of one architecture, at least one.
        score: Held-out score of a state dict, such as validation accuracy.
        scores: What each scores alone, if that is known; `score` is asked if not.
        higher_is_better: False for a loss.
        labels: What errors call each of them, such as its file; its number if not given.

    Raises:
        ValueError: there is none, names or shapes differ, the numbers of scores and state dicts differ, or no score
            is a number.

    Example:
        >>> import torch
        >>> from lightning_vision.merging import greedy_soup
        >>> states = [{"x": torch.tensor([3.0])}, {"x": torch.tensor([-2.0])}, {"x": torch.tensor([9.0])}]
        >>> greedy_soup(states, lambda state: -abs(float(state["x"]))).kept
        [1, 0]

    Reference: Wortsman et al. 2022, arXiv:2203.05482

    Differs from the paper:
        Ties between ingredients go to the one that was given first.
    """
    uniform_soup(state_dicts[:1])
    labels = labels or [f"state dict {number}" for number in range(1, len(state_dicts) + 1)]
    refuse_other_architectures(state_dicts, labels)
    alone = [score(dict(state)) for state in state_dicts] if scores is None else list(scores)
    if len(alone) != len(state_dicts):
        raise ValueError(
            f"greedy_soup: there are {len(alone)} scores for {len(state_dicts)} state dicts; give one each."
        )
    sign = 1.0 if higher_is_better else -1.0
    merits = [-math.inf if math.isnan(it) else sign * it for it in alone]
    order = sorted(range(len(alone)), key=lambda it: -merits[it])
    best = order[0]
    if math.isnan(alone[best]):
        raise ValueError("greedy_soup: no state dict has a score that is a number; look at the trainings first.")
    kept, current, tried = [best], alone[best], [(best, alone[best])]
    soup = uniform_soup([state_dicts[best]])
    for position in order[1:]:
        candidate = uniform_soup([state_dicts[it] for it in (*kept, position)])
        found = score(candidate)
        tried.append((position, found))
        if not math.isnan(alone[position]) and sign * found >= sign * current:
            kept, current, soup = [*kept, position], found, candidate
    return GreedySoup(soup, kept, current, tried)


def _mean(values: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    first = values[0]
    if not isinstance(first, Tensor):
        return first
    if first.is_complex():
        return torch.view_as_complex(_mean([torch.view_as_real(it) for it in values], shares))
    stacked = torch.stack([it.detach() for it in values])
    if not first.is_floating_point():
        return stacked.amax(dim=0)
    wide = stacked.double()
    least = wide.amin(dim=0)
    column = torch.tensor(shares, dtype=torch.float64, device=wide.device).view(-1, *[1] * first.ndim)
    # Sorted, so that the rounding of the sum does not depend on the order of the ingredients.
    mean = least + ((wide - least) * column).sort(dim=0).values.sum(dim=0)
    return torch.where((wide == least).all(dim=0), stacked[0], mean.to(first.dtype))

"""Searching AutoAugment policies: the space they are drawn from, and controllers that learn where good ones lie.

A controller is asked for a policy and told its score, larger is better, again and again; what a score costs is not its
business. Cubuk et al. 2019, arXiv:1805.09501, section 3.
"""

from abc import ABC, abstractmethod
from collections import deque
from typing import Any, final

import numpy as np

from .operations import OPERATIONS

__all__ = [
    "EvolutionController",
    "PolicyController",
    "RandomController",
    "ReinforceController",
    "mutate_policy",
    "random_policy",
]

Policy = list[list[list[Any]]]

# Operation, probability in tenths and bin of the magnitude; doing nothing is a probability of 0.
CHOICES = (tuple(name for name in OPERATIONS if name != "Identity"), tuple(range(11)), tuple(range(10)))
STEPS = 2


def random_policy(random: np.random.Generator, sub_policies: int = 5) -> Policy:
    """A policy drawn uniformly: each step one of the operations, of 11 probabilities and of 10 bins of magnitude.

    Args:
        random: Where the draws come from.
        sub_policies: How many the policy has, of two steps each.
    """
    return _policy([[int(random.integers(len(choices))) for choices in CHOICES] for _ in range(sub_policies * STEPS)])


def mutate_policy(policy: Policy, random: np.random.Generator) -> Policy:
    """The policy with one operation, probability or magnitude of one step drawn anew, always another one.

    Args:
        policy: Sub-policies of steps [operation, probability, bin]; left alone.
        random: Where the draws come from.
    """
    rows = _rows(policy)
    row, field = int(random.integers(len(rows))), int(random.integers(len(CHOICES)))
    size = len(CHOICES[field])
    rows[row][field] = (rows[row][field] + int(random.integers(1, size))) % size
    return _policy(rows)


class PolicyController(ABC):
    """Proposes policies and learns from their scores.

    Args:
        random: Where all draws come from.
        sub_policies: How many a policy has.
    """

    def __init__(self, random: np.random.Generator, sub_policies: int = 5) -> None:
        self.random, self.sub_policies = random, sub_policies

    @abstractmethod
    def ask(self) -> Policy:
        """The policy to score next."""

    @abstractmethod
    def tell(self, policy: Policy, score: float) -> None:
        """Learn that `policy` scored `score`; larger is better."""


@final
class RandomController(PolicyController):
    """Draws every policy uniformly, whatever was told; what the other controllers have to beat."""

    def ask(self) -> Policy:
        return random_policy(self.random, self.sub_policies)

    def tell(self, policy: Policy, score: float) -> None:
        pass  # by definition


@final
class EvolutionController(PolicyController):
    """Mutates the best of a few recent policies; the oldest one dies.

    Args:
        random: Where all draws come from.
        sub_policies: How many a policy has.
        population: Policies alive; so many are drawn uniformly at first.
        tournament: How many compete to be the parent.

    Reference: Real, Aggarwal, Huang and Le 2019, arXiv:1802.01548
    """

    def __init__(
        self, random: np.random.Generator, sub_policies: int = 5, population: int = 10, tournament: int = 4
    ) -> None:
        super().__init__(random, sub_policies)
        self.alive: deque[tuple[float, Policy]] = deque(maxlen=population)
        self.tournament = tournament

    def ask(self) -> Policy:
        if len(self.alive) < (self.alive.maxlen or 0):
            return random_policy(self.random, self.sub_policies)
        competing = self.random.choice(len(self.alive), min(self.tournament, len(self.alive)), replace=False)
        _, parent = max((self.alive[int(number)] for number in competing), key=lambda scored: scored[0])
        return mutate_policy(parent, self.random)

    def tell(self, policy: Policy, score: float) -> None:
        self.alive.append((score, policy))


@final
class ReinforceController(PolicyController):
    """Raises the probability of the choices of policies that score above the mean so far, by REINFORCE.

    Each operation, probability and magnitude of each step has a softmax distribution of its own; the paper's controller
    is one recurrent network. A step changes logits by `rate * advantage * (chosen - p)`, with the advantage in standard
    deviations of the scores so far.

    Args:
        random: Where all draws come from.
        sub_policies: How many a policy has.
        rate: Step size.

    Reference: Williams 1992, doi:10.1007/BF00992696
    """

    def __init__(self, random: np.random.Generator, sub_policies: int = 5, rate: float = 0.3) -> None:
        super().__init__(random, sub_policies)
        self.rate = rate
        self.logits = [[np.zeros(len(choices)) for choices in CHOICES] for _ in range(sub_policies * STEPS)]
        self.scores: list[float] = []

    def ask(self) -> Policy:
        return _policy([[int(self.random.choice(len(it), p=_softmax(it))) for it in row] for row in self.logits])

    def tell(self, policy: Policy, score: float) -> None:
        if len(self.scores) > 1 and (spread := float(np.std(self.scores))):
            advantage = (score - float(np.mean(self.scores))) / spread
            for row, chosen in zip(self.logits, _rows(policy), strict=True):
                for logits, choice in zip(row, chosen, strict=True):
                    probabilities = _softmax(logits)
                    logits -= self.rate * advantage * probabilities
                    logits[choice] += self.rate * advantage
        self.scores.append(score)


def _policy(rows: list[list[int]]) -> Policy:
    """Sub-policies of two steps from rows of positions in `CHOICES`."""
    names, tenths, bins = CHOICES
    steps = [[names[name], tenths[tenth] / 10, bins[bin_]] for name, tenth, bin_ in rows]
    return [steps[start : start + STEPS] for start in range(0, len(steps), STEPS)]


def _rows(policy: Policy) -> list[list[int]]:
    """The inverse of `_policy`."""
    names, _, bins = CHOICES
    return [
        [names.index(name), round(10 * probability), bins.index(bin_)]
        for sub in policy
        for name, probability, bin_ in sub
    ]


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted: np.ndarray = np.exp(logits - logits.max())
    return shifted / shifted.sum()

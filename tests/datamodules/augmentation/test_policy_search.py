"""The space of policies and the three controllers, on scores that cost nothing; the command trains for them."""

from collections import Counter

import numpy as np
import pytest

from lightning_vision.datamodules.augmentation.auto_augment import AutoAugment
from lightning_vision.datamodules.augmentation.operations import OPERATIONS
from lightning_vision.datamodules.augmentation.policy_search import (
    EvolutionController,
    PolicyController,
    RandomController,
    ReinforceController,
    mutate_policy,
    random_policy,
)


def rotations(policy: list[list[list[object]]]) -> int:
    return sum(step[0] == "Rotate" for sub in policy for step in sub)


def last_scores(controller: PolicyController, trials: int = 150) -> float:
    """Mean score of the last fifth of the trials, where a policy scores its rotations."""
    scores = []
    for _ in range(trials):
        policy = controller.ask()
        scores.append(rotations(policy))
        controller.tell(policy, scores[-1])
    return float(np.mean(scores[-trials // 5 :]))


def test_a_random_policy_covers_the_space_evenly() -> None:
    random = np.random.default_rng(0)
    steps = [step for _ in range(2000) for sub in random_policy(random, 3) for step in sub]
    kinds, probabilities, bins = (Counter(step[field] for step in steps) for field in range(3))

    assert set(kinds) == set(OPERATIONS) - {"Identity"}
    assert set(probabilities) == {tenth / 10 for tenth in range(11)}
    assert set(bins) == set(range(10))
    for counts in (kinds, probabilities, bins):
        expected = len(steps) / len(counts)
        assert max(abs(count - expected) for count in counts.values()) < 4 * expected**0.5


def test_a_policy_of_the_space_is_one_that_auto_augment_takes() -> None:
    policy = random_policy(np.random.default_rng(1), 5)

    assert [list(map(list, sub)) for sub in AutoAugment(policy).policy] == policy
    assert [len(sub) for sub in policy] == [2] * 5


def test_a_mutation_changes_one_thing_and_leaves_its_parent_alone() -> None:
    random = np.random.default_rng(0)
    parent = random_policy(random, 2)
    before = [[list(step) for step in sub] for sub in parent]
    for _ in range(200):
        child = mutate_policy(parent, random)
        flat = [
            (old, new)
            for olds, news in zip(parent, child, strict=True)
            for left, right in zip(olds, news, strict=True)
            for old, new in zip(left, right, strict=True)
        ]
        assert sum(old != new for old, new in flat) == 1

    assert parent == before


@pytest.mark.parametrize("kind", [RandomController, EvolutionController, ReinforceController])
def test_equal_seeds_propose_equal_policies(kind: type[PolicyController]) -> None:
    left, right, other = (kind(np.random.default_rng(seed), 2) for seed in (0, 0, 1))

    assert last_scores(left, 40) == last_scores(right, 40)
    assert left.ask() == right.ask() != other.ask()


@pytest.mark.parametrize("kind", [EvolutionController, ReinforceController])
def test_a_controller_that_learns_finds_what_scores_far_more_often_than_chance(kind: type[PolicyController]) -> None:
    learnt = [last_scores(kind(np.random.default_rng(seed), 3)) for seed in range(5)]
    chance = [last_scores(RandomController(np.random.default_rng(seed), 3)) for seed in range(5)]

    assert min(learnt) > max(chance)
    assert np.mean(learnt) > 4 * np.mean(chance)


def test_the_oldest_policy_dies_whatever_its_score() -> None:
    controller = EvolutionController(np.random.default_rng(0), 1, population=3)
    policies = [controller.ask() for _ in range(4)]
    for score, policy in zip((9.0, 1.0, 2.0, 3.0), policies, strict=True):
        controller.tell(policy, score)

    assert [score for score, _ in controller.alive] == [1.0, 2.0, 3.0]


def test_a_reinforce_step_by_hand() -> None:
    controller = ReinforceController(np.random.default_rng(0), 1, rate=0.5)
    policy = [[["Rotate", 0.3, 7], ["Invert", 0.0, 0]]]
    for score in (1.0, 3.0, 4.0):  # mean 2 and deviation 1 of the first two, so an advantage of 2
        controller.tell(policy, score)
    kinds = [name for name in OPERATIONS if name != "Identity"]
    expected = np.full(len(kinds), -1 / len(kinds))
    expected[kinds.index("Rotate")] += 1

    np.testing.assert_allclose(controller.logits[0][0], expected, rtol=1e-12)
    np.testing.assert_allclose(controller.logits[0][1], np.eye(11)[3] - 1 / 11, rtol=1e-12, atol=1e-15)

"""Draws that belong to a moment of training, so that a resumed run and a replay of the batch draw alike."""

import numpy as np

__all__ = ["seed_of"]


def seed_of(*moment: int) -> int:
    """A generator's seed of numbers that tell a moment apart, as a seed, the rank, the epoch and the batch.

    >>> seed_of(0, 0, 3) == seed_of(0, 0, 3), seed_of(0, 0, 3) == seed_of(0, 3, 0)
    (True, False)
    """
    (words,) = np.random.SeedSequence(moment).generate_state(1, np.uint64)
    # Generators take signed numbers.
    return int(words) >> 1

"""Streams of random numbers that follow from whole numbers alone."""

import numpy as np
import torch
from torch import Generator

__all__ = ["seeded"]


def seeded(*entropy: int, device: torch.device | str = "cpu") -> Generator:
    """A generator whose numbers follow from whole numbers of at least 0; others give unrelated ones, but for
    one pair in 2^32, which is all that torch's streams on the CPU tell apart.
    """
    word = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
    # torch reads seeds as signed.
    return torch.Generator(device).manual_seed(word >> 1)

"""Numbers that change while a fit goes on."""

import math

__all__ = ["cosine_ramp"]


def cosine_ramp(start: float, end: float, step: int, total: int) -> float:
    """From `start` at step 0 to `end` at step `total` along half a cosine; `end` beyond.

    >>> [round(cosine_ramp(0.9, 1.0, step, 4), 3) for step in range(5)]
    [0.9, 0.915, 0.95, 0.985, 1.0]
    """
    done = min(step / total, 1.0) if total > 0 else 1.0
    return end + (start - end) * (math.cos(math.pi * done) + 1) / 2

"""Random numbers that are functions of their keys, so that no other sample of a batch moves them.

SplitMix64 (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195) read as a counter-based generator: the keys give
its seed, the number of the sample how far it has run. int64 arithmetic that wraps: every device gives the same bits.
"""

from enum import IntEnum

from torch import Tensor

__all__ = ["Stream", "draw_bits", "draw_integers", "draw_uniform"]


class Stream(IntEnum):
    """What a draw is for; draws of different streams are independent."""

    ORDER = 0
    SPLIT = 1
    ROW = 2
    COLUMN = 3
    FLIP = 4
    SIZE = 5
    CONTRAST = 6
    NOISE = 7
    CROP = 8
    SAMPLE = 9
    AUGMENT = 10
    BALANCE = 11
    ENTRY = 12
    SCENE = 13
    LABELLED = 14


def draw_bits(counter: Tensor, *keys: int) -> Tensor:
    """64 random bits for each number in `counter`, int64 of its shape, a function of the number and the keys."""
    state = 0
    for key in keys:
        state = _mix((state + _STEP + key) % _WRAP)
    bits = (counter + 1) * _signed(_STEP) + _signed(state)
    bits = (bits ^ _shift(bits, 30)) * _signed(_FIRST)
    bits = (bits ^ _shift(bits, 27)) * _signed(_SECOND)
    return bits ^ _shift(bits, 31)


def draw_uniform(counter: Tensor, *keys: int) -> Tensor:
    """Float32 in [0, 1), multiples of 2^-24, one for each number in `counter`."""
    return _shift(draw_bits(counter, *keys), 40).float() * 2.0**-24


def draw_integers(high: int, counter: Tensor, *keys: int) -> Tensor:
    """int64 in 0 .. high - 1, one for each number in `counter`; `high` is at most 2^31."""
    return _shift(_shift(draw_bits(counter, *keys), 32) * high, 32)


_WRAP = 2**64
_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _mix(state: int) -> int:
    state = (state ^ (state >> 30)) * _FIRST % _WRAP
    state = (state ^ (state >> 27)) * _SECOND % _WRAP
    return state ^ (state >> 31)


def _signed(word: int) -> int:
    return word - _WRAP if word >= _WRAP // 2 else word


def _shift(bits: Tensor, by: int) -> Tensor:
    # torch shifts int64 arithmetically; the mask clears the copies of the sign.
    return (bits >> by) & ((1 << (64 - by)) - 1)

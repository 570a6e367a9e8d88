"""Draws are functions of their keys, uniform, and independent across samples, epochs and purposes."""

import pytest
import torch

from lightning_vision.datamodules.common._draws import Stream, draw_bits, draw_integers, draw_uniform

N = 20_000
# Chi-square with 19 degrees of freedom exceeds 43.8 once in a thousand times; keys are fixed, so never or always.
CHI_SQUARE_19 = 43.8


def chi_square(values: torch.Tensor, bins: int) -> float:
    counts = values.bincount(minlength=bins).double()
    expected = len(values) / bins
    return ((counts - expected) ** 2 / expected).sum().item()


def test_without_keys_it_is_the_published_generator_from_seed_zero() -> None:
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]

    assert published == [word % 2**64 for word in draw_bits(torch.arange(3)).tolist()]


@pytest.mark.parametrize("keys", [(0,), (1, 2), (7, 300, 3), (-1, 0)])
def test_integers_and_uniforms_fill_their_range_evenly(keys: tuple[int, ...]) -> None:
    uniform = draw_uniform(torch.arange(N), *keys)
    integers = draw_integers(20, torch.arange(N), *keys)

    assert 0 <= uniform.min() < uniform.max() < 1
    assert chi_square((uniform * 20).long(), 20) < CHI_SQUARE_19
    assert (integers.min(), integers.max()) == (0, 19)
    assert chi_square(integers, 20) < CHI_SQUARE_19


def correlation(first: torch.Tensor, second: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack([first, second]))[0, 1].abs().item()


def test_neighbouring_samples_epochs_seeds_and_streams_are_uncorrelated() -> None:
    index, bound = torch.arange(N), 4 / N**0.5
    base = draw_uniform(index, 0, 0, Stream.ROW)

    assert correlation(base[1:], base[:-1]) < bound
    assert correlation(base, draw_uniform(index, 0, 1, Stream.ROW)) < bound
    assert correlation(base, draw_uniform(index, 1, 0, Stream.ROW)) < bound
    assert correlation(base, draw_uniform(index, 0, 0, Stream.COLUMN)) < bound


def test_a_shifted_epoch_is_not_a_shifted_sample() -> None:
    first, second = draw_bits(torch.arange(N), 0, 1), draw_bits(torch.arange(N), 0, 2)

    assert not torch.isin(first, second).any()


def test_keys_of_the_same_sum_in_another_order_or_number_are_other_keys() -> None:
    words = {tuple(draw_bits(torch.arange(3), *keys).tolist()) for keys in [(0, 1), (1, 0), (0, 0, 1), (1,), (0,), ()]}

    assert len(words) == 6


def test_a_draw_does_not_depend_on_the_rest_of_the_batch() -> None:
    alone = [draw_bits(torch.tensor([number]), 3, 4).item() for number in (9, 2, 50)]

    assert alone == draw_bits(torch.tensor([9, 2, 50]), 3, 4).tolist()


def test_global_random_state_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    state, first = torch.get_rng_state(), draw_bits(torch.arange(5), 8)
    torch.manual_seed(2)

    assert torch.equal(first, draw_bits(torch.arange(5), 8))
    assert torch.equal(torch.Generator().manual_seed(2).get_state(), torch.get_rng_state())
    assert not torch.equal(state, torch.get_rng_state())

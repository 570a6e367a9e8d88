"""Orders and batches: nothing repeated, nothing lost, and as many batches on every rank."""

import itertools

import pytest
import torch

from lightning_vision.datamodules.common._order import EpochOrder, FixedOrder, batch_bounds

GRID = list(itertools.product([*range(1, 40), 97, 359, 1000], [1, 2, 3, 4, 7, 8], [1, 2, 3, 5, 16, 64]))


def shards(samples: int, world: int, batch: int) -> list[list[list[int]]]:
    """Batches of sample numbers, by rank."""
    return [
        [list(range(rank, samples, world))[start:stop] for start, stop in batch_bounds(samples, batch, rank, world)]
        for rank in range(world)
    ]


def test_no_sample_is_repeated_or_lost_and_all_ranks_have_equally_many_batches() -> None:
    for samples, world, batch in GRID:
        if samples >= world:
            found = shards(samples, world, batch)
            sizes = [len(part) for rank in found for part in rank]

            assert list(range(samples)) == sorted(itertools.chain(*itertools.chain(*found)))
            assert len({len(rank) for rank in found}) == 1
            assert min(sizes) >= 1
            assert max(sizes) <= max(batch, 2)


def test_one_process_gets_full_batches_and_a_last_one_with_the_rest() -> None:
    assert batch_bounds(10, 4) == [(0, 4), (4, 8), (8, 10)]
    assert batch_bounds(8, 4) == [(0, 4), (4, 8)]


def test_a_rank_that_would_run_out_makes_its_last_batches_smaller() -> None:
    assert batch_bounds(9, 2, rank=0, world_size=2) == [(0, 2), (2, 4), (4, 5)]
    assert batch_bounds(9, 2, rank=1, world_size=2) == [(0, 2), (2, 3), (3, 4)]


def test_with_batches_of_one_a_rank_may_have_to_take_two() -> None:
    assert batch_bounds(3, 1, rank=0, world_size=2) == [(0, 2)]
    assert batch_bounds(3, 1, rank=1, world_size=2) == [(0, 1)]


def test_drop_last_keeps_full_batches_only() -> None:
    for samples, world, batch in GRID:
        if samples // world >= batch:
            bounds = [batch_bounds(samples, batch, rank, world, drop_last=True) for rank in range(world)]

            assert {samples // (world * batch)} == {len(rank) for rank in bounds}
            assert {batch} == {stop - start for rank in bounds for start, stop in rank}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((1, 4, 0, 2, False), "1 images are not enough for 2 processes; use fewer devices"),
        ((7, 4, 0, 2, True), "7 images are not enough for 2 batches of 4; use a smaller batch_size or drop_last=False"),
    ],
)
def test_too_few_samples_are_refused(settings: tuple[int, int, int, int, bool], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        batch_bounds(*settings)


def test_the_order_is_a_permutation_that_seed_and_epoch_fix() -> None:
    order = EpochOrder(100, seed=3)
    first = order.positions()
    order.set_epoch(1)
    second = order.positions()
    again = EpochOrder(100, seed=3)

    assert list(range(100)) == first.sort().values.tolist()
    assert not torch.equal(first, second)
    assert torch.equal(first, again.positions())
    assert not torch.equal(first, EpochOrder(100, seed=4).positions())


def test_each_sample_comes_first_equally_often() -> None:
    order, first = EpochOrder(10, seed=0), []
    for epoch in range(2000):
        order.set_epoch(epoch)
        first.append(order.positions()[0])
    counts = torch.stack(first).bincount(minlength=10).double()

    assert ((counts - 200) ** 2 / 200).sum() < 27.9  # chi-square, 9 degrees of freedom, one in a thousand


def test_a_fixed_order_never_changes() -> None:
    order = FixedOrder(5)
    order.set_epoch(7)

    assert [0, 1, 2, 3, 4] == order.positions().tolist() == list(order)
    assert order.epoch == 7

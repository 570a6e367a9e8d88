"""Orders and batches: nothing repeated, nothing lost, and as many batches on every rank."""

import itertools

import pytest
import torch

from lightning_vision.datamodules.common._order import BalancedOrder, EpochOrder, FixedOrder, batch_bounds

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


@pytest.mark.parametrize("sizes", [[90, 9, 1], [5, 5], [1, 1, 1, 200], [7, 0, 30], [12]])
@pytest.mark.parametrize("seed", [0, 5])
def test_a_balanced_epoch_holds_as_many_of_every_class_and_of_every_sample_in_it(sizes: list[int], seed: int) -> None:
    targets = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    targets = targets[torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))]
    order = BalancedOrder(targets, seed)
    for epoch in range(3):
        order.set_epoch(epoch)
        positions = order.positions()
        visits = (positions % len(targets)).bincount(minlength=len(targets))
        counts = torch.zeros(len(sizes)).index_add(0, targets, visits.float())[torch.tensor(sizes) > 0]

        assert len(targets) == len(positions) == len(positions.unique())
        assert counts.max() - counts.min() <= 1
        for label in targets.unique():
            own = visits[targets == label]
            assert own.max() - own.min() <= 1


def test_a_balanced_order_is_a_function_of_seed_and_epoch() -> None:
    targets = torch.tensor([0] * 30 + [1] * 3 + [2] * 4)

    def orders(seed: int) -> list[list[int]]:
        order = BalancedOrder(targets, seed)
        return [(order.set_epoch(epoch), order.positions().tolist())[1] for epoch in (2, 0, 1, 2)]

    assert orders(1) == orders(1)
    assert orders(1)[0] == orders(1)[3]
    assert orders(1)[0] != orders(1)[1]
    assert orders(1)[0] != orders(2)[0]


def test_classes_and_samples_take_turns_in_what_is_left_over() -> None:
    """37 places for 3 classes: one gets 13; of class 0 another 12 or 13 of 30 samples each epoch."""
    targets = torch.tensor([0] * 30 + [1] * 3 + [2] * 4)
    order = BalancedOrder(targets)
    most, seen = torch.zeros(3), torch.zeros(37)
    for epoch in range(300):
        order.set_epoch(epoch)
        sample = order.positions() % 37
        most[targets[sample].bincount().argmax()] += 1
        seen += sample.bincount(minlength=37)

    # 100 +- 8.2 and, for class 0, 123.3 +- 8.5 or so: four deviations.
    assert (most - 100).abs().max() < 33
    assert (seen[:30] - 37 * 100 / 30).abs().max() < 34


def test_a_balanced_epoch_is_mixed() -> None:
    targets = torch.tensor([0] * 900 + [1] * 100)
    early = targets[BalancedOrder(targets).positions()[:200] % 1000]

    assert abs(early.float().mean() - 0.5) < 4 * 0.5 / 200**0.5


def test_a_sample_of_several_classes_comes_for_each_of_them() -> None:
    """Half of eight places go to class 0, which sample 0 alone shows, half to class 3, of samples 0 to 3."""
    owner, label = torch.tensor([0, 0, 1, 2, 3]), torch.tensor([0, 3, 3, 3, 3])
    order = BalancedOrder(label, 5, owner, samples=8)
    for epoch in range(3):
        order.set_epoch(epoch)
        positions = order.positions()

        assert sorted((positions % 8).tolist()) == [0] * 5 + [1, 2, 3]
        assert sorted(positions.tolist()) == [0, 1, 2, 3, 8, 16, 24, 32]

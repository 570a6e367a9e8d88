"""The split: disjoint, complete, stratified to within one sample, and the same everywhere."""

import subprocess
import sys

import pytest
import torch

from lightning_vision.datamodules.common._split import iterative_split, stratified_split

SHARES = (0.7, 0.1, 0.2)


def unbalanced(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(torch.tensor([0.5, 0.3, 0.15, 0.05]), 517, replacement=True, generator=generator)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shares", [SHARES, (0.9, 0.1), (1.0,), (0.34, 0.33, 0.33)])
def test_parts_are_disjoint_complete_and_stratified_to_within_one_sample(seed: int, shares: tuple[float, ...]) -> None:
    targets = unbalanced(seed)
    parts = stratified_split(targets, shares, seed)

    assert list(range(517)) == sorted(torch.cat(parts).tolist())
    for share, part in zip(shares, parts, strict=True):
        exact = targets.bincount() * share
        assert (targets[part].bincount(minlength=4) - exact).abs().max() <= 1


def test_small_classes_fill_the_earlier_parts_first() -> None:
    parts = stratified_split(torch.tensor([0, 1, 1, 1]), (0.8, 0.1, 0.1), seed=0)

    assert [len(part) for part in parts] == [3, 1, 0]
    assert {0, 1} == set(torch.tensor([0, 1, 1, 1])[parts[0]].tolist())


def test_another_seed_is_another_split_with_the_same_sizes() -> None:
    targets = unbalanced(0)
    first, second = (stratified_split(targets, SHARES, seed) for seed in (0, 1))

    assert [len(part) for part in first] == [len(part) for part in second]
    assert not torch.equal(first[2], second[2])


def test_more_files_do_not_reshuffle_the_old_ones() -> None:
    targets, keys = torch.zeros(101, dtype=torch.int64), torch.arange(101) * 7919
    before = set(stratified_split(targets[:100], (0.8, 0.2), 0, keys[:100])[1].tolist())
    after = set(stratified_split(targets, (0.8, 0.2), 0, keys)[1].tolist())

    assert len(before - after) <= 1


def test_no_samples_give_empty_parts() -> None:
    assert [len(part) for part in stratified_split(torch.zeros(0, dtype=torch.int64), (0.5, 0.5), 0)] == [0, 0]


def test_another_process_with_other_global_seeds_draws_the_same_split() -> None:
    script = (
        "import torch; torch.manual_seed(123); torch.rand(7);"
        "from lightning_vision.datamodules.common._split import stratified_split;"
        "print(stratified_split(torch.arange(60) % 3, (0.7, 0.1, 0.2), 5)[2].tolist())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert str(stratified_split(torch.arange(60) % 3, SHARES, 5)[2].tolist()) == done.stdout.strip()


def several(seed: int) -> torch.Tensor:
    """400 samples of five labels that apply to 1% to 50% of them; some have none."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(400, 5, generator=generator) < torch.tensor([0.01, 0.05, 0.1, 0.25, 0.5])).float()


def deviations(targets: torch.Tensor, parts: list[torch.Tensor]) -> torch.Tensor:
    shares = torch.tensor(SHARES)[:, None]
    return (torch.stack([targets[part].sum(0) for part in parts]) - shares * targets.sum(0)).abs()


@pytest.mark.parametrize("seed", range(5))
def test_with_several_labels_parts_are_disjoint_complete_and_near_the_shares(seed: int) -> None:
    targets = several(seed)
    parts = iterative_split(targets, SHARES, seed)
    chance = torch.randperm(400, generator=torch.Generator().manual_seed(seed)).split([280, 40, 80])
    found, drawn = deviations(targets, parts), deviations(targets, list(chance))

    assert list(range(400)) == sorted(torch.cat(parts).tolist())
    assert found[:, 0].max() < 1
    assert 3 * found.sum() < drawn.sum()


def test_the_rarest_label_is_dealt_first_to_the_part_that_lacks_it_most() -> None:
    # Label 1 stands on samples 0 and 1 only: one each. Then parts have one label 0 each, and 2 and 3 are dealt alike.
    targets = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    first, second = iterative_split(targets, (0.6, 0.4), 3)

    assert [len(first), len(second)] == [3, 2]
    assert targets[first].sum(0).tolist() == targets[second].sum(0).tolist() == [2.0, 1.0]
    assert 4 in first


def test_keys_decide_where_samples_with_several_labels_go() -> None:
    targets, keys = several(0), torch.arange(400) * 7919 % 1000
    turned = torch.arange(400).flip(0)
    parts = iterative_split(targets, SHARES, 0, keys)
    again = iterative_split(targets[turned], SHARES, 0, keys[turned])

    assert [set(part.tolist()) for part in parts] == [set(turned[part].tolist()) for part in again]
    assert [set(part.tolist()) for part in parts] != [
        set(part.tolist()) for part in iterative_split(targets, SHARES, 1)
    ]

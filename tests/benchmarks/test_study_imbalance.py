"""The study of imbalance runs, has all its arms, and trains on the tail that its page promises."""

import re

import pytest

from support import ROOT


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


def test_the_study_writes_a_table_of_all_arms() -> None:
    from benchmarks.study_imbalance import ARMS, blocks

    made = blocks(quick=True)
    rows = re.findall(r"^\| (\w.*?) \| ([\d.]+) \|", made["study_imbalance"], re.MULTILINE)

    assert list(made) == ["study_imbalance"]
    assert [name for name, _ in rows] == [arm.name for arm in ARMS]
    assert len({score for _, score in rows}) > 1


def test_the_long_tail_is_the_pages_and_another_one_with_another_seed() -> None:
    from benchmarks.study_imbalance import LongTailDigits
    from lightning_vision.datamodules import Digits

    tails = [LongTailDigits(seed=seed) for seed in range(5)]
    counts = [list(tail.class_counts["train"].values()) for tail in tails]
    rare = {tail.label(rank) for tail in tails for rank in (7, 8, 9)}
    everything = Digits()
    everything.setup()
    known = {image.numpy().tobytes() for image in everything.train_set.images}

    assert counts[0] == [100, 65, 42, 27, 18, 11, 7, 5, 3, 2]
    assert counts[1] == [3, 2, 100, 65, 42, 27, 18, 11, 7, 5]
    assert rare == set(range(10))
    assert {image.numpy().tobytes() for image in tails[3].train_set.images} <= known
    assert all(tail.class_counts["test"] == everything.class_counts["test"] for tail in tails)

"""The study of fine-tuning runs, has all its arms, and trains and scores on the digits that its page promises."""

import re

import pytest
import torch

from support import ROOT


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


def test_the_study_writes_two_tables_of_all_arms() -> None:
    from benchmarks.study_finetuning import ARMS, blocks

    made = blocks(quick=True)
    rows = re.findall(r"^\| (\w.*?) \| ([\d.]+) \|", made["study_finetuning"], re.MULTILINE)

    assert list(made) == ["study_finetuning"]
    assert [name for name, _ in rows] == [arm.name for arm in ARMS] * 2
    assert len({score for _, score in rows}) > 2


def test_pretraining_and_fine_tuning_share_no_digit_and_moved_ones_are_the_same_moved() -> None:
    from benchmarks.study_finetuning import SHOTS, SomeDigits
    from lightning_vision.datamodules import Digits

    source, few, moved = (SomeDigits(few=it > 0, moved=it > 1, seed=3) for it in range(3))
    every = Digits()
    for datamodule in (source, few, moved, every):
        datamodule.setup()
    images, plain = moved.test_set.images, few.test_set.images

    assert source.class_counts["train"] == {name: every.class_counts["train"][name] for name in "01234"}
    assert few.class_counts["train"] == dict.fromkeys("56789", SHOTS)
    assert few.class_counts["test"] == {name: every.class_counts["test"][name] for name in "56789"}
    assert torch.equal(images[: len(plain), ..., 1:], plain[..., :-1])
    assert torch.equal(images[-len(plain) :, :, :-1], plain[:, :, 1:])
    assert int(images[: len(plain), ..., 0].sum()) == int(images[-len(plain) :, :, -1].sum()) == 0

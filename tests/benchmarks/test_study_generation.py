"""The judge of made digits tells real ones from others, by each of its measures; the study has a row for each run."""

import re
from typing import Any

import pytest
import torch

from lightning_vision import ImageClassifier
from support import ROOT


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Any:
    """It has learned nothing: features of an untrained network, too, tell digits from what is none."""
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.study_generation import Judge

    torch.manual_seed(0)
    return Judge(ImageClassifier("resnet8_cifar", 10, in_channels=1))


def test_the_other_half_of_the_real_digits_is_one_half_away(judge: Any) -> None:
    first, second = judge.halves(0)
    found = judge.verdict(judge.images[second], judge.targets[second])

    assert (len(first), len(second)) == (898, 899)
    assert sorted(torch.cat([first, second]).tolist()) == list(range(1797))
    assert (judge.targets[first].bincount() - judge.targets[second].bincount()).abs().max() <= 1
    assert found.distance == pytest.approx(1, abs=0.3)
    assert found.variance == pytest.approx(1, abs=0.05)


def test_digits_learned_by_heart_are_noticed(judge: Any) -> None:
    from lightning_vision.datamodules.digits import split_digits

    train, _, test = split_digits(judge.targets, 0)

    assert judge.verdict(judge.images[train][:400], None).near == 1
    assert judge.verdict(judge.images[test], None).near == pytest.approx(0.05, abs=0.01)


def test_classes_of_one_digit_each_have_no_variance(judge: Any) -> None:
    ones = [(judge.targets == number).nonzero()[0, 0] for number in range(10)]
    labels = torch.arange(10).repeat(20)
    found = judge.verdict(judge.images[torch.stack(ones)][labels], labels)

    assert found.variance == 0
    assert found.distance > 5


def test_noise_is_far_away(judge: Any) -> None:
    noise = torch.randint(256, (400, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = judge.verdict(noise, torch.zeros(400, dtype=torch.int64))

    assert found.distance > 20
    assert found.near == 0


def test_the_study_has_a_row_for_each_run_and_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import study_generation, study_generators

    tables = [*study_generation.blocks(quick=True).values(), *study_generators.blocks(quick=True).values()]

    assert [re.findall(r"^\| `(\w+)` \| [\d.]+ \| \d+ \| \d+ \| (\d) \|", it, re.MULTILINE) for it in tables] == [
        [("flow_digits", "0")],
        [("vae_digits", "0")],
    ]

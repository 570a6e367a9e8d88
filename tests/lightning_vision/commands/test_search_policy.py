"""The search for an AutoAugment policy, as a user runs it."""

import ast
import csv
from math import comb
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_vision import main
from lightning_vision.commands.search_policy import CONTROLLERS
from lightning_vision.datamodules.augmentation.auto_augment import read_policy
from lightning_vision.datamodules.augmentation.operations import OPERATIONS
from lightning_vision.datamodules.augmentation.policy_search import PolicyController

CONFIG = ["search_policy", "--config", "classification/digits", "--data", "support.command_toys.TiltedDigits"]
CONFIG += ["--data.batch_size", "128", "--trainer.accelerator", "cpu"]
SHORT = ["--budget", "3", "--proxy_epochs", "1", "--sub_policies", "1", "--trainer.limit_train_batches", "2"]


def search(root: Path, *flags: str) -> dict[str, Any]:
    return main([*CONFIG, "--trainer.default_root_dir", str(root), *flags]).output


def proposed(found: dict[str, Any]) -> list[list[list[list[Any]]]]:
    return [ast.literal_eval(row["policy"]) for row in csv.DictReader(Path(found["trials"]).open())]


def test_a_search_writes_the_best_policies_joined_and_a_row_a_trial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = search(tmp_path, *SHORT, "--keep", "2", "--monitor", "val/loss", "--mode", "min")
    assert f"train with it  --data.augment {found['policy']}" in capsys.readouterr().out
    policies, scores = proposed(found), found["scores"]
    best = sorted(range(3), key=lambda trial: scores[trial])[:2]

    assert [[list(step) for step in sub] for sub in read_policy(found["policy"])] == [
        sub for trial in best for sub in policies[trial]
    ]
    assert len(set(scores)) > 1
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"policy.yaml", "search.csv"}


class Idle(PolicyController):
    """Proposes to do nothing."""

    def ask(self) -> list[list[list[Any]]]:
        return [[["Invert", 0.0, 0]]]

    def tell(self, policy: list[list[list[Any]]], score: float) -> None:
        pass


def test_a_search_takes_a_score_that_is_no_number_for_the_worst(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[float] = []

    class Told(Idle):
        def ask(self) -> list[list[list[Any]]]:
            # Inverting everything makes the toy below diverge; every second policy does it.
            return [[["Invert", float(len(told) % 2 == 0), None]]]

        def tell(self, policy: list[list[list[Any]]], score: float) -> None:
            told.append(score)

    monkeypatch.setitem(CONTROLLERS, "random", Told)
    flags = ["--model", "support.command_toys.Touchy", "--monitor", "val/loss", "--mode", "min", "--keep", "2"]
    found = search(tmp_path, *SHORT, *flags, "--controller", "random")

    assert [score == score for score in found["scores"]] == [False, True, False]
    assert told == [-max(found["without"], worst) for worst in (found["without"], *[found["scores"][1]] * 2)]
    assert [step[1] for sub in read_policy(found["policy"]) for step in sub] == [0.0]
    assert "val/loss nan\n" in capsys.readouterr().out


def test_a_search_ends_where_nothing_is_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Inverts(Idle):
        def ask(self) -> list[list[list[Any]]]:
            return [[["Invert", 1.0, None]]]

    monkeypatch.setitem(CONTROLLERS, "random", Inverts)
    flags = [*SHORT, "--model", "support.command_toys.Touchy", "--monitor", "val/loss", "--controller", "random"]
    with pytest.raises(ValueError, match=r"val/loss was finite under none of 3 policies; lower --model.optimizer.lr$"):
        search(tmp_path, *flags)
    with pytest.raises(ValueError, match=r"val/loss is nan without a policy, so there is nothing to improve; lower"):
        search(tmp_path, *flags, "--model.limit", "0", "--overwrite")


def test_trials_make_no_reports(tmp_path: Path) -> None:
    search(tmp_path, *SHORT, "--callbacks.report", "ClassificationReport", "--trainer.callbacks+=LearningRateMonitor")

    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"policy.yaml", "search.csv"}


def test_equal_searches_find_the_same_and_a_policy_that_does_nothing_scores_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, right = (search(tmp_path, *SHORT, "--output", str(tmp_path / name)) for name in "ab")
    monkeypatch.setitem(CONTROLLERS, "random", Idle)
    nothing = search(tmp_path, *SHORT, "--controller", "random", "--output", str(tmp_path / "c"))

    assert left["scores"] == right["scores"]
    assert proposed(left) == proposed(right)
    assert nothing["scores"] == [nothing["without"]] * 3


def test_a_found_policy_trains_behind_a_named_one(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("policy:\n  - [[Invert, 1.0, null]]\n")
    digits = ["--config", "classification/digits", "--trainer.default_root_dir", str(tmp_path / "runs")]
    short = ["--trainer.limit_train_batches", "2", "--trainer.max_epochs", "1", "--data.shift", "0"]
    losses = {
        augment: main(["fit", *digits, *short, "--data.augment", augment]).metrics["train/loss_epoch"]
        for augment in ("none", str(policy), f"[none, {policy}]", f"[light, {policy}]")
    }
    plain, inverted, listed, shifted = losses.values()

    assert inverted == listed
    assert len({plain, inverted, shifted}) == 3


@pytest.mark.slow
@pytest.mark.parametrize("controller", ["evolution", "reinforce"])
def test_row_239_a_search_on_leaning_digits_finds_rotation_more_often_than_chance(
    controller: str, tmp_path: Path
) -> None:
    steps: list[str] = []
    for seed in ("0", "1"):
        flags = ["--controller", controller, "--search_seed", seed, "--budget", "40", "--proxy_epochs", "2"]
        found = search(tmp_path, *flags, "--sub_policies", "3", "--monitor", "val/loss", "--mode", "min")
        policies, order = proposed(found), torch.tensor(found["scores"]).argsort()[:10].tolist()
        steps += [step[0] for trial in order for sub in policies[trial] for step in sub]
        assert min(found["scores"]) < found["without"] - 0.3
    hits, p = steps.count("Rotate"), 1 / (len(OPERATIONS) - 1)
    by_chance = sum(comb(len(steps), k) * p**k * (1 - p) ** (len(steps) - k) for k in range(hits, len(steps) + 1))

    assert by_chance < 0.001


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--budget", "0"], r"--budget 0 must be at least 1$"),
        (["--trainer.devices", "2"], r"search_policy runs in one process, not 2; add --trainer.devices 1$"),
        ([*SHORT, "--monitor", "val/nothing"], r"--monitor val/nothing: the model does not log it; it logs .*val/acc"),
        (
            ["--data", "support.command_toys.ToyData", "--model.num_classes", "7", "--model.in_channels", "1"],
            r"ToyData is not of this package, so no policy can be put into it$",
        ),
    ],
    ids=["no trial", "two processes", "unknown metric", "data of others"],
)
def test_what_cannot_be_searched_is_refused(flags: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        search(tmp_path, *flags)


def test_files_of_an_earlier_search_are_kept(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("policy: mine")
    with pytest.raises(FileExistsError, match=r"policy.yaml exists; choose another --output or add --overwrite"):
        search(tmp_path, *SHORT, "--output", str(tmp_path))

    assert (tmp_path / "policy.yaml").read_text() == "policy: mine"

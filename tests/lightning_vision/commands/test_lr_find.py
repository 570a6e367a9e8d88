"""The range test: rates by hand, losses equal to a hand-written loop's, refusals before training."""

import math
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lightning_vision import ImageClassifier, main
from lightning_vision.commands.lr_find import smoothed, steepest
from lightning_vision.datamodules import Digits
from support.photos import photo_folder
from support.trainers import QUIET

CONFIG = ["lr_find", "--config", "classification/digits", "--trainer.accelerator", "cpu", *QUIET]


def find(root: Path, *flags: str) -> dict[str, Any]:
    return main([*CONFIG, "--trainer.default_root_dir", str(root), *flags]).output


def test_it_suggests_a_rate_that_trains_and_draws_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = find(tmp_path)

    assert 1e-3 < found["suggestion"] < 0.1
    assert f"--model.optimizer.lr {found['suggestion']:.2g}" in capsys.readouterr().out
    assert Path(found["png"]).stat().st_size > 10_000
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["lr_find.png"]


@pytest.mark.parametrize(("layer_decay", "micro"), [(1.0, 1), (0.5, 1), (1.0, 2)], ids=["plain", "layers", "windows"])
def test_losses_are_those_of_a_loop_with_growing_rates(layer_decay: float, micro: int, tmp_path: Path) -> None:
    flags = ["--model.optimizer", "SGD", "--model.optimizer.lr", "0.3", "--data.shift", "0", "--data.batch_size", "30"]
    flags += ["--model.layer_decay", str(layer_decay), "--trainer.accumulate_grad_batches", str(micro)]
    found = find(tmp_path, *flags, "--num_steps", "20", "--min_lr", "0.01")
    data = Digits(batch_size=30)
    torch.manual_seed(0)
    module = ImageClassifier("resnet8_cifar", 10, 1, optimizer=torch.optim.SGD, layer_decay=layer_decay)
    optimizer, rates, losses = module.configure_optimizers(), [0.01 * 100 ** (step / 19) for step in range(20)], []
    proportions = [group["lr"] / optimizer.defaults["lr"] for group in optimizer.param_groups]
    batches = (data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader())
    for rate in rates:
        optimizer.zero_grad()
        for group, proportion in zip(optimizer.param_groups, proportions, strict=True):
            group["lr"] = rate * proportion
        window = []
        for image, target in islice(batches, micro):
            window.append(F.cross_entropy(module(image), target, label_smoothing=0.1))
            (window[-1] / micro).backward()
        optimizer.step()
        losses.append(sum(loss.item() for loss in window) / micro)

    assert found["rates"] == pytest.approx(rates)
    assert len(set(proportions)) == (1 if layer_decay == 1 else 5)
    assert found["losses"] == pytest.approx(losses[: len(found["losses"])], rel=1e-5)
    assert len(found["losses"]) > 15


def test_a_short_window_at_an_epochs_end_counts_as_the_others_do(tmp_path: Path) -> None:
    short = ["--trainer.limit_train_batches", "5", "--trainer.accumulate_grad_batches", "4"]
    found = find(tmp_path, *short, "--num_steps", "20")

    # Every second step has seen one batch of the four; at these rates nothing is learnt yet.
    assert found["losses"][:8] == pytest.approx([2.3] * 8, abs=0.3)


@pytest.mark.parametrize("more", [[], ["--trainer.min_epochs", "50", "--trainer.min_steps", "99"]], ids=["", "minima"])
def test_the_test_ends_where_the_loss_diverges(more: list[str], tmp_path: Path) -> None:
    found = find(tmp_path, "--model.optimizer", "SGD", "--model.optimizer.lr", "1", "--max_lr", "1e6", *more)

    assert 10 <= len(found["losses"]) < 100
    assert all(math.isfinite(loss) for loss in found["losses"])


@pytest.mark.parametrize(
    "schedule",
    [
        pytest.param(["WarmUpCosine", "--callbacks.schedule.warmup", "1"], id="WarmUpCosine"),
        *(
            pytest.param(words, id=words[0], marks=pytest.mark.slow)
            for words in (
                ["WarmUpSteps", "--callbacks.schedule.milestones", "[3]"],
                ["WarmRestarts", "--callbacks.schedule.t_0", "2"],
            )
        ),
    ],
)
def test_the_runs_schedule_does_not_act(schedule: list[str], tmp_path: Path) -> None:
    plain = find(tmp_path / "plain", "--num_steps", "20")
    scheduled = find(tmp_path / "scheduled", "--num_steps", "20", "--callbacks.schedule", *schedule)

    assert scheduled["losses"] == plain["losses"]


def test_the_shipped_config_for_ones_own_photographs_is_tested_head_first(tmp_path: Path) -> None:
    photo_folder("photos", ("brick", "cat"), number=12)
    small = ["--model.backbone", "resnet10t", "--model.pretrained", "false", "--data.image_size", "32"]
    small += ["--data.train_size", "40", "--data.num_workers", "0", "--data.batch_size", "8", "--data.root", "photos"]
    place = ["--trainer.accelerator", "cpu", "--trainer.default_root_dir", str(tmp_path / "runs"), *QUIET]
    words = ["lr_find", "--config", "classification/finetune_folder", *small, *place, "--num_steps", "20"]
    found, alone = (main([*words, *more]).output for more in (["--output", "a"], ["--callbacks.head_first", "null"]))

    assert found["losses"] != alone["losses"]
    assert not list(tmp_path.rglob("report"))


def test_an_earlier_picture_is_kept_unless_told(tmp_path: Path) -> None:
    (tmp_path / "lr_find.png").write_text("mine")
    with pytest.raises(FileExistsError, match=r"lr_find.png exists; choose another --output or add --overwrite$"):
        find(tmp_path, "--num_steps", "20", "--output", str(tmp_path))
    assert (tmp_path / "lr_find.png").read_text() == "mine"
    find(tmp_path, "--num_steps", "20", "--output", str(tmp_path), "--overwrite")

    assert (tmp_path / "lr_find.png").stat().st_size > 10_000


def test_the_smoothed_loss_by_hand() -> None:
    assert smoothed([4.0, 2.0, 1.0], beta=0.5) == pytest.approx([4.0, 8 / 3, 12 / 7])


def test_the_steepest_fall_is_that_of_the_logarithm_of_the_rate() -> None:
    rates = [10.0**power for power in range(-20, 20)]
    losses = [1 / (1 + math.exp(power)) for power in range(-20, 20)]

    assert rates[steepest(rates, losses)] == 1.0
    assert steepest(rates, losses[::-1]) is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--min_lr", "1", "--max_lr", "1"], r"--min_lr 1.0 must be above 0 and below --max_lr 1.0$"),
        (["--num_steps", "5"], r"--num_steps 5: at least 20 are needed to see where the loss falls$"),
        (["--trainer.devices", "2"], r"lr_find runs in one process, not 2; add --trainer.devices 1$"),
        (
            ["--model.optimizer", "SGD", "--model.optimizer.lr", "1", "--min_lr", "1e6", "--max_lr", "1e9"],
            r"the test ended after \d of 100 steps, too few to see where the loss falls; lower --min_lr 1000000.0 and ",
        ),
        (["--model.optimizer.lr", "0"], r"lr_find: the optimizer's lr is 0, so rates cannot stand in proportion"),
    ],
    ids=["empty range", "too few steps", "two processes", "diverges at once", "rate zero"],
)
def test_what_cannot_be_tested_is_refused(flags: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        find(tmp_path, *flags)

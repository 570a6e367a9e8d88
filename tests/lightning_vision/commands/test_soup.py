"""Checkpoints of a folder become a soup that is measured, loaded and asked as any other checkpoint."""

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn

from lightning_vision import ImageClassifier, main
from lightning_vision.base.weights import module_from_checkpoint
from lightning_vision.datamodules import Digits
from lightning_vision.merging import uniform_soup
from support.trainers import QUIET

pytestmark = pytest.mark.one_worker

CPU = ["--trainer.accelerator", "cpu", "--trainer.logger", "false"]
DATA = ["--data", "Digits", "--data.batch_size", "100"]
# Batch norm on 200 digits and a test of 100: for what does not depend on how well they are measured.
LITTLE = ["--trainer.limit_train_batches", "2", "--trainer.limit_test_batches", "1"]


class NoValidation(Digits):
    """Digits without a validation split."""

    def load(self) -> None:
        super().load()
        self.val_set = None


class NoTest(Digits):
    """Digits without a test split."""

    def load(self) -> None:
        super().load()
        self.test_set = None


class Reversed(Digits):
    """Digits whose classes are told from nine to zero."""

    @property
    def class_names(self) -> list[str]:
        return [str(it) for it in reversed(range(10))]


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: three fine-tunings of one network, with other seeds and rates, each with its best and last."""
    folder = tmp_path_factory.mktemp("fine-tuned")
    short = ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--trainer.num_sanity_val_steps", "0", *QUIET]
    digits = ["fit", "--config", "classification/digits", *short, "--trainer.default_root_dir"]
    first = main([*digits, str(folder / "first")]).best_ckpt
    assert first is not None
    for seed, rate in ((1, "0.003"), (2, "0.001"), (3, "0.002")):
        chosen = ["--seed_everything", str(seed), "--model.optimizer.lr", rate, "--model.weights", first]
        main([*digits, str(folder / "runs" / str(seed)), *chosen, "--trainer.limit_train_batches", "10"])
    return folder / "runs"


@pytest.fixture
def runs(fine_tuned: Path, tmp_path: Path) -> str:
    """The best of the three, in the test's own folder."""
    (tmp_path / "runs").mkdir()
    for seed in (1, 2, 3):
        shutil.copy(fine_tuned / str(seed) / "version_0/checkpoints/best.ckpt", tmp_path / "runs" / f"{seed}.ckpt")
    return "runs"


def soup(*args: str) -> dict[str, Any]:
    output = main(["soup", *args, *CPU]).output
    assert isinstance(output, dict)
    return output


def state_of(path: str | Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def measured(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with what torch measures on the training digits, in their first epoch's order and not shifted."""
    module = ImageClassifier("resnet8_cifar", num_classes=10, in_channels=1)
    module.load_state_dict(state)
    data = Digits(batch_size=100)
    update_bn([data.on_after_batch_transfer(batch, 0)[0] for batch in data.train_dataloader()], module.network)
    return module.state_dict()


def test_row_103_a_user_soups_a_folder_tests_the_soup_and_asks_it(
    fine_tuned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = soup(str(fine_tuned), "--pattern", "best.ckpt", *DATA, "--output", "soup", "--monitor", "val/acc")
    printed = capsys.readouterr().out
    names = [str(fine_tuned / str(seed) / "version_0/checkpoints/best.ckpt") for seed in (1, 2, 3)]
    tested = main(["test", *CPU, *DATA, "--ckpt_path", output["checkpoint"]]).metrics
    validated = main(["validate", *CPU, *DATA, "--ckpt_path", output["checkpoint"]]).metrics
    predicted = main(["predict", *CPU, *DATA, "--ckpt_path", output["checkpoint"], "--output", "told"]).output
    scores = output["scores"]
    with open(output["table"], encoding="utf-8") as file:
        table = {row["weights"]: row for row in csv.DictReader(file)}

    assert list(scores) == [*names, "uniform soup", "greedy soup", "logit ensemble"] == list(table)
    assert scores["greedy soup"]["val/acc"] >= max(scores[name]["val/acc"] for name in names)
    assert set(output["kept"]) <= set(names)
    assert [name for name in names if table[name]["in_greedy_soup"] == "1"] == sorted(output["kept"])
    assert {"test/acc": tested["test/acc"]} | validated == {
        name: pytest.approx(value, rel=1e-5) for name, value in scores["greedy soup"].items() if name in validated
    } | {"test/acc": pytest.approx(scores["greedy soup"]["test/acc"])}
    assert float(table["uniform soup"]["test/loss"]) == pytest.approx(scores["uniform soup"]["test/loss"], rel=1e-5)
    assert predicted["count"] == 359
    assert "soup of 3 checkpoints, largest val/acc" in printed
    assert printed.count("in the greedy soup") == len(output["kept"])


def test_row_103_the_uniform_soup_is_the_mean_with_batch_norm_measured_on_the_training_split(runs: str) -> None:
    output = soup(runs, "--recipe", "uniform", *DATA)
    written = torch.load(output["checkpoint"], weights_only=True)
    paths = [f"runs/{seed}.ckpt" for seed in (1, 2, 3)]
    mean = uniform_soup([state_of(path) for path in paths])
    expected = measured(mean)
    statistics = [name for name in mean if "running" in name]

    assert output["kept"] == paths
    assert output["checkpoint"] == str(Path("runs/soup.ckpt").absolute())
    assert all(torch.equal(value, mean[name]) for name, value in written["state_dict"].items() if "running" not in name)
    assert all(torch.allclose(written["state_dict"][name], expected[name], rtol=1e-5) for name in statistics)
    assert not torch.allclose(mean[statistics[1]], expected[statistics[1]], rtol=1e-3)
    assert not written.keys() & {"callbacks", "optimizer_states", "lr_schedulers", "loops"}
    assert written["merged"] == {"recipe": "uniform", "monitor": "val/loss", "ingredients": paths}
    assert isinstance(module_from_checkpoint(output["checkpoint"]), ImageClassifier)


def test_row_103_copies_of_one_checkpoint_make_that_checkpoint(runs: str) -> None:
    for copy in ("copy", "again"):
        shutil.copy("runs/1.ckpt", f"runs/{copy}.ckpt")
    for recipe in ("greedy", "uniform"):
        files = ["runs/1.ckpt", "runs/again.ckpt", "runs/copy.ckpt"]
        output = soup(*files, "--recipe", recipe, *DATA, "--output", recipe, *LITTLE)
        old, new = state_of("runs/1.ckpt"), state_of(output["checkpoint"])

        assert old.keys() == new.keys()
        assert all(torch.equal(old[name], new[name]) and old[name].dtype == new[name].dtype for name in old)


def test_row_103_the_order_of_files_does_not_matter(runs: str) -> None:
    states = []
    for order in ("123", "312"):
        files = [f"runs/{seed}.ckpt" for seed in order]
        states.append(state_of(soup(*files, "--recipe", "uniform", *DATA, "--output", order, *LITTLE)["checkpoint"]))

    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_the_ensemble_in_the_table_is_the_mean_of_logits(runs: str) -> None:
    output = soup(runs, *DATA, *LITTLE)
    data = Digits(batch_size=1000)
    image, target = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    modules: list[Any] = [module_from_checkpoint(f"runs/{seed}.ckpt").eval() for seed in (1, 2, 3)]
    with torch.no_grad():
        logits = torch.stack([module.network(image) for module in modules]).mean(dim=0)
    acc = float((logits.argmax(dim=1) == target).float().mean())

    assert output["scores"]["logit ensemble"]["val/acc"] == pytest.approx(acc)
    assert output["scores"]["logit ensemble"]["val/loss"] == pytest.approx(
        float(modules[0].criterion(logits, target)), rel=1e-4
    )


def test_what_chose_the_checkpoints_decides_unless_something_is_typed(
    runs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    soup(runs, *DATA, *LITTLE)
    chosen = capsys.readouterr().out
    soup(runs, *DATA, *LITTLE, "--monitor", "val/ece", "--mode", "max", "--overwrite")

    assert "soup of 3 checkpoints, smallest val/loss" in chosen
    assert "soup of 3 checkpoints, largest val/ece" in capsys.readouterr().out


def test_earlier_soups_in_the_folder_are_no_ingredients_and_are_not_written_over(runs: str) -> None:
    first = soup(runs, *DATA, *LITTLE)
    with pytest.raises(FileExistsError, match=r"/soup.ckpt exists; choose another --output or add --overwrite$"):
        soup(runs, *DATA, *LITTLE)
    again = soup(runs, *DATA, *LITTLE, "--overwrite")

    assert first["scores"].keys() == again["scores"].keys()


def test_a_calibration_is_dropped_and_an_average_told_of(runs: str, capsys: pytest.CaptureFixture[str]) -> None:
    calibrated = main(["calibrate", *CPU, *DATA, "--ckpt_path", "runs/1.ckpt"]).output["checkpoint"]
    averaged = torch.load("runs/2.ckpt", weights_only=True)
    averaged["callbacks"]["EMA[ema]"] = {"updates": 1, "steps": 1, "average": {}, "raw": {}}
    torch.save(averaged, "runs/2.ckpt")
    output = soup(calibrated, "runs/2.ckpt", "--recipe", "uniform", *DATA, "--output", "soup", *LITTLE)
    plain = soup("runs/1.ckpt", "runs/2.ckpt", "--recipe", "uniform", *DATA, "--output", "plain", *LITTLE)
    printed = capsys.readouterr().out

    assert torch.load(output["checkpoint"], weights_only=True)["calibration"] is None
    assert output["scores"][calibrated] == plain["scores"]["runs/1.ckpt"]
    assert "1-calibrated.ckpt is calibrated; the soup is not, so calibrate it anew" in printed
    assert "runs/2.ckpt: the weights are the average of EMA[ema]" in printed


def test_without_a_test_split_validation_alone_is_told(runs: str) -> None:
    output = soup(runs, "--data", f"{__name__}.NoTest", "--data.batch_size", "100", *LITTLE)

    assert not [name for name in output["scores"]["uniform soup"] if name.startswith("test/")]


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("runs",), r"^no data given; add --config NAME"),
        (
            ("runs/1.ckpt", *DATA),
            r"^a soup needs two checkpoints of different weights, and there is 1 in runs/1.ckpt \(in folders,",
        ),
        (("gone", *DATA), r"^no checkpoint at gone"),
        (
            ("runs", "--pattern", "x*.ckpt", *DATA),
            r"^a soup needs two checkpoints of different weights, and there are 0 in runs \(in folders, files called",
        ),
        (("runs", "--data", f"{__name__}.NoValidation"), r"^NoValidation has no validation split, on which merged"),
        (("runs", *DATA, "--monitor", "val/iou"), r"^--monitor val/iou: the model does not log it; it logs .*val/acc"),
        (
            ("runs", *DATA, "--trainer.devices", "2", "--trainer.strategy", "ddp"),
            r"^soup runs in one process, not 2; add --trainer.devices 1$",
        ),
        (("runs", "--data", f"{__name__}.Reversed"), r"the checkpoint was trained on the classes 0, 1, 2"),
    ],
)
def test_what_makes_no_soup_is_refused_and_nothing_is_written(runs: str, args: tuple[str, ...], sentence: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        soup(*args)

    assert not list(Path().rglob("soup.*"))


def test_checkpoints_of_other_networks_or_classes_are_refused_by_both_names(runs: str) -> None:
    other = torch.load("runs/2.ckpt", weights_only=True)
    other["preprocessing"]["class_names"][:2] = ["one", "nought"]
    torch.save(other, "renamed.ckpt")
    with pytest.raises(
        ValueError, match=r"^renamed.ckpt was trained with class_names .*and runs/1.ckpt with \['0', '1"
    ):
        soup("runs/1.ckpt", "renamed.ckpt", *DATA)
    weights = other["state_dict"]
    weights["network.extra"] = weights.pop("network.head.fc.weight")
    torch.save(other, "other.ckpt")
    with pytest.raises(ValueError, match=r"^other.ckpt and runs/1.ckpt are of different architectures: network.extra"):
        soup("runs/1.ckpt", "other.ckpt", *DATA)


def test_copies_in_a_folder_count_once(runs: str, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy("runs/1.ckpt", "runs/last.ckpt")
    output = soup(runs, "--recipe", "uniform", *DATA, *LITTLE)

    assert [f"runs/{seed}.ckpt" for seed in (1, 2, 3)] == output["kept"]
    assert "runs/last.ckpt holds the weights of runs/1.ckpt and is left out" in capsys.readouterr().out

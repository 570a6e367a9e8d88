"""A teacher, assistants and a student in one command: what is trained, by whom it is taught, and what is told."""

import csv
import shutil
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_vision import main
from lightning_vision.callbacks import Distillation
from lightning_vision.commands.teacher_assistant import _ways
from lightning_vision.datamodules import Digits
from lightning_vision.datamodules.common._sets import ArrayImages
from support.compare import distance
from support.data import ResumableLoader, labelled_images
from support.modules import Plain, small_network
from support.teachers import teacher_file
from support.trainers import QUIET, quiet_trainer

SHORT = ["--trainer.accelerator", "cpu", "--trainer.num_sanity_val_steps", "0", *QUIET]
CONFIG = [
    "--config",
    "classification/teacher_assistant",
    *SHORT,
    "--trainer.max_epochs",
    "1",
    "--data.batch_size",
    "32",
]
CONFIG += [
    "--trainer.limit_train_batches",
    "2",
    "--trainer.limit_val_batches",
    "1",
    "--trainer.limit_test_batches",
    "1",
]


class FewDigits(Digits):
    """Ten training digits a class, drawn by the seed."""

    def load(self) -> None:
        super().load()
        assert isinstance(self.train_set, ArrayImages) and self.train_set.targets is not None
        images, targets = self.train_set.images, self.train_set.targets
        order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(self.seed))
        kept = torch.cat([order[targets[order] == it][:10] for it in range(10)])
        self.train_set = ArrayImages(images[kept], targets[kept])


def chain(*args: str) -> dict[str, Any]:
    output = main(["teacher_assistant", *args]).output
    assert isinstance(output, dict)
    return output


def state_of(path: str) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A ResNet-20 that has read all training digits twice."""
    words = ["--model", "ImageClassifier", "--model.backbone", "resnet20_cifar", "--model.optimizer.lr", "0.01"]
    words += ["--data", "Digits", "--data.batch_size", "64", "--callbacks.schedule", "WarmUpCosine", *SHORT]
    words += ["--trainer.max_epochs", "2", "--trainer.limit_val_batches", "0", "--trainer.logger", "false"]
    words += ["--callbacks.last", "ModelCheckpoint", "--callbacks.last.filename", "last"]
    best = main(["fit", *words, "--trainer.default_root_dir", str(tmp_path_factory.mktemp("teacher"))]).best_ckpt
    assert best is not None
    return best


@pytest.mark.slow
def test_one_config_trains_every_way_and_tells_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = chain(*CONFIG)
    printed = capsys.readouterr().out
    again = chain(*CONFIG)
    tested = main(["test", "--data", "Digits", *CONFIG[2:], "--ckpt_path", output["student"]]).metrics
    with open(output["table"], encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    ways = [
        "resnet20_cifar",
        "resnet20_cifar > resnet14_cifar",
        "resnet20_cifar > resnet14_cifar > resnet8_cifar",
        "resnet20_cifar > resnet8_cifar",
        "resnet8_cifar",
    ]

    assert [row["path"] for row in rows] == ways == [row["path"] for row in output["rows"]]
    assert [row["parameters"] for row in rows] == ["269434", "172218", "75002", "75002", "75002"]
    assert output["student"] == output["rows"][2]["checkpoint"]
    assert output["rows"][2]["test/acc"] == pytest.approx(tested["test/acc"])
    assert len({row["val/loss"] for row in rows}) == 5
    assert all(way in printed for way in ways)
    # Of what was finished nothing is trained again.
    assert again["rows"] == output["rows"]
    assert capsys.readouterr().out.count("finished before") == 5
    assert {path.name for path in (tmp_path / "runs/teacher_assistant").iterdir()} == {
        *(way.replace(" > ", "-") for way in ways),
        "teacher_assistant.csv",
        "teacher_assistant_fit.yaml",
    }


def test_row_257_an_empty_chain_is_plain_distillation_bit_for_bit_and_leaves_the_teacher(tmp_path: Path) -> None:
    teacher = str(shutil.copy(teacher_file(), tmp_path / "large.ckpt"))
    before = Path(teacher).read_bytes()
    output = chain(teacher, "resnet8_cifar", *CONFIG, "--paths", "[]", "--alpha", "0.25", "--output", "chain")
    plain = ["--config", str(tmp_path / "chain/teacher_assistant_fit.yaml"), *CONFIG[2:]]
    kd = {"teacher": teacher, "hard_weight": "0.25", "kd_weight": "0.75", "temperature": "5.0"}
    words = [word for name, value in kd.items() for word in (f"--callbacks.kd.{name}", value)]
    taught = main(["fit", *plain, "--trainer.default_root_dir", "student", "--callbacks.kd", "Distillation", *words])

    assert [row["path"] for row in output["rows"]] == ["large", "large > resnet8_cifar"]
    assert distance(state_of(str(taught.best_ckpt)), state_of(output["student"])) == 0.0
    assert Path(teacher).read_bytes() == before


def by_hand(teacher: torch.nn.Module, alpha: float, temperature: float, squared: bool) -> dict[str, Tensor]:
    """Ten steps on alpha CE + (1 - alpha) T^2 sum p log(p / q), the mean over images."""
    torch.manual_seed(0)
    module = Plain(dropout=0.0)
    made = module.configure_optimizers()
    data = ResumableLoader(labelled_images(60), 6)
    data.sampler.set_epoch(0)
    for image, target in data:
        logits = module(image)
        p = (teacher(image) / temperature).softmax(dim=1).detach()
        q = (logits / temperature).softmax(dim=1)
        divergence = (p * (p / q).log()).sum(dim=1).mean()
        factor = temperature**2 if squared else 1
        loss = alpha * F.cross_entropy(logits, target) + (1 - alpha) * factor * divergence
        made["optimizer"].zero_grad()
        loss.backward()
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    return module.state_dict()


def test_row_257_the_loss_is_the_formula_by_hand_with_the_square_of_the_temperature_and_the_teacher_stays() -> None:
    torch.manual_seed(7)
    teacher = small_network(dropout=0.0).eval()
    before = {name: it.clone() for name, it in teacher.state_dict().items()}
    torch.manual_seed(0)
    module = Plain(dropout=0.0)
    kd = Distillation(teacher, hard_weight=0.3, kd_weight=0.7, temperature=3.0)
    quiet_trainer(max_epochs=1, callbacks=[kd]).fit(module, ResumableLoader(labelled_images(60), 6))

    assert distance(by_hand(teacher, 0.3, 3.0, squared=True), module.state_dict()) < 1e-5
    assert distance(by_hand(teacher, 0.3, 3.0, squared=False), module.state_dict()) > 1e-3
    assert distance(before, teacher.state_dict()) == 0.0


class KillOnce(Callback):
    """Ends a taught training as its second epoch begins, if a file `kill` lies where the command runs."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        taught = any(isinstance(it, Distillation) for it in trainer.callbacks)  # type: ignore[attr-defined]
        if taught and trainer.current_epoch == 1 and Path("kill").exists():
            Path("kill").unlink()
            raise RuntimeError("killed")


TWICE = ["--trainer.max_epochs", "2", "--callbacks.kill", f"{__name__}.KillOnce", "--output"]


def test_row_257_a_chain_of_three_that_was_interrupted_goes_on_inside_the_training(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["resnet20_cifar", "resnet14_cifar", "resnet8_cifar", *CONFIG, "--paths", "[]", *TWICE, "out"]
    Path("kill").touch()
    with pytest.raises(RuntimeError, match="killed"):
        chain(*words)
    capsys.readouterr()
    output = chain(*words)
    printed = capsys.readouterr().out
    with open(output["table"], encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    second = "resnet20_cifar > resnet14_cifar"

    assert [row["path"] for row in rows] == ["resnet20_cifar", second, f"{second} > resnet8_cifar"]
    assert [row["parameters"] for row in rows] == ["269434", "172218", "75002"]
    assert len({row["val/loss"] for row in rows}) == 3
    assert output["student"] == rows[2]["checkpoint"]
    assert all(row["path"] in printed for row in rows)
    assert printed.count("finished before") == 1
    # It went on in the folder of the first part, whose numbers are kept beside those of the second.
    assert {path.name for path in Path("out/resnet20_cifar-resnet14_cifar").glob("version_*")} == {"version_0"}
    assert len(list(Path("out/resnet20_cifar-resnet14_cifar/version_0").glob("metrics*.csv"))) == 2

    # Each was taught by the one before, and by no other.
    Path(rows[0]["checkpoint"]).write_bytes(teacher_file().read_bytes())
    with pytest.raises(ValueError, match="-resnet14_cifar holds a training with another teacher; choose another --out"):
        chain(*words)


def test_the_other_ways_are_the_direct_one_and_the_student_alone_if_none_are_given() -> None:
    three = ["large", "medium", "small"]

    assert _ways(three, None) == [three, ["large", "small"], ["small"]]
    assert _ways(three[:2], None) == [["large", "medium"], ["medium"]]
    assert _ways(three, [["medium", "small"], three]) == [three, ["medium", "small"]]
    assert _ways(three, []) == [three]


@pytest.mark.slow
def test_an_interrupted_command_ends_as_one_that_was_not() -> None:
    words = ["resnet14_cifar", "resnet8_cifar", *CONFIG, "--paths", "[]", *TWICE]
    straight = chain(*words, "straight")
    Path("kill").touch()
    with pytest.raises(RuntimeError, match="killed"):
        chain(*words, "killed")
    resumed = chain(*words, "killed")

    assert [row["val/loss"] for row in resumed["rows"]] == [row["val/loss"] for row in straight["rows"]]
    assert distance(state_of(straight["student"]), state_of(resumed["student"])) == 0.0


def few(folder: Path, teacher: str, seed: int, epochs: int, *more: str) -> dict[str, float]:
    """Test accuracy of every way, after epochs of five steps each on a hundred images."""
    model = ["--model", "ImageClassifier", "--model.backbone", "resnet8_cifar", "--model.optimizer.lr", "0.01"]
    data = ["--data", f"{__name__}.FewDigits", "--data.batch_size", "20", "--data.seed", str(seed)]
    run = ["--trainer.max_epochs", str(epochs), "--trainer.logger", "false", "--trainer.limit_val_batches", "0", *SHORT]
    callbacks = ["--callbacks.schedule", "WarmUpCosine", "--callbacks.last", "ModelCheckpoint"]
    words = [*model, *data, *run, *callbacks, "--seed_everything", str(seed), "--output", str(folder), *more]
    rows = chain(teacher, "resnet14_cifar", "resnet8_cifar", *words)["rows"]
    return {row["path"]: row["test/acc"] for row in rows}


ALONE, CHAIN = "resnet8_cifar", "last > resnet14_cifar > resnet8_cifar"
ALONE_TOO = ("--paths", "[[resnet8_cifar]]")


@pytest.mark.slow
def test_row_257_a_chain_of_three_on_a_hundred_digits_beats_the_student_alone(tmp_path: Path, teacher: str) -> None:
    reached = few(tmp_path, teacher, 0, 8, *ALONE_TOO)

    assert list(reached) == ["last", "last > resnet14_cifar", CHAIN, ALONE]
    assert reached[CHAIN] > reached[ALONE]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_row_257_it_does_so_over_seeds(tmp_path: Path, teacher: str) -> None:
    """The mean of the paired differences over the seeds 0 to 4 is above two of its standard errors."""
    found = [few(tmp_path / str(seed), teacher, seed, 16, *ALONE_TOO) for seed in range(5)]
    gains = torch.tensor([it[CHAIN] - it[ALONE] for it in found])

    assert gains.mean() > 2 * gains.std() / 5**0.5, found


@pytest.mark.slow
def test_epochs_and_configs_of_each_network_are_heeded() -> None:
    narrow = "model:\n  init_args:\n    backbone: resnet8_cifar\n    drop_rate: 0.5\n"
    Path("narrow.yaml").write_text(narrow)
    words = ["resnet14_cifar", "narrow.yaml", *CONFIG, "--epochs", "[2,1]", "--paths", "[]", "--output", "out"]
    output = chain(*words)
    student = torch.load(output["student"], weights_only=True)
    teacher = torch.load(output["rows"][0]["checkpoint"].replace("best", "last"), weights_only=True)

    assert [row["path"] for row in output["rows"]] == ["resnet14_cifar", "resnet14_cifar > narrow"]
    assert student["hyper_parameters"]["drop_rate"] == 0.5
    assert (teacher["global_step"], student["global_step"]) == (4, 2)

    Path("narrow.yaml").write_text(narrow.replace("0.5", "0.1"))
    with pytest.raises(ValueError, match="-narrow holds a training with other settings; choose another --output"):
        chain(*words)


@pytest.mark.slow
def test_other_settings_are_refused_in_a_folder_that_holds_a_training_unless_it_may_be_replaced() -> None:
    words = ["resnet14_cifar", "resnet8_cifar", *CONFIG, "--paths", "[]", "--output", "out"]
    before = chain(*words)
    with pytest.raises(ValueError, match=r"-resnet8_cifar holds a training with other settings; choose another --outp"):
        chain(*words, "--alpha", "0.1")
    after = chain(*words, "--alpha", "0.1", "--overwrite")

    assert after["rows"][0] == before["rows"][0]
    assert after["rows"][1]["val/loss"] != before["rows"][1]["val/loss"]


REFUSED = [
    (["resnet8_cifar"], "--chain ['resnet8_cifar'] needs a teacher and a student; name at least two networks"),
    (["gone.ckpt", "resnet8_cifar"], "no checkpoint at gone.ckpt"),
    (
        ["resnet14_cifar", "resnet8_cifar", "--paths", "[[resnet20_cifar]]"],
        "--paths has resnet20_cifar, which is not in the chain ['resnet14_cifar', 'resnet8_cifar']; add it there",
    ),
]
# Each builds what the command line describes, so most are left to the long run.
REFUSED_TOO = [
    (
        ["resnet8_cifar", "resnet8_cifar"],
        "--chain has resnet8_cifar twice; each network of a chain is called otherwise",
    ),
    (
        ["resnet8_cifar", "gone.ckpt"],
        "gone.ckpt is a checkpoint, which has nothing to learn; put it first in the chain",
    ),
    (
        ["resnet14_cifar", "resnet8_cifar", "--paths", "[[]]"],
        "--paths has a way without a network; name those that it goes through",
    ),
    (["resnet14_cifar", "resnet8_cifar", "--alpha", "1.5"], "--alpha 1.5 must be from 0 to 1"),
    (["resnet14_cifar", "resnet8_cifar", "--temperature", "0"], "--temperature 0.0 must be above 0"),
    (
        ["resnet14_cifar", "resnet8_cifar", "--epochs", "[3]"],
        "--epochs [3] must be 2 numbers of at least 1, one for each network",
    ),
    (
        ["resnet14_cifar", "resnet8_cifar", "--trainer.devices", "2", "--trainer.strategy", "ddp"],
        "teacher_assistant runs in one process, not 2; add --trainer.devices 1",
    ),
]


@pytest.mark.parametrize(
    ("args", "sentence"), [*REFUSED, *(pytest.param(*it, marks=pytest.mark.slow) for it in REFUSED_TOO)]
)
def test_what_no_training_can_come_of_is_refused_before_the_first(args: list[str], sentence: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError)) as refusal:
        chain(
            *takewhile(lambda it: it[0] != "-", args),
            *CONFIG,
            "--output",
            "out",
            *dropwhile(lambda it: it[0] != "-", args),
        )

    assert str(refusal.value) == sentence
    assert not list(Path().rglob("stage.json"))

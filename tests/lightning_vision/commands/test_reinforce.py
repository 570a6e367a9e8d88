"""Teachers answer to augmented training images once, and a student learns from their answers, as a user runs it."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_vision import ImageClassifier, main
from lightning_vision.base.weights import module_from_checkpoint
from lightning_vision.datamodules import Digits, Reinforced
from support import ROOT
from support.trainers import quiet_trainer

CPU = ["--trainer.accelerator", "cpu", "--trainer.logger", "false"]
DATA = ["--data", "Digits", "--data.shift", "1", "--data.batch_size", "100"]
SAMPLES = 1258


class Watching(ImageClassifier):
    """Keeps the hash of every image that it is shown, and stops after `limit` batches."""

    shown: ClassVar[list[str]] = []
    limit: ClassVar[int] = 1000

    def forward(self, image: Tensor) -> Tensor:
        if len(self.shown) >= 100 * self.limit:
            raise KeyboardInterrupt
        self.shown.extend(digests(image))
        return super().forward(image)


@pytest.fixture
def teacher(trained: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A checkpoint of a `Watching`."""
    monkeypatch.setattr(Watching, "shown", [])
    path = tmp_path / "teacher.ckpt"
    path.write_bytes(trained)
    content = torch.load(path, weights_only=True)
    torch.save(content | {"class_path": f"{__name__}.Watching"}, path)
    return str(path)


def digests(images: Tensor) -> list[str]:
    return [hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest() for image in images]


def reinforce(output: Path, *flags: str) -> dict[str, Any]:
    return main(["reinforce", *DATA, *CPU, "--output", str(output), *flags]).output


def digits(**options: Any) -> Digits:
    return Digits(**{"batch_size": 100, "shift": 1} | options)


def by_hand(checkpoints: list[str], count: int, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities of each checkpoint `(checkpoints, count * 1258, 10)`, labels and images, entry after entry."""
    data = digits()
    data.setup()
    assert data.train_set is not None
    fetched = data.train_set.fetch(torch.arange(count * SAMPLES))
    image = data.normalise(data.augment(fetched.image, fetched.index, 0))
    modules = [module_from_checkpoint(path).eval() for path in checkpoints]
    with torch.no_grad():
        answers = torch.stack([(module(image) / temperature).softmax(1) for module in modules])
    assert fetched.target is not None
    return answers, fetched.target, image


def test_row_20_a_replayed_image_is_to_the_bit_the_one_that_the_teacher_saw(teacher: str, tmp_path: Path) -> None:
    reinforce(tmp_path / "store", "--teacher", teacher, "--num_samples", "2")
    by_row = list(Watching.shown)
    data, student = Reinforced(digits(batch_size=64), tmp_path / "store", seed=3), Watching("resnet8_cifar", 10, 1)
    Watching.shown.clear()
    quiet_trainer(max_epochs=1, limit_val_batches=0).fit(student, datamodule=data)
    rows = torch.cat([row for _, _, row in data.train_dataloader()]).tolist()

    assert len(by_row) == 2 * SAMPLES
    assert [by_row[row] for row in rows] == Watching.shown
    assert sum(by_row[row % SAMPLES] == shown for row, shown in zip(rows, Watching.shown, strict=True)) < 900


def test_row_20_with_all_classes_stored_the_loss_is_that_of_asking_the_teacher_in_every_step(
    teacher: str, tmp_path: Path
) -> None:
    reinforce(tmp_path / "store", "--teacher", teacher, "--num_samples", "2", "--top_k", "10")
    steps, network = 6, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    start = {name: value.clone() for name, value in network.state_dict().items()}
    losses: list[Tensor] = []

    class Logged(ImageClassifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            losses.append(loss := super().training_step(batch, batch_idx))
            return loss

    data = Reinforced(digits(), tmp_path / "store", seed=3)
    module = Logged(network, 10, 1, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.5))
    quiet_trainer(max_steps=steps, limit_val_batches=0).fit(module, datamodule=data)
    learnt = {name: value.clone() for name, value in network.state_dict().items()}

    network.load_state_dict(start)
    online, plain = module_from_checkpoint(teacher).eval(), digits()
    plain.setup()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    for (_, _, row), loss in zip(data.train_dataloader(), losses, strict=False):
        image = plain.normalise(plain.augment(plain.train_set.fetch(row).image, row, 0))  # type: ignore[union-attr]
        with torch.no_grad():
            said = online(image).softmax(1)
        divergence = torch.nn.functional.kl_div(network(image).log_softmax(1), said, reduction="batchmean")
        optimizer.zero_grad()
        divergence.backward()
        optimizer.step()

        assert torch.allclose(divergence + torch.special.entr(said).sum(1).mean(), loss, rtol=1e-5)
    for name, value in network.state_dict().items():
        assert torch.allclose(value, learnt[name], rtol=0, atol=1e-5)
        assert (value - start[name]).abs().max() > 1e-2


def test_several_teachers_are_averaged_and_the_report_is_what_they_said(
    teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(teacher, weights_only=True)
    other = {name: value * 0.7 if "fc" in name else value for name, value in content["state_dict"].items()}
    name = next(name for name in reversed(other) if name.endswith("bias"))
    other[name] = other[name] + torch.arange(10) * 0.1
    torch.save(content | {"state_dict": other}, second := str(tmp_path / "second.ckpt"))
    flags = ["--num_samples", "2", "--top_k", "3", "--temperature", "2"]
    found = reinforce(tmp_path / "store", "--teacher", teacher, "--teacher", second, *flags)
    shown = capsys.readouterr().out
    answers, target, _ = by_hand([teacher, second], 2, temperature=2.0)
    top = answers.mean(0).topk(3)
    table = np.load(tmp_path / "store" / "answers.npy", allow_pickle=False)
    right = [(each.argmax(1) == target).double().mean().item() for each in (*answers, answers.mean(0))]

    assert np.abs(table["probability"] - top.values.numpy()).max() < 1e-5
    assert (table["class"] == top.indices.numpy()).mean() > 0.999
    assert found["accuracy"] == pytest.approx(dict(zip((teacher, second, "mean"), right, strict=True)), abs=1e-3)
    assert found["agreement"] == pytest.approx((answers[0].argmax(1) == answers[1].argmax(1)).double().mean(), abs=1e-3)
    assert found["kept"] == pytest.approx(top.values.sum(1).double().mean(), abs=1e-5)
    assert found["entries"] == 2 * SAMPLES
    assert 2 * 3 * 6 <= found["bytes_per_image"] < 2 * 3 * 6 + 1
    assert re.search(rf"all teachers agree +{found['agreement']:.4f}$", shown, re.MULTILINE)


def test_an_interrupted_command_goes_on_and_writes_the_same(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--teacher", teacher, "--num_samples", "2", "--data.num_workers", "1"]
    straight = reinforce(tmp_path / "straight", *flags)
    Watching.shown.clear()
    monkeypatch.setattr(Watching, "limit", 7)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        reinforce(tmp_path / "store", *flags)
    index = json.loads((tmp_path / "store" / "store.json").read_text())
    assert (index["done"], index["tallies"]["entries"]) == (700, 700)
    Watching.shown.clear()
    monkeypatch.undo()
    # Another batch size does not matter.
    found = reinforce(tmp_path / "store", *flags, "--data.batch_size", "90")
    again = reinforce(tmp_path / "store", *flags)

    assert len(Watching.shown) == 2 * SAMPLES - 700
    tables = [np.load(tmp_path / name / "answers.npy") for name in ("straight", "store")]
    assert np.abs(tables[0]["probability"] - tables[1]["probability"]).max() < 1e-5
    assert found["accuracy"] == pytest.approx(straight["accuracy"], abs=1e-6)
    assert (found["entries"], found["kept"]) == pytest.approx((straight["entries"], straight["kept"]), abs=1e-6)
    assert again == found


def test_a_store_of_something_else_is_kept(teacher: str, tmp_path: Path) -> None:
    first = reinforce(tmp_path / "store", "--teacher", teacher, "--num_samples", "1")
    message = r"store holds a store with other num_samples and data; choose another --output or add --overwrite$"
    with pytest.raises(FileExistsError, match=message):
        reinforce(tmp_path / "store", "--teacher", teacher, "--num_samples", "2", "--data.split_seed", "1")
    more = reinforce(tmp_path / "store", "--teacher", teacher, "--num_samples", "2", "--overwrite")

    assert more["entries"] == 2 * first["entries"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_samples", "0"], r"^--num_samples 0 must be at least 1, --top_k 5 between 1 and the 10 classes, "),
        (["--top_k", "11"], r"--top_k 11 between 1 and the 10 classes"),
        (["--temperature", "0"], r"--temperature 0 above 0$"),
        (["--trainer.devices", "2"], r"^reinforce runs in one process, not 2; add --trainer.devices 1$"),
        (["--data", "support.command_toys.ToyData"], r"^ToyData is not a datamodule that can be reinforced; give one"),
    ],
    ids=["no entry", "more classes than there are", "cold", "two processes", "data of others"],
)
def test_impossible_options_are_refused(flags: list[str], message: str, teacher: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        reinforce(tmp_path / "store", "--teacher", teacher, *flags)
    assert not (tmp_path / "store").exists()


def test_a_teacher_of_other_images_is_refused(teacher: str, tmp_path: Path) -> None:
    content = torch.load(teacher, weights_only=True)
    path = str(tmp_path / "other.ckpt")
    for sizes, message in (
        (
            {"num_classes": 7},
            r"^the teacher \S+other.ckpt has num_classes=7 and Digits has 10; give a teacher of these",
        ),
        ({"in_channels": 3}, r"^the teacher \S+other.ckpt has in_channels=3 and Digits has 1; give a teacher of these"),
    ):
        module = ImageClassifier("resnet8_cifar", **{"num_classes": 10, "in_channels": 1} | sizes)
        state = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams), "preprocessing": None}
        torch.save(content | state | {"class_path": "lightning_vision.ImageClassifier"}, path)
        with pytest.raises(ValueError, match=message):
            reinforce(tmp_path / "store", "--teacher", path)
    renamed = content["preprocessing"] | {"class_names": list("1234567890")}
    torch.save(content | {"preprocessing": renamed}, path)
    with pytest.raises(
        ValueError, match=r"was trained on the classes 1, 2, 3, \.\.\. and Digits has 0, 1, 2, \.\.\.; "
    ):
        reinforce(tmp_path / "store", "--teacher", path)


def test_a_store_does_not_depend_on_the_precision_but_for_the_answers(teacher: str, tmp_path: Path) -> None:
    flags = ["--data.augment", "strong", "--teacher", teacher, "--num_samples", "1"]
    reinforce(tmp_path / "store", *flags)
    by_row = list(Watching.shown)
    Watching.shown.clear()
    reinforce(tmp_path / "half", *flags, "--trainer.precision", "bf16-true")

    assert Watching.shown == by_row


def test_answers_that_are_no_numbers_are_not_stored(teacher: str, tmp_path: Path) -> None:
    content = torch.load(teacher, weights_only=True)
    content["state_dict"] = {name: value * torch.nan for name, value in content["state_dict"].items()}
    torch.save(content, teacher)
    with pytest.raises(ValueError, match=r"^a teacher gives probabilities that are no numbers; give another, or --tr"):
        reinforce(tmp_path / "store", "--teacher", teacher)


def test_a_table_that_no_index_tells_of_is_kept(teacher: str, tmp_path: Path) -> None:
    (tmp_path / "answers.npy").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"answers.npy exists; choose another --output or add --overwrite$"):
        reinforce(tmp_path, "--teacher", teacher)
    reinforce(tmp_path, "--teacher", teacher, "--num_samples", "1", "--overwrite")

    assert (tmp_path / "answers.npy").stat().st_size > SAMPLES


class Code:
    """Runs when it is unpickled carelessly."""

    def __reduce__(self) -> Any:
        return print, ("run",)


def test_a_teacher_with_code_in_its_file_is_refused(teacher: str, tmp_path: Path) -> None:
    torch.save(torch.load(teacher, weights_only=True) | {"extra": Code()}, path := str(tmp_path / "code.ckpt"))
    with pytest.raises(ValueError, match=r"code.ckpt was refused: reading it would run code from the file"):
        reinforce(tmp_path / "store", "--teacher", path)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at nothing.ckpt"):
        reinforce(tmp_path / "store", "--teacher", "nothing.ckpt")


def test_row_20_a_student_of_few_digits_learns_more_from_a_store_than_from_labels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.study_reinforcement import scores

    found = scores(0, 80, 60, {"reinforced": 8})

    assert found["reinforced"] > found["hard labels"]


@pytest.mark.slow
def test_row_20_a_student_beats_hard_labels_over_five_seeds_by_more_than_two_standard_errors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.study_reinforcement import STEPS, TEACHER_STEPS, scores

    found = [scores(seed, TEACHER_STEPS, STEPS, {"reinforced": 16}) for seed in range(5)]
    gains = torch.tensor([each["reinforced"] - each["hard labels"] for each in found])

    assert gains.mean() > 2 * gains.std() / 5**0.5

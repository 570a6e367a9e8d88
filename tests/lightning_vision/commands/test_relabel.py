"""A teacher scores every cell of the training images once, and a student learns from labels of its crops."""

import json
import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_vision import ImageClassifier, main
from lightning_vision.base.weights import module_from_checkpoint
from lightning_vision.classification.score_maps import score_maps
from lightning_vision.commands import relabel as command
from lightning_vision.datamodules import Digits, ImageFolder, ReLabel
from lightning_vision.datamodules.augmentation import ResizedCrop
from support.photos import digit_folder
from support.trainers import quiet_trainer

CPU = ["--trainer.accelerator", "cpu", "--trainer.logger", "false"]
DATA = ["--data", "Digits", "--data.batch_size", "100"]
SAMPLES = 1258


def relabel(output: Path, *flags: str) -> dict[str, Any]:
    return main(["relabel", *DATA, *CPU, "--output", str(output), *flags]).output


@pytest.fixture
def teacher(trained: bytes, tmp_path: Path) -> str:
    """A checkpoint of a ResNet-8."""
    (tmp_path / "teacher.ckpt").write_bytes(trained)
    return str(tmp_path / "teacher.ckpt")


def images() -> tuple[Tensor, Tensor]:
    """All training images, normalised, and their labels."""
    data = Digits()
    data.setup()
    assert data.train_set is not None
    fetched = data.train_set.fetch(torch.arange(SAMPLES))
    assert isinstance(fetched.target, Tensor)
    return data.normalise(fetched.image), fetched.target


def test_row_26_the_label_of_a_whole_image_is_what_the_teacher_says_of_it(teacher: str, tmp_path: Path) -> None:
    relabel(tmp_path / "all", "--teacher", teacher, "--top_k", "10")
    found = relabel(tmp_path / "few", "--teacher", teacher, "--top_k", "3")
    with torch.no_grad():
        said = module_from_checkpoint(teacher).eval()(images()[0]).softmax(1)
    apart = {}
    for name in ("all", "few"):
        data = ReLabel(Digits(batch_size=SAMPLES), tmp_path / name)
        batch = next(iter(data.train_dataloader()))
        _, target = data.on_after_batch_transfer(batch, 0)  # type: ignore[misc]  # a pair
        apart[name] = (target - said[batch[2]]).abs()  # type: ignore[index]  # a triple

    # Half precision keeps 11 bits of scores up to 16; what is left out counts as its mean.
    assert apart["all"].max() < 5e-3
    assert apart["all"].mean() < 2e-4
    assert apart["few"].mean() < 2e-2
    assert found["agreement"] > 0.98
    assert found["accuracy"] == pytest.approx((said.argmax(1) == images()[1]).double().mean(), abs=1e-3)


def test_the_store_holds_the_highest_scores_of_every_cell(
    teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = relabel(tmp_path / "store", "--teacher", teacher, "--top_k", "3", "--image_size", "16")
    table = np.load(tmp_path / "store" / "answers.npy", allow_pickle=False)
    larger = nn.functional.interpolate(images()[0], (16, 16), mode="bilinear", antialias=True)
    with torch.no_grad():
        maps = score_maps(module_from_checkpoint(teacher).eval().network, larger)
    top = maps.permute(0, 2, 3, 1).topk(10)
    scores = top.values[..., :3] - top.values[..., 3:].mean(3, keepdim=True)

    assert found["map_size"] == (4, 4)
    assert table.shape == (SAMPLES, 4, 4, 3)
    assert (table["class"] == top.indices[..., :3].numpy()).mean() > 0.999
    assert np.abs(table["score"].astype(np.float32) - scores.numpy()).max() < 2e-2
    assert 4 * 4 * 3 * 4 <= found["bytes_per_image"] < 4 * 4 * 3 * 4 + 1
    kept = torch.zeros_like(maps).scatter_(1, top.indices[..., :3].permute(0, 3, 1, 2), scores.permute(0, 3, 1, 2))
    elsewhere = top.indices[..., 0] != kept.mean((2, 3)).argmax(1)[:, None, None]
    assert found["elsewhere"] == pytest.approx(elsewhere.double().mean(), abs=5e-3)
    assert re.search(
        rf"cells that name another class +{found['elsewhere']:.4f}$", capsys.readouterr().out, re.MULTILINE
    )


class Stops(ImageClassifier):
    """Stops the command after `limit` images."""

    shown: ClassVar[int] = 0
    limit: ClassVar[int] = 10**6

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.network.stem.register_forward_pre_hook(self.count)

    @staticmethod
    def count(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if Stops.shown >= Stops.limit:
            raise KeyboardInterrupt
        Stops.shown += len(inputs[0])


def test_an_interrupted_command_goes_on_and_writes_the_same(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = torch.load(teacher, weights_only=True)
    torch.save(content | {"class_path": f"{__name__}.Stops"}, teacher)
    straight = relabel(tmp_path / "straight", "--teacher", teacher)
    monkeypatch.setattr(Stops, "shown", 0)
    monkeypatch.setattr(Stops, "limit", 700)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        relabel(tmp_path / "store", "--teacher", teacher)
    index = json.loads((tmp_path / "store" / "store.json").read_text())
    assert index["done"] == index["tallies"]["images"] == 700
    monkeypatch.setattr(Stops, "limit", 10**6)
    monkeypatch.setattr(Stops, "shown", 0)
    found = relabel(tmp_path / "store", "--teacher", teacher, "--data.batch_size", "90", "--data.seed", "9")
    assert Stops.shown - 6 == SAMPLES - 700  # two images are looked at three times before it begins
    again = relabel(tmp_path / "store", "--teacher", teacher)

    tables = [np.load(tmp_path / name / "answers.npy") for name in ("straight", "store")]
    assert np.abs(tables[0]["score"].astype(np.float32) - tables[1]["score"].astype(np.float32)).max() < 2e-2
    assert found | {"store": ""} == pytest.approx(straight | {"store": ""}, abs=1e-6)
    assert again == found


def test_an_image_that_cannot_be_read_has_no_map(tmp_path: Path) -> None:
    data = ImageFolder(digit_folder(tmp_path / "photos"), 8, channels=1, batch_size=16, on_bad_image="skip")
    data.setup()
    assert data.train_set is not None
    Path(data.train_set.paths[3]).write_bytes(b"no image")  # type: ignore[attr-defined]  # FileImages
    teacher = ImageClassifier("resnet8_cifar", data.num_classes, 1)
    trainer = quiet_trainer()
    trainer.strategy.connect(teacher)
    trainer.save_checkpoint(tmp_path / "teacher.ckpt")
    given = ["--data", "ImageFolder", "--data.root", str(tmp_path / "photos"), "--data.image_size", "8"]
    given += ["--data.channels", "1", "--data.batch_size", "16", "--data.on_bad_image", "skip", "--top_k", "1"]
    given += ["--teacher", str(tmp_path / "teacher.ckpt"), "--output", str(tmp_path / "store")]
    with pytest.warns(UserWarning, match="left out 1 of"):
        found = main(["relabel", *CPU, *given]).output
    scores = np.load(tmp_path / "store" / "answers.npy")["score"]

    assert np.isnan(scores[3]).all()
    assert np.isfinite(np.delete(scores, 3, 0)).all()
    assert found["images"] == len(data.train_set) - 1


def test_a_store_of_something_else_is_kept(teacher: str, tmp_path: Path) -> None:
    relabel(tmp_path / "store", "--teacher", teacher)
    message = r"store holds a store with other top_k and data; choose another --output or add --overwrite$"
    with pytest.raises(FileExistsError, match=message):
        relabel(tmp_path / "store", "--teacher", teacher, "--top_k", "2", "--data.split_seed", "1")
    with pytest.raises(
        ValueError, match=r"was made by `lightning_vision relabel`, not by `lightning_vision reinforce`"
    ):
        main(["reinforce", *DATA, *CPU, "--teacher", teacher, "--output", str(tmp_path / "store")])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--top_k", "11"],
            r"^--top_k 11 must be between 1 and the 10 classes and --image_size None at least 1 pixel$",
        ),
        (["--image_size", "0"], r"and --image_size 0 at least 1 pixel$"),
        (["--trainer.devices", "2"], r"^relabel runs in one process, not 2; add --trainer.devices 1$"),
        (["--data", "support.command_toys.ToyData"], r"^ToyData is not a datamodule that can be relabelled; give one"),
        (
            ["--teacher", "resnet50"],
            r"^timm has weights for 1000 classes and 3 channels of resnet50, and Digits has 10",
        ),
        (
            ["--teacher", "resnet8_cifar"],
            r"^timm has no weights of resnet8_cifar, and Digits has 10 classes and 1 chann",
        ),
    ],
)
def test_impossible_options_are_refused(flags: list[str], message: str, teacher: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        relabel(tmp_path / "store", "--teacher", teacher, *flags)
    assert not (tmp_path / "store").exists()


def test_a_teacher_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at nothing.ckpt"):
        relabel(tmp_path / "store", "--teacher", "nothing.ckpt")


class Squashed(nn.Module):
    """A head with more than a mean before its linear layer."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor, **options: Any) -> Tensor:
        answer: Tensor = self.head(3 * features, **options)
        return answer


@pytest.mark.parametrize("broken", ["head", "numbers"])
def test_a_teacher_whose_mean_is_not_its_answer_is_refused(broken: str, teacher: str, tmp_path: Path) -> None:
    module = module_from_checkpoint(teacher)
    assert isinstance(module, ImageClassifier)
    if broken == "head":
        fc = module.network.get_classifier()  # type: ignore[operator]  # timm's
        module.network.head = Squashed(module.network.head)
        module.network.get_classifier = lambda: fc  # type: ignore[assignment]
    else:
        nn.init.constant_(module.network.get_classifier().weight, torch.nan)  # type: ignore[operator]
    data = Digits()
    annotator = command._Annotator(module.eval(), "", data.mean, data.std, None, quiet_trainer().precision_plugin)
    with pytest.raises(
        ValueError, match=r"^the mean of what ResNetCIFAR says of every cell is \S+ away from what it sa"
    ):
        annotator.check(torch.randint(0, 255, (2, 1, 8, 8), dtype=torch.uint8))


def test_a_network_of_timms_by_name_sees_images_as_it_learned_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ImageClassifier] = []

    def make(name: str, num_classes: int, in_channels: int, pretrained: bool) -> ImageClassifier:
        assert pretrained
        made.append(ImageClassifier(name, num_classes, in_channels))
        return made[0]

    monkeypatch.setattr(command, "ImageClassifier", make)
    data = Digits()
    monkeypatch.setattr(Digits, "num_classes", 1000)
    monkeypatch.setattr(data, "in_channels", 3)
    annotator = command._annotator("resnet18.a1_in1k", data, None, quiet_trainer())
    image = torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8)
    mean, std = (torch.tensor(it).view(3, 1, 1) for it in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        maps = score_maps(made[0].network.eval(), (image / 255 - mean) / std)

        assert torch.allclose(annotator(image), maps, atol=1e-4)
    assert annotator.origin == "timm resnet18.a1_in1k"


def test_a_student_learns_crops_from_labels_of_their_own(teacher: str, tmp_path: Path) -> None:
    relabel(tmp_path / "store", "--teacher", teacher)
    torch.manual_seed(0)
    data = ReLabel(Digits(batch_size=64, augment=ResizedCrop(scale=(0.3, 1.0), flip=False)), tmp_path / "store")
    student = ImageClassifier("resnet8_cifar", 10, 1, optimizer=lambda groups: torch.optim.AdamW(groups, lr=0.01))
    trainer = quiet_trainer(max_epochs=4)
    trainer.fit(student, datamodule=data)
    (metrics,) = trainer.validate(student, datamodule=data, verbose=False)

    assert metrics["val/acc"] > 0.8

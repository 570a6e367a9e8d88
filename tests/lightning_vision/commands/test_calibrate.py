"""A checkpoint is calibrated from the command line, and everything made of it is calibrated then."""

import json
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_vision import ImageClassifier, main
from lightning_vision.base.weights import module_from_checkpoint
from lightning_vision.classification.calibration import Calibration
from lightning_vision.classification.reliability_bins import reliability
from lightning_vision.datamodules import Digits
from lightning_vision.datamodules.common._sets import ArrayImages
from support.trainers import quiet_trainer

pytestmark = pytest.mark.one_worker

CPU = ["--trainer.accelerator", "cpu", "--trainer.logger", "false"]
DATA = ["--data", "Digits", "--data.batch_size", "100"]


class NoValidation(Digits):
    """Digits without a validation split."""

    def load(self) -> None:
        super().load()
        self.val_set = None


class OneClass(Digits):
    """Its validation digits are all zeros."""

    def load(self) -> None:
        super().load()
        assert isinstance(self.val_set, ArrayImages)
        zeros = self.val_set.targets == 0
        self.val_set = ArrayImages(self.val_set.images[zeros], self.val_set.targets[zeros])


class ForeignData(LightningDataModule):
    """A datamodule as other people write them: no test split, batches of a normalised image and a label."""

    num_classes, in_channels = 10, 1

    def val_dataloader(self) -> DataLoader[Any]:
        image, target = digits("val")
        return DataLoader(list(zip(image, target, strict=True)), batch_size=64)  # type: ignore[arg-type]  # a list will do


class Mute(LightningDataModule):
    """Offers nothing to validate on."""

    num_classes, in_channels = 10, 1


def digits(split: str) -> tuple[Tensor, Tensor]:
    """All digits of a split, normalised."""
    data = Digits(batch_size=1000)
    image, target = data.on_after_batch_transfer(next(iter(getattr(data, f"{split}_dataloader")())), 0)
    return image, target


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A checkpoint of a network that is too sure of itself: its last layer is twenty times what was learned."""
    torch.manual_seed(0)
    module, data = ImageClassifier("resnet8_cifar", num_classes=10, in_channels=1), Digits(batch_size=64)
    trainer = quiet_trainer(max_steps=15, limit_val_batches=0)
    trainer.fit(module, datamodule=data)
    with torch.no_grad():
        for parameter in module.network.get_classifier().parameters():
            parameter.mul_(20)
    path = tmp_path_factory.mktemp("trained") / "best.ckpt"
    trainer.save_checkpoint(path)
    return path.read_bytes()


@pytest.fixture
def best(trained: bytes, tmp_path: Path) -> str:
    """The checkpoint, in the test's own folder."""
    (tmp_path / "best.ckpt").write_bytes(trained)
    return "best.ckpt"


def calibrate(*args: str) -> dict[str, Any]:
    output = main(["calibrate", *CPU, *args]).output
    assert isinstance(output, dict)
    return output


def logits_of(path: str, split: str = "val") -> tuple[Tensor, Tensor]:
    """Of the network alone, whatever calibrates it."""
    module: Any = module_from_checkpoint(path)
    image, target = digits(split)
    with torch.no_grad():
        return module.network.eval()(image), target


def test_the_file_holds_the_best_temperature_and_everything_that_the_old_one_held(best: str) -> None:
    output = calibrate(*DATA, "--ckpt_path", best)
    old, new = (torch.load(path, weights_only=True) for path in (best, output["checkpoint"]))
    logits, target = logits_of(best)
    scaled = minimize_scalar(lambda t: float(F.cross_entropy(logits.double() / t, target)), bounds=(0.1, 50))

    assert output["checkpoint"] == str(Path("best-calibrated.ckpt").absolute())
    assert new["calibration"] == {"temperature": output["temperature"], "delta": None}
    assert output["temperature"] == pytest.approx(scaled.x, rel=1e-4)
    assert list(new) == list(old)
    assert list(new["state_dict"]) == list(old["state_dict"])
    assert all(torch.equal(new["state_dict"][name], old["state_dict"][name]) for name in old["state_dict"])
    assert new["hyper_parameters"] == old["hyper_parameters"]
    assert old["calibration"] is None


def test_the_figures_are_those_of_both_splits(best: str, capsys: pytest.CaptureFixture[str]) -> None:
    output = calibrate(*DATA, "--ckpt_path", best)
    printed = capsys.readouterr().out
    logits, target = logits_of(best, "test")
    told = output["test"]["after"]
    divided = logits / output["temperature"]

    assert told["nll"] == pytest.approx(float(F.cross_entropy(divided, target)), rel=1e-5)
    assert told["ece"] == pytest.approx(reliability(divided.softmax(1), target).ece, abs=1e-6)
    assert (
        told["acc"]
        == output["test"]["before"]["acc"]
        == pytest.approx(float((logits.argmax(1) == target).float().mean()))
    )
    assert output["val"]["after"]["nll"] < output["val"]["before"]["nll"]
    assert output["test"]["after"]["ece"] < output["test"]["before"]["ece"]
    assert f"temperature {output['temperature']:.4g}, fitted on 180 images of Digits" in printed
    assert Path(output["picture"]).read_bytes().startswith(b"\x89PNG")


def test_tests_and_predictions_of_the_file_are_calibrated(best: str) -> None:
    output = calibrate(*DATA, "--ckpt_path", best)
    file = output["checkpoint"]
    tested = main(["test", *CPU, *DATA, "--ckpt_path", file]).metrics
    built = ["--model", "ImageClassifier", "--model.backbone", "resnet8_cifar"]
    configured = main(["test", *CPU, *DATA, *built, "--ckpt_path", file]).metrics
    written = main(["predict", *CPU, *DATA, "--ckpt_path", file, "--output", "out"]).output
    lines = [json.loads(line) for line in Path(written["jsonl"]).read_text().splitlines()]
    expected = (logits_of(best, "test")[0] / output["temperature"]).softmax(1)

    assert tested["test/loss"] == pytest.approx(output["test"]["after"]["nll"], rel=1e-5)
    assert tested["test/ece"] == pytest.approx(output["test"]["after"]["ece"], abs=1e-5)
    assert configured == tested
    assert torch.allclose(torch.tensor([line["probabilities"] for line in lines]), expected, atol=1e-6)


def test_exported_programs_of_the_file_give_calibrated_logits_and_say_so(best: str) -> None:
    output = calibrate(*DATA, "--ckpt_path", best, "--method", "neural_clamping", "--lr", "0.005", "--penalty", "0")
    told = ["--ckpt_path", output["checkpoint"], "--output", "out"]
    files = main(["export", *CPU, *told, "--format", "[onnx,torch_export]"]).output["files"]
    data = Digits(batch_size=7)
    pixels, _, _ = next(iter(data.test_dataloader()))
    module: Any = module_from_checkpoint(output["checkpoint"])
    found = module.calibration
    with torch.no_grad():
        plain = module.network.eval()(data.normalise(pixels))
        expected = module.network(data.normalise(pixels) + found.delta) / output["temperature"]
    extra = {"metadata.json": ""}
    program = torch.export.load(files["torch_export"], extra_files=extra).module()
    session = onnxruntime.InferenceSession(files["onnx"], providers=["CPUExecutionProvider"])
    (onnx_logits,) = session.run(["logits"], {"image": pixels.numpy()})

    assert float(found.delta.abs().max()) > 1e-3
    assert float((program(pixels) - expected).abs().max()) < 1e-4
    assert float((torch.from_numpy(onnx_logits) - expected).abs().max()) < 1e-4
    assert float((plain - expected).abs().max()) > 1e-2
    for metadata in (json.loads(extra["metadata.json"]), session.get_modelmeta().custom_metadata_map):
        said = json.loads(metadata["calibration"])
        assert said == {"temperature": output["temperature"], "shift": True, "applied": True}
    with pytest.raises(ValueError, match=r"^a timm file holds weights alone, and the checkpoint's calibration shifts"):
        main(["export", *CPU, *told, "--format", "timm", "--overwrite"])


def test_a_timm_file_says_by_what_to_divide(best: str, capsys: pytest.CaptureFixture[str]) -> None:
    output = calibrate(*DATA, "--ckpt_path", best)
    built = ["--model", "ImageClassifier", "--model.backbone", "resnet8_cifar", "--model.num_classes", "10"]
    told = ["--model.in_channels", "1", "--ckpt_path", output["checkpoint"], "--output", "out", "--format", "timm"]
    main(["export", *CPU, *built, *told])

    said = f"it holds weights alone: divide its logits by {output['temperature']:.6g} to calibrate them"
    assert said in capsys.readouterr().out


def test_a_calibrated_file_is_calibrated_anew_and_not_twice(best: str, capsys: pytest.CaptureFixture[str]) -> None:
    first = calibrate(*DATA, "--ckpt_path", best)
    again = calibrate(*DATA, "--ckpt_path", first["checkpoint"], "--output", "again")

    assert again["checkpoint"] == str(Path("again/best-calibrated-calibrated.ckpt").absolute())
    assert Path("again/reliability.png").exists()
    assert again["temperature"] == first["temperature"]
    assert again["val"] == first["val"]
    assert "best-calibrated.ckpt is calibrated already; its temperature" in capsys.readouterr().out


def test_several_labels_an_image_keep_their_decisions() -> None:
    """A threshold moves with the probability that it stands for."""
    torch.manual_seed(0)
    module = ImageClassifier("resnet8_cifar", num_classes=10, in_channels=1, loss="bce")
    trainer = quiet_trainer(max_steps=30, limit_val_batches=0)
    trainer.fit(module, datamodule=Digits())
    module.thresholds = [0.3, 0.5, *[0.7] * 8]
    trainer.save_checkpoint("labels.ckpt")
    output = calibrate(*DATA, "--ckpt_path", "labels.ckpt")
    moved = torch.load(output["checkpoint"], weights_only=True)["thresholds"]
    logits, _ = logits_of("labels.ckpt")
    before = logits.sigmoid() > torch.tensor([0.3, 0.5, *[0.7] * 8])

    assert moved[1] == pytest.approx(0.5)
    assert torch.equal((logits / output["temperature"]).sigmoid() > torch.tensor(moved), before)
    assert output["temperature"] != pytest.approx(1.0, rel=1e-3)
    assert output["val"]["after"]["nll"] < output["val"]["before"]["nll"]
    with pytest.raises(
        ValueError, match=r"^neural_clamping takes one label an image and this model gives several; use"
    ):
        calibrate(*DATA, "--ckpt_path", "labels.ckpt", "--method", "neural_clamping", "--overwrite")


def test_a_fit_that_goes_on_drops_the_calibration(best: str) -> None:
    file = calibrate(*DATA, "--ckpt_path", best)["checkpoint"]
    module: Any = module_from_checkpoint(file)
    trainer = quiet_trainer(max_steps=1, limit_val_batches=0)

    assert isinstance(module.calibration, Calibration)
    with pytest.warns(UserWarning, match="the calibration belongs to weights that this fit changes, so it is dropped"):
        trainer.fit(module, datamodule=Digits())
    assert module.calibration is None


def test_data_of_somebody_else_needs_no_test_split(best: str) -> None:
    foreign = calibrate("--data", f"{__name__}.ForeignData", "--ckpt_path", best)
    own = calibrate(*DATA, "--ckpt_path", best, "--overwrite")

    assert foreign["temperature"] == pytest.approx(own["temperature"], rel=1e-6)
    assert "test" not in foreign


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ((*DATA, "--ckpt_path", "gone.ckpt"), r"^no checkpoint at gone.ckpt"),
        (("--ckpt_path", "best.ckpt"), r"^no data given; add --config NAME"),
        (
            ("--data", f"{__name__}.NoValidation", "--ckpt_path", "best.ckpt"),
            r"^NoValidation has no validation split, on",
        ),
        (("--data", f"{__name__}.Mute", "--ckpt_path", "best.ckpt"), r"^Mute has no validation split, on which"),
        (
            ("--data", f"{__name__}.OneClass", "--ckpt_path", "best.ckpt"),
            r"^the validation split of OneClass holds one",
        ),
        (
            (*DATA, "--ckpt_path", "best.ckpt", "--lr", "0.1"),
            r"^--lr goes with --method neural_clamping; a temperature",
        ),
        (
            (*DATA, "--ckpt_path", "best.ckpt", "--trainer.devices", "2", "--trainer.strategy", "ddp"),
            r"^calibrate runs in one process, not 2; add --trainer.devices 1$",
        ),
    ],
)
def test_what_cannot_be_calibrated_is_refused_and_nothing_is_written(
    best: str, args: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        calibrate(*args)
    assert not Path("best-calibrated.ckpt").exists()
    assert not Path("reliability.png").exists()


def test_images_prepared_otherwise_than_trained_on_are_refused(best: str) -> None:
    changed = ["--data", "support.command_toys.LargerDigits", "--data.batch_size", "100"]
    with pytest.raises(ValueError, match=r"trained with image_size \(8, 8\) and LargerDigits gives \(16, 16\), for"):
        main(["calibrate", *CPU, *changed, "--ckpt_path", best])

    assert [path.name for path in Path(best).parent.glob("*calibrated*")] == []


def test_a_model_that_is_no_classifier_is_refused(best: str) -> None:
    toy = ["--model", "support.command_toys.ToyModule", "--ckpt_path", best]
    with pytest.raises(
        ValueError, match=r"^ToyModule is no ImageClassifier, so there are no class logits to calibrate$"
    ):
        calibrate(*DATA, *toy)


def test_an_existing_file_stays_unless_overwriting_is_asked_for(best: str) -> None:
    Path("best-calibrated.ckpt").write_text("mine")
    with pytest.raises(
        FileExistsError, match=r"/best-calibrated.ckpt exists; choose another --output or add --overwrite$"
    ):
        calibrate(*DATA, "--ckpt_path", best)
    kept = Path("best-calibrated.ckpt").read_text()
    calibrate(*DATA, "--ckpt_path", best, "--overwrite")

    assert kept == "mine"
    assert torch.load("best-calibrated.ckpt", weights_only=True)["calibration"]["temperature"] > 1.5

"""An ensemble of checkpoints: the mean of logits, the door through ImageClassifier, and what it refuses."""

import re
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml
from torch import Tensor

from lightning_vision import ImageClassifier, main
from lightning_vision.base.weights import module_from_checkpoint
from lightning_vision.classification.ensemble import LogitEnsemble
from lightning_vision.datamodules import Digits
from support import ROOT
from support.trainers import quiet_trainer

CLASS = "lightning_vision.classification.ensemble.LogitEnsemble"


def trained(
    path: str,
    backbone: str = "resnet8_cifar",
    seed: int = 0,
    loss: Literal["cross_entropy", "bce"] = "cross_entropy",
    **changed: Any,
) -> str:
    """A checkpoint of a network that has taken one step on digits, its preprocessing `changed` afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = ImageClassifier(backbone, num_classes=10, in_channels=1, loss=loss)
    trainer = quiet_trainer(max_steps=1, limit_val_batches=0)
    trainer.fit(module, datamodule=Digits(batch_size=64))
    assert module.preprocessing is not None
    module.preprocessing |= changed
    trainer.save_checkpoint(path)
    return path


def images() -> Tensor:
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_row_157_an_ensemble_of_identical_models_is_the_single_model() -> None:
    path = trained("a.ckpt")
    single = module_from_checkpoint(path).eval()
    with torch.no_grad():
        together = LogitEnsemble([path] * 4).eval()(images())

        assert together.equal(single(images()))


def test_logits_are_averaged_over_architectures() -> None:
    paths = [trained("a.ckpt"), trained("b.ckpt", "resnet20_cifar", seed=1)]
    with torch.no_grad():
        alone = [module_from_checkpoint(path).eval()(images()) for path in paths]
        together = LogitEnsemble(paths).eval()(images())

    torch.testing.assert_close(together, (alone[0] + alone[1]) / 2)
    assert not alone[0].softmax(1).add(alone[1].softmax(1)).div(2).allclose(together.softmax(1), atol=1e-4)


def test_it_is_tested_saved_loaded_and_exported_as_a_classifiers_network(tmp_path: Path) -> None:
    paths = [trained("a.ckpt"), trained("b.ckpt", seed=1)]
    described = {"class_path": CLASS, "init_args": {"checkpoints": paths}}
    module = ImageClassifier(described, num_classes=10, in_channels=1)
    trainer = quiet_trainer()
    (measured,) = trainer.test(module, datamodule=Digits(), verbose=False)
    trainer.save_checkpoint("together.ckpt")
    again = module_from_checkpoint("together.ckpt").eval()

    main(
        [
            "export",
            "--ckpt_path",
            "together.ckpt",
            "--format",
            "torch_export",
            "--output",
            "out",
            "--trainer.accelerator",
            "cpu",
        ]
    )

    assert any(Path("out").iterdir())
    assert 0 <= measured["test/acc"] <= 1
    assert again.preprocessing == module_from_checkpoint(paths[0]).preprocessing
    with torch.no_grad():
        assert again(images()).equal(module.eval()(images()))


def test_the_command_measures_and_predicts_with_it(tmp_path: Path) -> None:
    paths = [trained("a.ckpt"), trained("b.ckpt", seed=1)]
    quiet = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.logger", "false"]
    model = ["--model", "ImageClassifier", "--model.backbone", CLASS]
    model += ["--model.backbone.checkpoints", f"[{','.join(paths)}]", "--data", "Digits"]
    measured = main(["test", *model, *quiet])
    main(["predict", *model, *quiet, "--trainer.limit_predict_batches", "1", "--output", "predictions"])
    trainer = quiet_trainer()
    module = ImageClassifier(LogitEnsemble(paths), num_classes=10, in_channels=1)
    (expected,) = trainer.test(module, datamodule=Digits(), verbose=False)

    assert measured.metrics["test/loss"] == pytest.approx(expected["test/loss"])
    assert Path("predictions/predictions.jsonl").stat().st_size > 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"class_names": list("abcdefghij")},
            "LogitEnsemble: b.ckpt has other classes than a.ckpt (a, b, c, ... and 0, 1, 2, ...); members must be "
            "trained on the same data",
        ),
        (
            {"mean": [0.5]},
            "LogitEnsemble: b.ckpt was trained on images prepared otherwise than those of a.ckpt (mean [0.5] and "
            "{mean}); members must see the same image",
        ),
        (
            {"loss": "bce"},
            "LogitEnsemble: b.ckpt gives several labels an image and a.ckpt one label an image; members must be "
            "trained with losses of one kind",
        ),
    ],
)
def test_members_that_differ_are_refused(changed: dict[str, Any], message: str) -> None:
    first = trained("a.ckpt")
    told = module_from_checkpoint(first).preprocessing
    assert told is not None
    paths = [first, trained("b.ckpt", **changed)]

    with pytest.raises(ValueError, match=f"^{re.escape(message.format(mean=list(told['mean'])))}$"):
        LogitEnsemble(paths)


def test_the_config_of_the_card_builds_one() -> None:
    member = trained("a.ckpt")
    for name in "bcd":
        shutil.copy(member, f"{name}.ckpt")
    card = (ROOT / "docs" / "methods" / "inception_v4.md").read_text()
    _, block = re.findall(r"^```yaml\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
    module = ImageClassifier(**yaml.safe_load(block)["model"]["init_args"], num_classes=10, in_channels=1)

    assert isinstance(module.network, LogitEnsemble)
    assert len(module.network.members) == 4


def test_members_of_several_labels_are_a_classifier_of_several_labels() -> None:
    together = LogitEnsemble([trained("a.ckpt", loss="bce"), trained("b.ckpt", seed=1, loss="bce")])
    module = ImageClassifier(together, num_classes=10, in_channels=1, loss="bce").eval()
    with torch.no_grad():
        probabilities = module.probabilities(images())

        assert probabilities.equal(together(images()).sigmoid())


@pytest.mark.parametrize(
    ("members", "loss", "message"),
    [
        (
            "bce",
            "cross_entropy",
            "the LogitEnsemble given as backbone gives several labels an image and CrossEntropy expects one; pass "
            "loss='bce'",
        ),
        (
            "cross_entropy",
            "bce",
            "the LogitEnsemble given as backbone gives one label an image and BinaryCrossEntropy expects several; "
            "leave loss='bce' out",
        ),
    ],
)
def test_a_loss_of_another_kind_than_the_members_is_refused(
    members: Literal["cross_entropy", "bce"], loss: Literal["cross_entropy", "bce"], message: str
) -> None:
    together = LogitEnsemble([trained("a.ckpt", loss=members)])

    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ImageClassifier(together, num_classes=10, in_channels=1, loss=loss)


@pytest.mark.parametrize("checkpoints", [[], "a.ckpt"])
def test_no_list_of_checkpoints_is_refused(checkpoints: Any) -> None:
    message = f"LogitEnsemble: checkpoints is {checkpoints!r}; give a list of at least one path"

    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        LogitEnsemble(checkpoints)


def test_a_member_that_does_not_exist_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"^no checkpoint at lost\.ckpt$"):
        LogitEnsemble(["lost.ckpt"])

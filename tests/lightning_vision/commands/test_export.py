"""Exported files give the checkpoint's logits, read back the way a stranger reads them."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import onnxruntime
import pytest
import timm
import torch
from lightning.pytorch import LightningDataModule, Trainer
from PIL import Image
from safetensors import safe_open
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_vision import main
from lightning_vision.base.raw_images import read_batch
from lightning_vision.callbacks.pruning._channels import zeroed
from lightning_vision.callbacks.pruning._groups import channel_groups
from lightning_vision.classification.classifier import ImageClassifier
from lightning_vision.commands._files import saved_preprocessing
from lightning_vision.datamodules import Digits
from lightning_vision.datamodules.common._loader import ShardedLoader
from lightning_vision.images import normalise, read_image
from lightning_vision.self_supervised import SimMIM
from support.trainers import quiet_trainer

MEAN, STD = [0.48, 0.42, 0.36], [0.24, 0.21, 0.27]
BRANCHING = {"class_path": f"{__name__}.Branching"}


class Downloaded(Digits):
    """Digits that must be fetched first; keeps what was called."""

    calls: ClassVar[list[str]] = []

    def prepare_data(self) -> None:
        self.calls.append("prepare_data")

    def setup(self, stage: str | None = None) -> None:
        self.calls.append(f"setup {stage}")
        super().setup(stage)

    def teardown(self, stage: str) -> None:
        self.calls.append(f"teardown {stage}")
        super().teardown(stage)


class Damaged(Downloaded):
    """Its first batch cannot be read."""

    def predict_dataloader(self) -> ShardedLoader:
        raise ValueError("the first batch is damaged")


class ForeignData(LightningDataModule):
    """A datamodule that knows nothing of this project."""

    def predict_dataloader(self) -> DataLoader[Any]:
        return DataLoader([(torch.zeros(1, 8, 8), 0)])


class Branching(nn.Module):
    """Its path depends on pixel values, which no program can express."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(image.flatten(1)) if image.sum() > 0 else self.head(-image.flatten(1))


def build(backbone: Any, channels: int = 1, side: int = 8) -> ImageClassifier:
    """A module in evaluation mode whose batch norms have seen something."""
    module = ImageClassifier(backbone, num_classes=10, in_channels=channels)
    with torch.no_grad():
        for _ in range(3):
            module(torch.randn(8, channels, side, side))
    module.preprocessing = {
        "class_names": [f"class {k}" for k in range(10)],
        "channels": channels,
        "image_size": (side, side),
        "resize": "crop",
        "mean": MEAN[:channels],
        "std": STD[:channels],
    }
    return module.eval()


def save(module: ImageClassifier) -> None:
    """Write `best.ckpt` as a Trainer does."""
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint("best.ckpt")


def photos(count: int = 5) -> list[str]:
    """Crops of scikit-learn's photograph, 40x60 pixels each."""
    Path("photos").mkdir(exist_ok=True)
    whole = Image.fromarray(load_sample_image("flower.jpg"))
    paths = [f"photos/{k}.png" for k in range(count)]
    for k, path in enumerate(paths):
        whole.crop((100 * k, 50 * k, 100 * k + 60, 50 * k + 40)).save(path)
    return paths


def export(*args: str) -> dict[str, Any]:
    output = main(["export", "--ckpt_path", "best.ckpt", "--trainer.accelerator", "cpu", *args]).output
    assert isinstance(output, dict)
    return output


def left() -> set[str]:
    return {path.name for path in Path("out").iterdir()} if Path("out").exists() else set()


@pytest.mark.parametrize(
    ("backbone", "channels", "side"),
    [
        ("resnet8_cifar", 1, 8),
        ("test_vit", 3, 160),
        *(
            pytest.param(*it, marks=pytest.mark.slow)
            for it in (
                ("cct_2_3x2_32", 3, 32),
                ("maxout_cifar", 3, 32),
                ("test_efficientnet", 3, 64),
                ("resnet18", 3, 32),
            )
        ),
    ],
)
def test_files_give_the_logits_of_the_checkpoint_for_one_image_and_for_five(
    backbone: str, channels: int, side: int
) -> None:
    module, paths = build(backbone, channels, side), photos()
    save(module)
    files = export("--format", "all", "--images", "photos")["files"]
    pixels = torch.stack([read_image(path, channels, (side, side)) for path in paths])
    program = torch.export.load(files["torch_export"]).module()
    session = onnxruntime.InferenceSession(files["onnx"], providers=["CPUExecutionProvider"])
    network = timm.create_model(backbone, num_classes=10, in_chans=channels, checkpoint_path=files["timm"]).eval()

    for count in (1, 5):
        with torch.no_grad():
            prepared = read_batch(paths[:count], module.preprocessing or {}, "cpu")
            expected = module(prepared)
            onnx_logits = session.run(["logits"], {"image": pixels[:count].numpy()})[0]

            assert float((program(pixels[:count]) - expected).abs().max()) < 1e-4
            assert float((torch.from_numpy(onnx_logits) - expected).abs().max()) < 1e-4
            assert torch.equal(network(prepared), expected)


def test_of_a_learner_without_labels_the_backbone_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"patch_size": 2, "embed_dim": 24, "depth": 1, "num_heads": 2}
    learner = SimMIM(2 / 3, 4, backbone="vit_tiny_patch16_224", image_size=8, in_channels=1, backbone_settings=sizes)
    data = Digits(batch_size=64)
    trainer = quiet_trainer(max_steps=1, limit_val_batches=0)
    trainer.fit(learner, datamodule=data)
    trainer.save_checkpoint("last.ckpt")
    result = main(["export", "--ckpt_path", "last.ckpt", "--format", "[timm,torch_export]", "--output", str(tmp_path)])
    assert isinstance(result.output, dict)
    printed = capsys.readouterr().out
    (call,) = [line for line in printed.splitlines() if "timm.create_model(" in line]
    network = eval(call.strip(), {"timm": timm}).eval()
    image = data.normalise(data.test_set.fetch(torch.arange(3)).image)

    assert max(result.output["differences"].values()) < 1e-4 and "of features on" in printed
    torch.testing.assert_close(network(image), learner.eval().features(image), rtol=1e-4, atol=1e-4)


def test_programs_take_bytes_and_any_batch_size() -> None:
    save(build("resnet8_cifar"))
    files = export()["files"]
    session = onnxruntime.InferenceSession(files["onnx"], providers=["CPUExecutionProvider"])
    image = session.get_inputs()[0]

    assert list(files) == ["onnx", "torch_export"]
    assert (image.name, image.type, image.shape) == ("image", "tensor(uint8)", ["batch", 1, 8, 8])
    assert [(output.name, output.shape) for output in session.get_outputs()] == [("logits", ["batch", 10])]


def test_each_file_says_how_to_prepare_an_image_and_what_the_classes_are() -> None:
    save(build("resnet8_cifar"))
    files = export("--format", "all")["files"]
    extra = {"metadata.json": ""}
    torch.export.load(files["torch_export"], extra_files=extra)
    session = onnxruntime.InferenceSession(files["onnx"], providers=["CPUExecutionProvider"])
    with safe_open(files["timm"], "pt") as weights:
        told = [json.loads(extra["metadata.json"]), session.get_modelmeta().custom_metadata_map, weights.metadata()]

    for metadata in told:
        assert metadata["output"] == "logits"
        assert json.loads(metadata["class_names"]) == [f"class {k}" for k in range(10)]
        assert json.loads(metadata["mean"]) == MEAN[:1]
        assert json.loads(metadata["image_size"]) == [8, 8]


def test_the_printed_call_loads_the_timm_file(capsys: pytest.CaptureFixture[str]) -> None:
    module = build("allcnn_a")
    save(module)
    export("--format", "timm", "--output", "out")
    printed = capsys.readouterr().out
    call = re.findall(r"timm\.create_model\(.*\)", printed)[0]
    network = eval(call, {"timm": timm}).eval()
    image = torch.randn(3, 1, 8, 8)

    assert "import lightning_vision.backbones" in printed
    assert torch.equal(network(image), module(image))
    assert left() == {"model.safetensors"}


def test_configured_data_is_what_the_files_are_compared_on(capsys: pytest.CaptureFixture[str]) -> None:
    module = build("resnet8_cifar")
    module.preprocessing = Digits().preprocessing
    save(module)
    differences = export("--data", "Digits")["differences"]
    printed = capsys.readouterr().out

    assert "largest difference of logits on 16 images of Digits" in printed
    assert f"{differences['onnx']:.1e}" in printed
    assert 0 < max(differences.values()) < 1e-4


def test_a_wrong_normalisation_is_noticed_on_configured_data_and_nothing_is_written() -> None:
    module = build("resnet8_cifar")
    module.preprocessing = {**Digits().preprocessing, "std": [0.5]}
    save(module)

    with pytest.raises(ValueError, match=r"^nothing was written: torch_export logits are off by .*, more than 1e-04$"):
        export("--data", "Digits", "--format", "torch_export", "--output", "out")
    assert left() == set()


def test_configured_data_is_fetched_set_up_and_torn_down() -> None:
    module = build("resnet8_cifar")
    module.preprocessing = Digits().preprocessing
    save(module)
    Downloaded.calls.clear()
    export("--data", f"{__name__}.Downloaded", "--format", "timm")
    calls = list(dict.fromkeys(Downloaded.calls))

    assert [calls[0], calls[1], calls[-1]] == ["prepare_data", "setup predict", "teardown predict"]


def test_configured_data_is_torn_down_after_an_error() -> None:
    save(build("resnet8_cifar"))
    Downloaded.calls.clear()

    with pytest.raises(ValueError, match=r"^the first batch is damaged$"):
        export("--data", f"{__name__}.Damaged", "--format", "timm", "--output", "out")
    assert Downloaded.calls[-1] == "teardown predict"
    assert left() == set()


def test_data_of_somebody_else_is_refused_unless_files_are_named() -> None:
    save(build("resnet8_cifar"))
    photos(2)
    with pytest.raises(ValueError, match=r"^ForeignData is not of this package and .* compare on by --images$"):
        export("--data", f"{__name__}.ForeignData", "--format", "timm", "--output", "out")
    left_after_refusal = left()

    assert left_after_refusal == set()
    assert export("--data", f"{__name__}.ForeignData", "--format", "timm", "--images", "photos")["differences"]


def test_without_images_or_data_the_comparison_on_noise_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    save(build("resnet8_cifar"))
    export("--format", "timm")

    assert "largest difference of logits on noise, for there are neither --images nor data" in capsys.readouterr().out


def test_large_logits_are_held_to_a_share_of_the_largest() -> None:
    module = build("resnet8_cifar")
    with torch.no_grad():
        module.network.get_classifier().weight.mul_(1e5)
    save(module)

    assert export("--format", "onnx")["differences"]["onnx"] > 1e-4


def test_a_model_that_a_config_builds_gets_the_weights_of_the_checkpoint() -> None:
    module = build("resnet8_cifar")
    save(module)
    built = ["--model", "ImageClassifier", "--model.backbone", "resnet8_cifar", "--model.num_classes", "10"]
    files = export("--format", "timm", *built, "--model.in_channels", "1")["files"]
    network = timm.create_model("resnet8_cifar", num_classes=10, in_chans=1, checkpoint_path=files["timm"]).eval()
    image = torch.randn(2, 1, 8, 8)

    assert torch.equal(network(image), module(image))


def masked(backbone: str = "resnet8_cifar") -> ImageClassifier:
    """A module in whose inner layers half of the channels are zero, as structured pruning leaves them."""
    module = build(backbone)
    groups = channel_groups(module.network, torch.zeros(2, 1, 8, 8))
    parameters = dict(module.network.named_parameters())
    with torch.no_grad():
        for name, mask in zeroed(parameters, {group: range(0, group.size, 2) for group in groups}).items():
            parameters[name].mul_(mask)
    return module


def test_a_masked_checkpoint_is_exported_as_a_smaller_program_with_its_logits(
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = masked()
    save(module)
    whole = export("--output", "whole")["files"]
    shrunk = export("--output", "shrunk", "--shrink", "true")["files"]
    pixels = torch.randint(256, (5, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        expected = module(normalise(pixels, MEAN[:1], STD[:1]))
    session = onnxruntime.InferenceSession(shrunk["onnx"], providers=["CPUExecutionProvider"])
    program = torch.export.load(shrunk["torch_export"])
    sizes = [
        sum(Path(files["onnx"]).parent.joinpath(it).stat().st_size for it in onnx_files(files))
        for files in (whole, shrunk)
    ]
    widths = [program.state_dict[f"network.stages.{stage}.0.conv1.weight"].shape[0] for stage in range(3)]

    assert "shrunk from 75,002 to 38,026 parameters" in capsys.readouterr().out
    assert widths == [8, 16, 32]
    assert sizes[1] < 0.7 * sizes[0]
    assert float((program.module()(pixels) - expected).abs().max()) < 1e-5
    assert (
        float((torch.from_numpy(session.run(["logits"], {"image": pixels.numpy()})[0]) - expected).abs().max()) < 1e-5
    )


def onnx_files(files: dict[str, str]) -> list[str]:
    """The model and, where the exporter puts weights apart, its data."""
    return [path.name for path in Path(files["onnx"]).parent.glob("model.onnx*")]


def test_shrinking_what_has_no_zero_channel_or_what_timm_builds_is_refused() -> None:
    save(build("resnet8_cifar"))

    with pytest.raises(ValueError, match=r"^no channel of the network is zero, so there is nothing to cut; leave out"):
        export("--shrink", "true", "--output", "out")
    with pytest.raises(ValueError, match=r"^a timm file has the widths that timm builds, .* leave out `timm`$"):
        export("--shrink", "true", "--format", "all", "--output", "out")
    assert left() == set()


def test_existing_files_stay_unless_overwriting_is_asked_for() -> None:
    save(build("resnet8_cifar"))
    Path("model.pt2").write_text("mine")
    with pytest.raises(FileExistsError, match=r"model.pt2 exists; choose another --output or add --overwrite$"):
        export("--format", "[timm,torch_export]")
    kept = Path("model.pt2").read_text(), Path("model.safetensors").exists()
    export("--format", "torch_export", "--overwrite", "true")

    assert kept == ("mine", False)
    assert torch.export.load("model.pt2").module()(torch.zeros(3, 1, 8, 8, dtype=torch.uint8)).shape == (3, 10)


def test_a_missing_extra_names_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    save(build("resnet8_cifar"))
    monkeypatch.setitem(sys.modules, "onnxscript", None)

    with pytest.raises(ModuleNotFoundError, match=r'^ONNX files need onnxscript; pip install "light'):
        export("--output", "out")
    assert left() == set()


def test_a_network_that_no_program_can_express_is_refused_in_a_sentence() -> None:
    save(build(BRANCHING))

    with pytest.raises(ValueError, match=r"^torch.export cannot express Branching \(.*\); `--format timm` writes"):
        export("--format", "torch_export", "--output", "out")
    assert left() == set()


def test_timm_cannot_take_a_network_that_was_given_as_a_module() -> None:
    save(build(BRANCHING))

    with pytest.raises(ValueError, match=r"^timm cannot build Branching, it was given as a module and not by name"):
        export("--format", "all", "--output", "out")
    assert left() == set()


def test_a_model_built_from_the_checkpoint_is_asked_and_one_built_otherwise_is_not() -> None:
    module = build("resnet8_cifar")
    rebuilt = SimpleNamespace(config_init={}, model=module)
    configured = SimpleNamespace(config_init={"model": module}, model=module)

    assert saved_preprocessing(rebuilt, "gone.ckpt") == module.preprocessing
    with pytest.raises(FileNotFoundError, match=r"^no checkpoint at gone.ckpt"):
        saved_preprocessing(configured, "gone.ckpt")


def test_a_checkpoint_that_does_not_say_how_its_images_were_prepared_is_refused() -> None:
    module = build("resnet8_cifar")
    module.preprocessing = None
    save(module)

    with pytest.raises(ValueError, match=r"^best.ckpt does not say how its images were prepared; train with"):
        export()


def test_images_that_are_not_there_and_data_of_another_size_are_refused() -> None:
    save(build("resnet8_cifar", channels=3))
    Path("empty").mkdir()

    with pytest.raises(ValueError, match=r"^there are no images in empty$"):
        export("--images", "empty", "--output", "out")
    with pytest.raises(ValueError, match=r"^16 images of Digits are \(1, 8, 8\), the checkpoint's are \(3, 8, 8\)$"):
        export("--data", "Digits", "--output", "out")
    assert left() == set()

"""The other modes of `explain` write what their functions give, for the checkpoint's network and normalisation."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_vision import ImageClassifier, main
from lightning_vision.base.weights import module_from_checkpoint
from lightning_vision.callbacks import grad_cam
from lightning_vision.commands._explain.invert import _told
from lightning_vision.commands._explain.sanity import likeness
from lightning_vision.datamodules import Digits
from lightning_vision.explain import (
    deletion,
    filter_report,
    insertion,
    invert_layer,
    make_fooling_images,
    maximise_activation,
)
from lightning_vision.explain.sanity_check import RandomisedLayer
from lightning_vision.images import normalise, read_image
from lightning_vision.inspection.layers import read_maps
from support.trainers import quiet_trainer

CPU = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--ckpt_path", "best.ckpt"]


@pytest.fixture(autouse=True)
def place(trained: bytes, tmp_path: Path) -> None:
    """The checkpoint and twelve test digits."""
    (tmp_path / "best.ckpt").write_bytes(trained)
    (tmp_path / "photos").mkdir()
    image, _, _ = next(iter(Digits(batch_size=12).test_dataloader()))
    for number, pixels in enumerate(image[:, 0].numpy()):
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number:02d}.png")


def explain(*args: str, images: bool = True) -> dict[str, Any]:
    output = main(["explain", *CPU, *(["--images", "photos"] if images else []), *args]).output
    assert isinstance(output, dict)
    return output


def rows(path: str) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def restored() -> Any:
    return module_from_checkpoint("best.ckpt").eval()


def batch(paths: list[str]) -> torch.Tensor:
    told = restored().preprocessing
    pixels = torch.stack([read_image(path, 1, (8, 8)) for path in paths])
    return normalise(pixels, told["mean"], told["std"])


def normalised() -> dict[str, Any]:
    told = restored().preprocessing
    return {"mean": told["mean"], "std": told["std"], "seed": 0}


def test_visualise_climbs_for_classes_and_for_channels() -> None:
    output = explain("--mode", "visualise", "--class_index", "[3,8]", "--steps", "4", images=False)
    inner = ["--layer", "network.stages.0", "--channel", "5", "--steps", "4", "--output", "inner"]
    channel = explain("--mode", "visualise", *inner, images=False)
    expected = maximise_activation(restored(), [3, 8], size=(1, 8, 8), steps=4, **normalised())

    assert list(output["activations"]) == ["3", "8"]
    assert [pair[1] for pair in output["activations"].values()] == pytest.approx(expected.end.tolist(), rel=1e-4)
    assert [float(row["start"]) for row in rows(output["csv"])] == pytest.approx(expected.start.tolist(), rel=1e-4)
    assert list(channel["activations"]) == ["network.stages.0 5"]
    assert all(end > start for start, end in [*output["activations"].values(), *channel["activations"].values()])
    assert np.asarray(Image.open(output["png"])).std() > 10


def test_multifaceted_makes_a_picture_for_each_group_of_a_class() -> None:
    output = explain("--mode", "multifaceted", "--class_index", "3", "--facets", "2", "--steps", "3")
    found = rows(output["csv"])

    assert list(output["facets"]) == ["3"]
    assert len(output["facets"]["3"]) == len(found) == 2
    assert 4 <= sum(output["facets"]["3"]) <= 12
    assert all(float(row["end"]) > float(row["start"]) for row in found)
    assert Image.open(output["png"]).size[0] > 4 * 96


def test_multifaceted_groups_by_the_layer_that_is_named() -> None:
    asked = ["--mode", "multifaceted", "--class_index", "3", "--facets", "2", "--steps", "1"]
    head, early = (explain(*asked, *more) for more in ([], ["--features", "network.stem", "--output", "early"]))

    assert [row["start"] for row in rows(head["csv"])] != [row["start"] for row in rows(early["csv"])]
    with pytest.raises(ValueError, match=r"^ImageClassifier has no layer 'stem.1'; did you mean network.stem.1\?$"):
        explain(*asked, "--features", "stem.1", "--output", "none")


def test_invert_makes_the_first_images_again_from_a_layer() -> None:
    output = explain("--mode", "invert", "--layer", "network.stem", "--steps", "20", "--sheet", "3")
    found = rows(output["csv"])
    expected = invert_layer(restored(), batch([row["path"] for row in found]), "network.stem", steps=20, **normalised())

    assert [Path(row["path"]).name for row in found] == ["00.png", "01.png", "02.png"]
    assert [float(row["distance"]) for row in found] == pytest.approx(expected.distance.tolist(), rel=1e-2)
    assert output["distance"] == {"network.stem": pytest.approx(float(expected.distance.mean()), rel=1e-2)}
    assert {row["layer"] for row in found} == {"network.stem"}


def test_invert_shows_layers_from_early_to_late_where_none_is_named() -> None:
    output = explain("--mode", "invert", "--steps", "1", "--sheet", "1")
    layers = [row["layer"] for row in rows(output["csv"])]
    image = batch([str(Path("photos/00.png"))])
    sizes = [read_maps(restored(), image, layer)[0].shape[-1] for layer in layers]

    assert list(output["distance"]) == layers
    assert sizes == [8, 4, 2]
    assert Image.open(output["png"]).size[0] > 4 * 96


def test_invert_takes_the_layers_that_timm_offers() -> None:
    module = ImageClassifier("test_vit", num_classes=10)
    offered = _told(module)

    assert len(offered) > 1
    assert all(name.startswith("network.blocks.") for name in offered)


def test_fool_says_how_sure_the_checkpoint_is() -> None:
    output = explain("--mode", "fool", "--class_index", "[1,7]", "--steps", "30", images=False)
    expected = make_fooling_images(restored(), (1, 8, 8), [1, 7], steps=30, **normalised())

    assert list(output["confidence"]) == ["1", "7"]
    assert list(output["confidence"].values()) == pytest.approx(expected.confidence[0].tolist(), rel=1e-2)
    assert min(output["confidence"].values()) > 0.2
    assert [row["class_name"] for row in rows(output["csv"])] == ["1", "7"]
    with pytest.raises(ValueError, match=r"^--method gradients: --mode fool has gradient, evolution, cppn; did you m"):
        explain("--mode", "fool", "--method", "gradients", "--output", "none", images=False)


def test_filters_are_those_of_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    output = explain("--mode", "filters", images=False)
    expected = filter_report(restored())
    found = rows(output["csv"])

    assert output["rows"] == expected
    assert [row["layer"] for row in found] == [row["layer"] for row in expected]
    assert [float(row["entropy"]) for row in found] == [row["entropy"] for row in expected]
    assert f"{expected[-1]['entropy']:.3f}" in capsys.readouterr().out


def test_scores_are_those_of_the_maps_that_are_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    methods = ["--method", "[grad_cam,IntegratedGradients,guided_backprop]"]
    output = explain("--mode", "scores", *methods, "--steps", "8")
    found = [row for row in rows(output["csv"]) if row["method"] == "grad_cam"]
    module, images = restored(), batch([row["path"] for row in found])
    maps = grad_cam(module, images)
    expected = [score(module, images, maps, steps=8) for score in (insertion, deletion)]
    told = output["scores"]["grad_cam"]

    assert len(found) == 12
    assert [float(row["insertion"]) for row in found] == pytest.approx(expected[0].tolist(), abs=1e-3)
    assert [float(row["deletion"]) for row in found] == pytest.approx(expected[1].tolist(), abs=1e-3)
    assert told == {
        name: pytest.approx(float(it.mean()), abs=1e-3)
        for name, it in zip(("insertion", "deletion"), expected, strict=True)
    }
    assert output["scores"]["random"]["insertion"] != pytest.approx(output["scores"]["random"]["deletion"], abs=1e-6)
    assert sum(row["method"] == "random" for row in rows(output["csv"])) == 12
    assert told["insertion"] != pytest.approx(told["deletion"], abs=2e-3)
    assert f"{told['insertion']:10.3f}{told['deletion']:10.3f}" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"^--steps 65: an image of 64 pixels changes in 1 to 64 steps$"):
        explain("--mode", "scores", "--steps", "65", "--output", "none")


@pytest.mark.parametrize("mode", ["scores", "fool"])
@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        (10, "and several.ckpt gives several labels an image, each with a probability of its own; look at it with"),
        (1, "which is 1 whatever the image, for several.ckpt answers one logit; look at it with --mode maps"),
    ],
)
def test_classes_that_share_no_softmax_are_refused_by_what_follows_one(mode: str, classes: int, sentence: str) -> None:
    loss = "bce" if classes > 1 else "cross_entropy"
    module = ImageClassifier("resnet8_cifar", num_classes=classes, in_channels=1, loss=loss)
    module.preprocessing = {**restored().preprocessing, "class_names": None}
    trainer = quiet_trainer(max_epochs=0)
    trainer.strategy.connect(module)
    trainer.save_checkpoint("several.ckpt")
    with pytest.raises(ValueError, match=f"^--mode {mode} follows the softmax of the logits, {sentence}"):
        explain("--mode", mode, "--ckpt_path", "several.ckpt", images=mode == "scores")

    assert explain("--ckpt_path", "several.ckpt", "--output", "maps")["count"] == 12


def test_sanity_compares_maps_layer_by_layer_from_the_top() -> None:
    output = explain("--mode", "sanity", "--method", "[grad_cam,Saliency]", "--sheet", "2")
    found = rows(output["csv"])
    layers = list(output["similarity"]["Saliency"])

    assert list(output["similarity"]) == ["grad_cam", "Saliency"]
    assert layers[0] == "network.head.fc" and layers[-1] == "network.stem.0"
    assert [row["layer"] for row in found] == 2 * layers
    assert output["similarity"]["Saliency"]["network.stem.0"]["ssim"] < 0.9
    assert all(0 <= float(row["zero"]) <= 1 for row in found)
    assert Image.open(output["png"]).size[0] > 9 * 96


def test_sanity_tells_of_maps_that_are_zero_and_means_the_others() -> None:
    maps = torch.stack([torch.zeros(8, 8), torch.rand(8, 8), torch.rand(8, 8), torch.rand(8, 8)])
    entry = RandomisedLayer("fc", maps, torch.tensor([float("nan"), 0.2, 0.3, 0.4]), torch.full((4,), 0.6))

    assert likeness(entry) == pytest.approx((0.3, 0.6, 0.25))


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("visualise", "--layer", "network.stem"), r"^--layer goes with --channel: which channels of which layer$"),
        (("visualise", "--channel", "1"), r"^--channel goes with --layer: which channels of which layer$"),
        (
            ("visualise", "--layer", "network.stem", "--channel", "1", "--class_index", "1"),
            r"^--class_index does not go with --layer: images are made for classes or for channels$",
        ),
        (
            ("visualise", "--layer", "network.stem", "--channel", "99"),
            r"^layer 'network.stem' has channels 0 to 15, not \[99\]",
        ),
        (("visualise", "--steps", "0"), r"^steps is 0 and must be 1 or more"),
        (("visualise", "--images", "photos"), r"^--images does not go with --mode visualise; it goes with maps, mul"),
        (("fool", "--class_index", "ten"), r"^--class_index ten: the checkpoint has no such class; there are 0, 1,"),
        (("filters", "--layer", "network.stem"), r"^--layer does not go with --mode filters; it goes with maps, vis"),
        (("invert",), r"^--mode invert needs --images, a folder of image files$"),
        (("invert", "--images", "photos", "--sheet", "0"), r"^--sheet 0: at least one image must be inverted$"),
        (("sanity", "--images", "photos", "--sheet", "0"), r"^--sheet 0: at least one image must be looked at$"),
        (
            ("multifaceted", "--images", "photos", "--facets", "13"),
            r"^--mode multifaceted needs 13 images or more, and photos holds 12$",
        ),
    ],
)
def test_what_a_mode_does_not_take_is_refused(args: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        explain("--mode", *args, images=False)
    assert not list(Path().glob("explain/*"))

"""`explain` writes maps of a folder's images: what the functions give, what the checkpoint says, and one page of it."""

import csv
import warnings
from collections.abc import Iterator
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from lightning_vision import ImageClassifier, main
from lightning_vision.base.weights import module_from_checkpoint
from lightning_vision.callbacks import grad_cam
from lightning_vision.callbacks.explain.sheet import contact_sheet, overlay
from lightning_vision.commands._explain import METHODS, MODES
from lightning_vision.commands._explain.subject import Files
from lightning_vision.commands._report import without_advice
from lightning_vision.commands.explain import Mode
from lightning_vision.datamodules import Digits
from lightning_vision.images import normalise, read_image
from support.photos import damage
from support.trainers import quiet_trainer

CPU = ["--trainer.accelerator", "cpu", "--trainer.logger", "false"]
SHORT = {
    "accelerator": "cpu",
    "max_epochs": 1,
    "limit_train_batches": 2,
    "limit_val_batches": 1,
    "enable_progress_bar": "false",
    "default_root_dir": "runs",
}
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
AWKWARD = 'four/a <b>&"c".png'


class Foreign(LightningModule):
    """A network as other people write them: no base class, no names, nothing in its checkpoint but weights."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Linear(4, 10)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(image).relu().mean((2, 3)))
        return logits


class Flat(nn.Sequential):
    """A network that has no maps and no ReLU."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 10))


class Read(HTMLParser):
    """What a page is made of."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.classes: list[str | None] = []
        self.sources: list[str] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        if tag == "article":
            self.classes.append(given.get("class"))
        self.sources += [str(given[name]) for name in ("src", "href") if name in given]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(autouse=True)
def place(trained: bytes, tmp_path: Path) -> Iterator[None]:
    """The checkpoint, classes called by words, and seven digits: three in folders, one called as no file should be."""
    content = torch.load(BytesIO(trained), weights_only=True)
    content["preprocessing"]["class_names"] = WORDS
    torch.save(content, tmp_path / "best.ckpt")
    image, target, _ = next(iter(Digits(batch_size=7).test_dataloader()))
    for number, (pixels, label) in enumerate(zip(image[:, 0].numpy(), target.tolist(), strict=True)):
        path = (
            tmp_path / "photos" / (AWKWARD if number == 3 else f"{WORDS[label] if number < 3 else 'deep'}/{number}.png")
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    yield


def explain(*args: str, ckpt: str = "best.ckpt", images: str = "photos") -> dict[str, Any]:
    output = main(["explain", *CPU, "--ckpt_path", ckpt, "--images", images, *args]).output
    assert isinstance(output, dict)
    return output


def rows(path: str) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pixels_of(path: str | Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path))


def alike(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    """Whether pictures differ by no more than neighbouring colours, for sums of another batch round otherwise."""
    return int(np.abs(one.astype(int) - other).max()) <= 6


def painted(module: Any, path: str, class_index: int) -> NDArray[np.uint8]:
    """The image of a file and its Grad-CAM map, by hand."""
    told = module.preprocessing
    image = read_image(path, 1, tuple(told["image_size"]), told["resize"])
    maps = grad_cam(module, normalise(image[None], told["mean"], told["std"]), class_index=class_index)
    return overlay(image.expand(3, -1, -1).permute(1, 2, 0).numpy(), maps[0].numpy())


def test_the_table_says_what_the_checkpoint_predicts_and_where_the_truth_is_known() -> None:
    output = explain()
    found = rows(output["csv"])
    module: Any = module_from_checkpoint("best.ckpt")
    expected = module.predict([row["path"] for row in found])
    known = [row for row in found if row["target_name"]]

    assert (output["count"], len(found), len(known)) == (7, 7, 4)
    assert [row["class_name"] for row in found] == [record["class_name"] for record in expected]
    for row, record in zip(found, expected, strict=True):
        assert float(row["probability"]) == pytest.approx(record["top_k"][0]["probability"], abs=1e-6)
        assert row["explained"] == row["class_name"] and row["explained_probability"] == row["probability"]
    assert all(Path(row["path"]).parent.name == row["target_name"] for row in known)
    assert output["accuracy"] == sum(row["class_name"] == row["target_name"] for row in known) / 4


def test_pictures_are_the_image_and_the_map_of_the_function() -> None:
    folder = Path(explain()["csv"]).parent
    module: Any = module_from_checkpoint("best.ckpt").eval()
    for row in rows(str(folder / "explain.csv")):
        said = WORDS.index(row["class_name"])
        drawn = pixels_of(folder / row["grad_cam"])

        assert np.array_equal(pixels_of(folder / row["image"])[..., 0], pixels_of(row["path"]))
        assert alike(drawn, painted(module, row["path"], said))
        assert not alike(drawn, painted(module, row["path"], (said + 1) % 10))


def test_another_class_is_explained_by_number_or_name() -> None:
    by_number = Path(explain("--class_index", "3", "--output", "number")["csv"])
    by_name = Path(explain("--class_index", "three", "--output", "name")["csv"])
    module: Any = module_from_checkpoint("best.ckpt").eval()
    row = next(row for row in rows(str(by_number)) if row["class_name"] != "three")

    assert by_number.read_text() == by_name.read_text()
    assert row["explained"] == "three" and float(row["explained_probability"]) < float(row["probability"])
    assert alike(pixels_of(by_number.parent / row["grad_cam"]), painted(module, row["path"], 3))


def test_the_page_works_from_disk_and_shows_awkward_names_as_they_are() -> None:
    output = explain("--top_k", "3", "--method", "[grad_cam, eigen_cam]")
    page = Path(output["html"])
    read = Read(page.read_text(encoding="utf-8"))
    text = "".join(read.text)

    assert read.classes.count("right") + read.classes.count("wrong") == 4
    assert read.classes.count(None) == 3
    assert len(read.sources) == 7 * 3
    assert all((page.parent / source).is_file() for source in read.sources)
    assert read.sources[:3] == [f"maps/000000_{name}.png" for name in ("image", "grad_cam", "eigen_cam")]
    assert read.tags.count("li") == 7 * 3
    assert f"photos/{AWKWARD}" in text
    assert {"script", "link", "iframe"}.isdisjoint(read.tags)
    assert read.tags.count("b") == 4
    assert "http" not in page.read_text(encoding="utf-8")
    assert "grad_cam at layer network.final" in text and "were named right" in text


def test_a_mistake_is_marked_and_the_sheet_holds_the_first_images() -> None:
    Path("photos/deep").rename("photos/nine")
    output = explain("--sheet", "2")
    wrong = sum(row["target_name"] not in ("", row["class_name"]) for row in rows(output["csv"]))
    two = pixels_of(output["png"]).shape
    four = pixels_of(explain("--sheet", "4", "--output", "four")["png"]).shape

    assert wrong > 0
    assert Read(Path(output["html"]).read_text()).classes.count("wrong") == wrong
    assert (two[0], 2 * two[1]) == pytest.approx((four[0], four[1]), abs=20)
    assert "png" not in explain("--sheet", "0", "--output", "none")


def test_the_names_of_the_maps_stand_once_above_the_sheet() -> None:
    black = np.zeros((112, 112, 3), dtype=np.uint8)
    cells = [([black, black], "a"), ([black, black], "b")]
    plain, titled = contact_sheet(cells, 1), contact_sheet(cells, 1, ["image", "linear_interpreter_of_a_layer"])
    above = titled.shape[0] - plain.shape[0]

    assert above == 2 * 13
    assert np.array_equal(titled[6 + above :], plain[6:])
    assert titled[:above, :118].min() < 100 and titled[:above, 120:].min() < 100


def test_the_sheet_says_which_class_was_asked_for() -> None:
    asked = pixels_of(explain("--class_index", "3", "--output", "asked")["png"])

    assert asked.shape[0] == pixels_of(explain("--output", "plain")["png"]).shape[0] + 2 * 13


@pytest.mark.parametrize("method", ["LayerActivation", "eigen_cam"])
def test_a_map_without_a_class_is_told_as_one(method: str) -> None:
    output = explain("--method", method, images=f"photos/{AWKWARD}")
    text = "".join(Read(Path(output["html"]).read_text(encoding="utf-8")).text)

    assert "The maps are the same whatever the class." in text and "speaks for the class" not in text
    assert "1 image of photos" in text and "this checkpoint is not calibrated" in text


def test_what_was_mistyped_is_told_before_what_is_there() -> None:
    Path("explain").mkdir()
    Path("explain/index.html").write_text("earlier")
    with pytest.raises(ValueError, match=r"^--method grad_cm: there is no such method"):
        explain("--method", "grad_cm")
    with pytest.raises(ValueError, match=r"^--class_index fore: the checkpoint has no such class"):
        explain("--class_index", "fore")
    with pytest.raises(Exception, match=r"^mode: expected maps or .* or sanity, got sanityy; did you mean sanity\?$"):
        explain("--mode", "sanityy")


def test_a_module_of_somebody_else_is_asked_for_by_its_class() -> None:
    torch.manual_seed(0)
    checkpoint_of(Foreign(), "foreign.ckpt")
    with pytest.raises(ValueError, match=r"^foreign.ckpt does not name its LightningModule; add --model CLASS, or"):
        explain(ckpt="foreign.ckpt")


def test_a_file_that_is_left_out_is_told_in_one_line() -> None:
    damage(Path("photos/deep/5.png"))
    with pytest.warns(UserWarning, match="left out") as told:
        explain("--on_bad_image", "skip")
    (it,) = (it for it in told if str(it.message).startswith("left out"))
    with without_advice(continues=False):
        line = warnings.formatwarning(it.message, it.category, it.filename, it.lineno)
        other = warnings.formatwarning("something else", UserWarning, "file.py", 3)

    assert line == "warning: left out 1 of 7 images, unusable: photos/deep/5.png\n"
    assert "file.py:3" in other
    assert "file.py:3" in warnings.formatwarning("left out 1", UserWarning, "file.py", 3)


def test_what_is_written_is_told_with_the_folder_of_the_maps(capsys: pytest.CaptureFixture[str]) -> None:
    output = explain("--sheet", "0")

    assert output["maps"] == str(Path("explain/maps").absolute())
    assert output["maps"] in capsys.readouterr().out


def test_a_fit_ends_with_its_pictures_and_how_to_look_into_it(capsys: pytest.CaptureFixture[str]) -> None:
    short = [f"--trainer.{name}={value}" for name, value in SHORT.items()]
    main(["fit", "--config", "classification/digits", "--config", "callbacks/grad_cam", *short])
    told = capsys.readouterr().out.splitlines()

    assert any(line.split() == ["pictures", str(Path("runs/version_0/media").absolute())] for line in told)
    assert any("lightning_vision explain --ckpt_path" in line and "--images FOLDER" in line for line in told)


def test_modes_and_methods_are_completed(capsys: pytest.CaptureFixture[str]) -> None:
    script = main(["completion"]).output

    assert get_args(Mode) == MODES
    for words in (MODES, METHODS):
        assert f'compgen -W "{" ".join(words)}"' in script


def test_batches_of_any_size_write_the_same_files() -> None:
    one, many = (Path(explain("--batch_size", size, "--output", size)["csv"]).parent for size in ("3", "64"))
    files = sorted(path.relative_to(one) for path in one.rglob("*.*"))

    assert len(files) == 3 + 14
    assert files == sorted(path.relative_to(many) for path in many.rglob("*.*"))
    for name in files:
        if name.suffix == ".png":
            assert alike(pixels_of(one / name), pixels_of(many / name))


def test_no_more_than_a_batch_is_decoded_for_the_first_images(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    whole = Files.__iter__

    def counted(self: Files) -> Iterator[Any]:
        for batch in whole(self):
            seen.append(len(batch.paths))
            yield batch

    monkeypatch.setattr(Files, "__iter__", counted)
    explain("--mode", "invert", "--sheet", "2", "--steps", "1", "--batch_size", "3")

    assert seen == [3]


@pytest.mark.parametrize("configured", [False, True], ids=["checkpoint alone", "configured model"])
def test_a_calibrated_checkpoint_is_explained_by_its_logits_and_shows_calibrated_shares(configured: bool) -> None:
    content = torch.load("best.ckpt", weights_only=True)
    torch.save(content | {"calibration": {"temperature": 4.0, "delta": None}}, "calm.ckpt")
    built = ["--model", "ImageClassifier", "--model.backbone", "resnet8_cifar", "--model.num_classes", "10"]
    built = [*built, "--model.in_channels", "1"] if configured else []
    plain, calm = explain("--output", "plain"), explain("--output", "calm", *built, ckpt="calm.ckpt")
    module: Any = module_from_checkpoint("calm.ckpt")
    pairs = list(zip(rows(plain["csv"]), rows(calm["csv"]), strict=True))
    expected = module.predict([row["path"] for row, _ in pairs])

    for (before, after), record in zip(pairs, expected, strict=True):
        assert float(after["probability"]) == pytest.approx(record["top_k"][0]["probability"], abs=1e-6)
        assert float(after["probability"]) < float(before["probability"])
        assert np.array_equal(pixels_of(f"plain/{before['grad_cam']}"), pixels_of(f"calm/{after['grad_cam']}"))


def test_the_layer_can_be_named_and_methods_that_look_at_none_need_none() -> None:
    early = explain("--layer", "network.stages.0", "--output", "early", "--method", "[layer_cam,Saliency]")
    explain("--output", "last", "--method", "layer_cam")
    row = rows(early["csv"])[0]

    assert not alike(pixels_of(f"early/{row['layer_cam']}"), pixels_of(f"last/{row['layer_cam']}"))
    assert Path("early", row["Saliency"]).is_file()
    with pytest.raises(ValueError, match=r"^--layer network.stages.0: Saliency explains by the image and looks at no"):
        explain("--layer", "network.stages.0", "--method", "Saliency", "--output", "none")


@pytest.mark.parametrize(
    "method",
    ["grad_cam_plus_plus", "score_cam", "guided_backprop", "guided_grad_cam", "linear_interpreter", "LayerGradCam"],
)
def test_every_method_is_drawn(method: str) -> None:
    output = explain("--method", method, images=f"photos/{AWKWARD}")
    picture = pixels_of(Path("explain", rows(output["csv"])[0][method]))

    assert picture.shape == (8, 8, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 3


def checkpoint_of(module: LightningModule, path: str) -> None:
    trainer = quiet_trainer(max_epochs=0)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)


def test_a_network_without_maps_is_refused_by_what_needs_them_alone() -> None:
    torch.manual_seed(0)
    told = module_from_checkpoint("best.ckpt").preprocessing
    flat = ImageClassifier({"class_path": f"{__name__}.Flat"}, num_classes=10, in_channels=1)  # type: ignore[arg-type]
    flat.preprocessing = told
    checkpoint_of(flat, "flat.ckpt")
    with pytest.raises(ValueError, match=r"^ImageClassifier has no layer whose maps reach its answer, so there is no"):
        explain(ckpt="flat.ckpt")
    with pytest.raises(ValueError, match=r"^ImageClassifier calls no ReLU that gradients pass on their way"):
        explain("--method", "guided_backprop", ckpt="flat.ckpt")
    output = explain("--method", "[IntegratedGradients, linear_interpreter]", ckpt="flat.ckpt")

    assert output["count"] == 7


def test_a_module_of_somebody_else_is_prepared_by_the_configured_data() -> None:
    torch.manual_seed(0)
    checkpoint_of(Foreign(), "foreign.ckpt")
    model = ["--model", f"{__name__}.Foreign"]
    with pytest.raises(
        ValueError, match=r"^foreign.ckpt does not say how its images were prepared; add a --data that does, as "
    ):
        explain(*model, ckpt="foreign.ckpt")
    output = explain(*model, "--data", "Digits", ckpt="foreign.ckpt")
    with pytest.raises(ValueError, match=r"^best.ckpt does not fit Foreign: 4 missing \(body.weight, body.bias,"):
        explain(*model, "--data", "Digits", "--output", "other")

    assert output["count"] == 7


def test_a_damaged_file_is_named_or_left_out() -> None:
    damage(Path("photos/deep/5.png"))
    with pytest.raises(
        ValueError, match=r"cannot decode the image photos/deep/5.png: .*; remove it or add --on_bad_image skip$"
    ):
        explain()
    left = list(Path("explain").iterdir())
    with pytest.warns(UserWarning, match=r"left out 1 of 7 images in epoch 0, unusable: photos/deep/5.png"):
        output = explain("--on_bad_image", "skip")

    assert left == []
    assert output["count"] == 6
    assert all("5.png" not in row["path"] for row in rows(output["csv"]))


def test_what_is_there_stays_unless_overwriting_is_asked_for() -> None:
    explain()
    mine = Path("explain/maps/mine.png")
    mine.write_text("mine")
    with pytest.raises(FileExistsError, match=r"/explain/index.html exists; choose another --output or add --over"):
        explain()
    Path("photos", AWKWARD).unlink()
    explain("--overwrite")

    assert mine.read_text() == "mine"
    assert len(list(Path("explain/maps").glob("0*.png"))) == 6 * 2


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("--images", "gone"), r"^there is no folder gone$"),
        (("--images", "empty"), r"^the folder empty holds no images; give some, .bmp"),
        (("--images", "words"), r"^the folder words holds no images; give some, .bmp"),
        (("--layer", "stages.2"), r"^ImageClassifier has no layer 'stages.2'; did you mean network.stages.2\?$"),
        (("--method", "grad_cm"), r"^--method grad_cm: there is no such method; did you mean grad_cam or guided_g"),
        (("--method", "xyz"), r"^--method xyz: there is no such method; there are grad_cam, .* and captum's as Int"),
        (
            ("--method", "Salience"),
            r"^--method Salience: captum.attr has no attribution of images called 'Salience'; did you",
        ),
        (("--method", "[grad_cam,grad_cam]"), r"^--method \['grad_cam', 'grad_cam'\]: give one method or several"),
        (("--class_index", "fore"), r"^--class_index fore: the checkpoint has no such class; did you mean four\?$"),
        (("--class_index", "10"), r"^--class_index 10: the checkpoint has classes 0 to 9$"),
        (("--class_index", "[1,2]"), r"^--class_index \[1, 2\]: maps explain one class, or each image's predicted"),
        (("--top_k", "0"), r"^--top_k is 0; give at least 1$"),
        (("--sheet", "-1"), r"^--sheet is -1; give at least 0, which draws none$"),
        (("--steps", "3"), r"^--steps does not go with --mode maps; it goes with visualise, multifaceted, invert,"),
        (("--mode", "filters"), r"^--images does not go with --mode filters; it goes with maps, multifaceted, inv"),
        (("--output", "photos/maps"), r"^--output photos/maps lies inside --images photos, where it would be foun"),
        (
            ("--trainer.devices", "2", "--trainer.strategy", "ddp"),
            r"^explain runs in one process, not 2; add --trainer.devices 1$",
        ),
    ],
)
def test_what_cannot_be_explained_is_refused_before_an_image_is_read(
    args: tuple[str, ...], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("empty").mkdir()
    Path("words").mkdir()
    Path("words/readme.txt").write_text("no image")
    for path in Path("photos").rglob("*.png"):
        damage(path)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        explain(*args)
    assert not list(Path().glob("explain/*"))


def test_images_are_asked_for() -> None:
    with pytest.raises(ValueError, match=r"^--mode maps needs --images, a folder of image files$"):
        main(["explain", *CPU, "--ckpt_path", "best.ckpt"])

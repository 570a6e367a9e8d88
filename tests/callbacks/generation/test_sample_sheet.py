"""The sheet shows the numbered images of the weights that are scored, in their colours, a class a column.

That training sees nothing of it is proved in `conformance/`, how images are made in `hooks/test_scoring.py`.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_vision.callbacks import EMA, SampleSheet
from lightning_vision.callbacks.hooks._image_grid import image_grid
from support.data import plain_loader
from support.makers import Maker
from support.modules import Featured
from support.trainers import quiet_trainer


def drawn(folder, name="samples", stage="val"):
    files = sorted(Path(folder, "media", stage, name).glob("*.png"))
    return {file.name: np.asarray(Image.open(file)).astype(int) for file in files}


def fitted(module, *callbacks, folder, **options):
    plain = {"max_epochs": 1, "limit_train_batches": 2, "num_sanity_val_steps": 0, "default_root_dir": folder}
    trainer = quiet_trainer(callbacks=[*callbacks], **plain | options)
    trainer.fit(module, plain_loader(12), plain_loader(6))
    return trainer


class Flat(Featured):
    """Its images are grey, each a fifteenth brighter than the one before."""

    def sample(self, count):
        return torch.arange(count)[:, None, None, None].expand(-1, 1, 8, 8) / 7.5 - 1


class Told(Flat):
    """It says how images were normalised."""

    preprocessing = {"mean": [0.5], "std": [0.5]}  # noqa: RUF012  # the house's modules have one of their own


def cells(picture, columns, side=48):
    """The grey of each image, read in its middle."""
    steps = range(2 + side // 2, picture.shape[0], side + 2), range(2 + side // 2, 2 + columns * (side + 2), side + 2)
    return [int(picture[row, column, 0]) for row in steps[0] for column in steps[1]]


def test_images_stand_row_by_row_in_their_own_grey(tmp_path):
    fitted(Told(), SampleSheet(samples=7, columns=3), folder=tmp_path)
    (picture,) = drawn(tmp_path).values()

    assert picture.shape == (3 * 50 + 2, 3 * 50 + 2, 3)
    assert cells(picture, 3) == [17 * it for it in range(7)] + [255, 255]


def test_without_a_word_on_how_they_were_normalised_images_are_stretched(tmp_path):
    class Halves(Featured):
        def sample(self, count):
            return torch.linspace(5, 6, 8).expand(count, 1, 8, 8)

    fitted(Halves(), SampleSheet(samples=1), folder=tmp_path)
    (picture,) = drawn(tmp_path).values()

    assert [picture[20, 4, 0], picture[20, 47, 0]] == [0, 255]


def test_each_sheet_shows_the_same_draws_under_other_weights(tmp_path):
    module = Maker()
    fitted(module, SampleSheet(samples=20, seed=4), folder=tmp_path, max_epochs=2)

    assert [(it["count"], it["seed"], it["first"]) for it in module.asked] == [(20, 4, 0)] * 2
    assert list(drawn(tmp_path)) == ["step_00000002.png", "step_00000004.png"]


def test_a_class_has_a_column():
    module = Maker(num_classes=5)
    quiet_trainer(callbacks=[SampleSheet(samples=12)], logger=False).validate(module, plain_loader(6), verbose=False)

    assert module.asked[0]["label"].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]


@pytest.mark.parametrize(
    ("module", "settings", "shape"),
    [
        (Maker(num_classes=5), {"samples": 12}, (3, 5)),
        (Maker(num_classes=0), {"samples": 12}, (3, 4)),
        (Maker(num_classes=100), {"samples": 12}, (3, 4)),
        (Maker(num_classes=5), {"samples": 70, "columns": 20}, (4, 20)),
    ],
)
def test_rows_and_columns_follow_from_classes_and_number(module, settings, shape, tmp_path):
    trainer = quiet_trainer(callbacks=[SampleSheet(**settings)], default_root_dir=tmp_path)
    trainer.test(module, plain_loader(6), verbose=False)
    (picture,) = drawn(tmp_path, stage="test").values()

    assert picture.shape == (shape[0] * 50 + 2, shape[1] * 50 + 2, 3)
    assert sum(it["count"] for it in module.asked) == settings["samples"]


def test_shown_are_the_averaged_weights(tmp_path):
    class Seen(Maker):
        preprocessing = {"mean": [0.5], "std": [5.0]}  # noqa: RUF012

    torch.manual_seed(0)
    average = Seen(scale=1.0)
    fitted(average, SampleSheet(samples=4), EMA(decay=0.9), folder=tmp_path / "average")
    plain = Seen(scale=1.0)
    fitted(plain, SampleSheet(samples=4), folder=tmp_path / "plain")
    ours, raw = (drawn(tmp_path / name)["step_00000002.png"] for name in ("average", "plain"))
    # After the fit the module holds the average.
    alone = quiet_trainer(callbacks=[SampleSheet(samples=4)], default_root_dir=tmp_path / "alone")
    alone.validate(Seen(scale=average.scale.item()), plain_loader(6), verbose=False)

    assert np.array_equal(drawn(tmp_path / "alone")["step_00000000.png"], ours)
    assert not np.array_equal(raw, ours)


def test_small_images_are_enlarged_and_large_ones_are_not():
    assert image_grid(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), 2).shape == (102, 102, 3)
    assert image_grid(torch.zeros(2, 3, 100, 80, dtype=torch.uint8), 2).shape == (104, 166, 3)
    coloured = torch.tensor([9, 8, 7], dtype=torch.uint8)[None, :, None, None].expand(1, 3, 64, 64)
    assert image_grid(coloured, 1)[10, 10].tolist() == [9, 8, 7]


def test_what_fails_in_training_is_told_and_in_a_sanity_check_raised(tmp_path):
    class Fails(Flat):
        def sample(self, count):
            return torch.zeros(count, 3)

    with pytest.raises(ValueError, match=r"^SampleSheet: sample\(8\) of Fails answered \(8, 3\); let it return images"):
        fitted(Fails(), SampleSheet(), folder=tmp_path, num_sanity_val_steps=1)
    with pytest.warns(UserWarning, match="SampleSheet: a picture could not be drawn"):
        assert fitted(Fails(), SampleSheet(), folder=tmp_path).global_step == 2


def test_a_sanity_check_makes_one_row(tmp_path):
    module = Maker()
    fitted(module, SampleSheet(samples=40), folder=tmp_path, num_sanity_val_steps=1)

    assert [it["count"] for it in module.asked] == [10, 40]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 0}, "samples is 0; give a whole number of at least 1."),
        ({"columns": 0}, "columns is 0; give a whole number of at least 1."),
        ({"seed": -1}, "seed is -1; give a whole number of at least 0."),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError) as caught:
        SampleSheet(**settings)

    assert str(caught.value) == f"SampleSheet: {message}"

"""The map is scikit-learn's PCA or t-SNE, coloured by class, and the number a leave-one-out nearest neighbour's.

Which features are read is proved in `hooks/test_features.py`, that training sees nothing of it in `conformance/`.
"""

import csv
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from torch.utils.data import DataLoader, TensorDataset

from lightning_vision.callbacks import EmbeddingLogger, nearest_neighbour_share, principal_coordinates
from lightning_vision.callbacks.evaluation import embedding_logger
from lightning_vision.callbacks.evaluation._labels import label_sets
from lightning_vision.callbacks.evaluation._scatter import GREY, scatter_picture
from support.compare import seeded
from support.data import labelled_images, plain_loader
from support.modules import Plain
from support.trainers import quiet_trainer


def features(count, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scales = torch.linspace(3, 0.5, width)
    return torch.randn(count, width, generator=generator) * scales + 2


@pytest.mark.parametrize(("count", "width"), [(40, 12), (12, 40), (30, 30)])
def test_coordinates_are_scikit_learns_pca_signs_included(count, width):
    values = features(count, width)
    expected = PCA(3, svd_solver="full").fit_transform(values.double().numpy())
    found = principal_coordinates(values, 3).numpy()
    not_centred = torch.linalg.svd(values, full_matrices=False)
    mutant = (not_centred.U * not_centred.S)[:, :3].numpy()

    assert np.abs(found - expected).max() < 1e-5
    assert np.abs(np.abs(mutant) - np.abs(expected)).max() > 0.1


def test_directions_that_do_not_exist_have_coordinate_zero():
    assert principal_coordinates(torch.randn(1, 5)).tolist() == [[0.0, 0.0]]
    assert principal_coordinates(torch.tensor([[1.0], [3.0]])).tolist() == [[-1.0, 0.0], [1.0, 0.0]]
    assert principal_coordinates(torch.ones(4, 3)).tolist() == [[0.0, 0.0]] * 4


def test_the_share_is_leave_one_outs():
    values, classes = features(60, 5), torch.randint(3, (60,), generator=torch.Generator().manual_seed(1))
    values += classes[:, None] * 1.0
    nearest = KNeighborsClassifier(1, algorithm="brute")
    expected = cross_val_score(nearest, values.double().numpy(), classes.numpy(), cv=LeaveOneOut()).mean()
    with_itself = nearest.fit(values.numpy(), classes.numpy()).score(values.numpy(), classes.numpy())

    assert nearest_neighbour_share(values, classes) == pytest.approx(expected, abs=1e-12)
    assert with_itself == 1.0 != expected


class TwoClusters(Plain):
    """Its features are its pixels."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(64, 10)

    def forward(self, image):
        return self.head(image.flatten(1))


@pytest.mark.parametrize("projection", ["pca", "tsne"])
def test_two_clusters_are_apart_on_the_map(projection, tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(60) % 2
    images = torch.randn(60, 1, 8, 8, generator=generator) + 4 * target[:, None, None, None]
    maps = []
    monkeypatch.setattr(
        "lightning_vision.callbacks.evaluation._scatter.scatter_picture",
        lambda *given: maps.append(given) or scatter_picture(*given),
    )
    logger = CSVLogger(tmp_path)
    trainer = quiet_trainer(callbacks=[EmbeddingLogger(projection=projection)], logger=logger)
    trainer.validate(TwoClusters(), DataLoader(TensorDataset(images, target), 16), verbose=False)
    points, classes, names, title = maps[0]
    centres = np.stack([points[target == it].mean(0) for it in range(2)])
    nearer = np.linalg.norm(points[:, None] - centres, axis=2).argmin(1)
    table = csv.DictReader(Path(logger.log_dir, "metrics.csv").read_text().splitlines())

    assert nearer.tolist() == classes == target.tolist()
    assert names == ["0", "1"]
    assert [float(it) for row in table if (it := row["val/embedding_neighbours"])] == [1.0]
    assert title.endswith("of 60 images; 100% of nearest neighbours have the same class")
    assert len(list(tmp_path.rglob("media/val/embedding/step_00000000.png"))) == 1


@pytest.mark.parametrize("projection", ["pca", "tsne"])
def test_a_map_is_drawn_alike_twice_and_draws_nothing_from_the_global_streams(projection):
    logger, values = EmbeddingLogger(projection=projection), features(40, 6)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    (first, _), (second, _) = (logger.draw(Plain, values, torch.arange(40) % 3, None) for _ in range(2))

    assert np.array_equal(first, second)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


def test_points_have_the_colours_of_their_classes_and_the_rare_ones_are_grey():
    points = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    picture = scatter_picture(points, [0, 1, -1, 1], ["ape", "bee"], "")
    blue, orange = (31, 119, 180), (255, 127, 14)
    top, left, side = 30, 12, 480
    corner = {
        name: tuple(int(it) for it in picture[top + y, left + x])
        for name, (y, x) in {
            "0 0": (side - 7, 6),
            "1 0": (side - 7, side - 7),
            "0 1": (6, 6),
            "1 1": (6, side - 7),
        }.items()
    }

    assert corner == {"0 0": blue, "1 0": orange, "0 1": GREY, "1 1": orange}


def test_of_many_classes_the_most_frequent_have_colours():
    classes = [*range(30), *range(5, 25)]
    picture = scatter_picture(
        np.random.default_rng(0).random((50, 2)), classes, [f"a class called {it}" for it in range(30)], ""
    )
    few = scatter_picture(np.zeros((3, 2)), [0, 1, 2], ["a", "b", "c"], "one place")

    # Twenty lines and the others', a mark of 8 pixels each.
    assert picture.shape[0] >= 21 * 18
    marks = picture[:, 480 + 2 * 12 + 4]
    assert len({tuple(it) for it in marks.tolist()} - {(255, 255, 255)}) == 21
    assert few.dtype == np.uint8


def test_sets_of_labels_are_classes_and_the_module_may_say_that_there_is_one():
    label = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 1, 0], [0, 0, 1]])
    classes, names = label_sets(label > 0, ["ape", "bee", "cat"])
    single, _ = embedding_logger._classes(torch.tensor([[0.2, 0.8], [0.6, 0.4]]), None, False, 2)

    assert [names[it] for it in classes] == ["ape, bee", "none", "ape, bee", "cat"]
    assert single.tolist() == [1, 0]


class Diverged(Plain):
    def forward(self, image):
        return super().forward(image * torch.tensor(float("nan")))


def test_without_labels_points_are_grey_and_without_finite_features_there_is_no_map(tmp_path):
    images = labelled_images(24).tensors[0]

    class Unlabelled(Plain):
        def validation_step(self, batch, batch_idx):
            self(batch[0])

    quiet_trainer(callbacks=[EmbeddingLogger()], default_root_dir=tmp_path / "a").validate(
        Unlabelled(), DataLoader(TensorDataset(images), 8), verbose=False
    )
    with pytest.warns(UserWarning, match="EmbeddingLogger: no image has finite features, so there is no map of them"):
        quiet_trainer(callbacks=[EmbeddingLogger()], default_root_dir=tmp_path / "b").validate(
            seeded(Diverged), plain_loader(12), verbose=False
        )
    (file,) = tmp_path.rglob("*.png")
    colours = {tuple(it) for it in np.asarray(Image.open(file))[40:500, 20:480].reshape(-1, 3).tolist()}

    assert file.relative_to(tmp_path).parts[0] == "a"
    assert GREY in colours
    assert all(red == green == blue for red, green, blue in colours)


def test_tiny_validations_and_labels_outside_the_classes_are_mapped(tmp_path):
    images, target = labelled_images(4).tensors
    for projection in ("pca", "tsne"):
        for count in (1, 2, 4):
            trainer = quiet_trainer(
                callbacks=[EmbeddingLogger(projection=projection)], default_root_dir=tmp_path / f"{projection}{count}"
            )
            data = TensorDataset(images[:count], F.pad(target[1:count], (1, 0), value=-100))
            module = seeded(Plain)
            module.validation_step = lambda batch, batch_idx, module=module: module(batch[0])
            trainer.validate(module, DataLoader(data, 2), verbose=False)

    assert len(list(tmp_path.rglob("*.png"))) == 6


HALVES = torch.cat([torch.zeros(10, 8), torch.ones(10, 8)])
MANY = features(20, 8)


@pytest.mark.parametrize(
    ("values", "alike"),
    [
        (torch.zeros(20, 8), True),
        (torch.full((20, 8), 3.0), True),
        (100 + 1e-7 * MANY, True),
        (1 + 1e-7 * MANY, True),
        (MANY[:1].repeat(20, 1), True),
        (HALVES, False),
        (1e-30 * MANY, False),
        (1e30 * MANY, False),
        (MANY[:, :1], False),
    ],
    ids=["zero", "constant", "rounded", "noise", "one image", "halves", "tiny", "huge", "one feature"],
)
@pytest.mark.parametrize("projection", ["pca", "tsne"])
def test_features_that_are_alike_lie_in_one_place_and_all_others_apart(projection, values, alike):
    """scikit-learn's t-SNE ends the process on the first ones."""
    points = embedding_logger._points(values, projection)

    assert points.shape == (20, 2)
    assert np.isfinite(points).all()
    assert (len(np.unique(points, axis=0)) == 1) is alike


class Dead(TwoClusters):
    def forward(self, image):
        return self.head(image.flatten(1) * 0)


def test_a_network_without_an_answer_of_its_own_is_drawn_and_said_to_be_alike(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(
        "lightning_vision.callbacks.evaluation._scatter.scatter_picture",
        lambda *given: titles.append(given[3]) or scatter_picture(*given),
    )
    trainer = quiet_trainer(callbacks=[EmbeddingLogger(projection="tsne")], default_root_dir=tmp_path)
    trainer.validate(Dead(), plain_loader(24), verbose=False)

    assert titles[0].endswith("; their features are alike")
    assert len(list(tmp_path.rglob("*.png"))) == 1


def test_a_wrong_argument_is_refused():
    with pytest.raises(ValueError, match=r"^EmbeddingLogger: projection is 'umap'; give 'pca' or 'tsne'.$"):
        EmbeddingLogger(projection="umap")

"""Boxes stand on the sheet where they were found and where they are, and whoever finds none is told before training.

That training sees nothing of it is proved in `conformance/`, the choice of samples in `hooks/test_samples.py`.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from lightning_vision.callbacks import DetectionLogger
from lightning_vision.callbacks.evaluation._boxes import FOUND, TRUE, box_sheet, with_boxes
from lightning_vision.callbacks.hooks._samples import Samples
from support.compare import seeded
from support.data import labelled_images
from support.data import with_boxes as scenes
from support.modules import Detects, DetectsDictBatches, Plain
from support.trainers import quiet_trainer

BLACK = (0, 0, 0)


def black(height, width):
    return np.zeros((height, width, 3), dtype=np.uint8)


def extent(picture, colour):
    """Left, top, right and bottom of the pixels of a colour."""
    rows, columns = np.nonzero((picture == colour).all(-1))
    return [int(it) for it in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]


def colours(picture):
    return {tuple(it) for it in np.unique(picture.reshape(-1, 3), axis=0).tolist()}


def test_a_found_box_lies_on_its_pixels_and_a_true_one_around_them():
    picture = with_boxes(black(16, 8), [([2, 4, 6, 8], "")], [([2, 4, 6, 8], "")])

    assert picture.shape == (256, 128, 3)
    assert extent(picture, FOUND) == [32, 64, 96, 128]
    assert extent(picture, TRUE) == [30, 62, 98, 130]
    assert colours(picture) == {BLACK, TRUE, FOUND}
    assert (picture[66:126, 34:94] == 0).all()


def test_words_are_drawn_without_shades_and_stay_in_the_picture():
    corners = [([0, 0, 3, 3], "a long name 0.99"), ([29, 29, 32, 32], "a long name 0.98")]
    picture = with_boxes(black(32, 32), corners, corners)

    assert colours(picture) == {BLACK, TRUE, FOUND}
    assert np.array_equal(picture, with_boxes(black(32, 32), corners, corners))
    assert not np.array_equal(picture, with_boxes(black(32, 32), corners, [(box, "other 0.99") for box, _ in corners]))


def test_large_images_are_reduced_before_boxes_are_drawn():
    picture = with_boxes(black(480, 640), [], [([64, 48, 320, 240], "")])

    assert picture.shape == (240, 320, 3)
    assert extent(picture, FOUND) == [32, 24, 160, 120]
    assert colours(picture) == {BLACK, FOUND}


def test_a_box_that_leaves_the_image_ends_at_its_edge_and_one_of_no_size_is_a_line():
    wide = with_boxes(black(16, 16), [], [([-5, 4, 99, 8], "")])
    thin = with_boxes(black(16, 16), [], [([4, 4, 4, 8], "")])
    immense = with_boxes(black(16, 16), [], [([-1e30, 4, 1e30, 8], "")])

    assert np.array_equal(immense, wide)
    assert extent(wide, FOUND) == [0, 64, 256, 128]
    assert extent(thin, FOUND)[1::2] == [64, 128]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cat", "dog"], ["0", "cat", "dog", "3"]),
        (["__background__", "cat", "dog"], ["__background__", "cat", "dog", "3"]),
        (None, ["0", "1", "2", "3"]),
    ],
)
def test_label_one_is_the_first_class_that_is_no_background(names, expected):
    samples = Samples(torch.zeros(1, 1, 2, 2), [None], names)

    assert [samples.object(label) for label in range(4)] == expected


def loader(batch_size=6, count=12):
    return DataLoader(labelled_images(count, seed=1), batch_size, collate_fn=scenes)


def by_hand(module, images, targets, threshold):
    """The sheet of images in the order of their labels, as there is room for all."""
    answers = module.eval()(images)
    order = sorted(range(len(images)), key=lambda index: int(targets[index]["labels"]))
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    pixels = ((images - low) / (high - low) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    true, found = [], []
    for index in order:
        own, answer = targets[index], answers[index]
        true.append([(own["boxes"][0].tolist(), str(int(own["labels"])))])
        score, label = float(answer["scores"]), int(answer["labels"])
        found.append([(answer["boxes"][0].tolist(), f"{label} {score:.2f}")] if score >= threshold else [])
    return box_sheet([pixels[index].numpy() for index in order], true, found)


@pytest.mark.parametrize("kind", [Detects, DetectsDictBatches])
def test_each_validation_shows_what_the_module_finds_then(kind, tmp_path):
    images, targets = scenes(list(labelled_images(12, seed=1)))
    expected = []

    class Noting(kind):
        def on_validation_epoch_end(self):
            if not self.trainer.sanity_checking:
                expected.append([by_hand(self, images, targets, threshold) for threshold in (0.2, 0.0)])

    def collate(samples):
        return (
            dict(zip(("pixels", "boxes"), scenes(samples), strict=True))
            if kind is DetectsDictBatches
            else scenes(samples)
        )

    class Keyed(Noting):
        def training_step(self, batch, batch_idx):
            return super().training_step(self._named(batch), batch_idx)

        def validation_step(self, batch, batch_idx):
            super().validation_step(self._named(batch), batch_idx)

        def _named(self, batch):
            return {"image": batch["pixels"], "target": batch["boxes"]} if isinstance(batch, dict) else batch

    data = DataLoader(labelled_images(12, seed=1), 6, collate_fn=collate)
    logger = DetectionLogger(samples=12, score_threshold=0.2, image_key="pixels", target_key="boxes")
    quiet_trainer(callbacks=[logger], max_epochs=2, default_root_dir=tmp_path).fit(seeded(Keyed), data, data)
    written = [np.asarray(Image.open(it)) for it in sorted((tmp_path / "media/val/detections").iterdir())]

    assert len(written) == 2
    assert not np.array_equal(*written)
    for picture, (ours, unfiltered) in zip(written, expected, strict=True):
        assert np.array_equal(picture, ours)
        assert not np.array_equal(picture, unfiltered)


class Lists(Plain):
    """A detector that takes lists of images, which may be of several sizes, and answers what it was given."""

    def forward(self, images):
        assert isinstance(images, list)
        return [
            {
                "boxes": torch.tensor([[0.0, 0.0, it.shape[2], it.shape[1]], [0, 0, float("nan"), 1]]),
                "labels": torch.tensor([1, 1]),
                "scores": torch.tensor([0.75, 0.9]),
            }
            for it in images
        ]

    def test_step(self, batch, batch_idx):
        pass


def test_lists_of_images_of_several_sizes_are_given_as_lists_and_nothing_known_is_nothing_drawn(tmp_path):
    data = [torch.zeros(1, 8, 16), torch.zeros(1, 12, 8)]
    broken = {"boxes": torch.tensor([[0, 0, float("nan"), 1]]), "labels": torch.tensor([1])}
    lists = DataLoader(data, 2, collate_fn=lambda images: (images, [None, broken]))
    quiet_trainer(callbacks=[DetectionLogger()], default_root_dir=tmp_path).test(Lists(), lists, verbose=False)
    (file,) = (tmp_path / "media/test/detections").iterdir()
    pictures = [black(12, 8), black(8, 16)]  # first the one that has a class
    whole = [[([0, 0, 16, 8], "1 0.75")], [([0, 0, 8, 12], "1 0.75")]]

    assert np.array_equal(np.asarray(Image.open(file)), box_sheet(pictures, [[], None], whole[::-1]))


def test_a_module_that_is_no_detector_is_refused_in_the_sanity_check():
    module = Plain()
    with pytest.raises(ValueError) as refusal:
        quiet_trainer(callbacks=[DetectionLogger()], max_epochs=1).fit(
            module, DataLoader(labelled_images(12), 6), DataLoader(labelled_images(12), 6)
        )

    assert str(refusal.value) == (
        "DetectionLogger: Plain answers a tensor (8, 10) to 8 images where one {'boxes', 'labels', 'scores'} an image "
        "is to be drawn; use it on a detector, whose forward answers so in evaluation mode."
    )
    assert module.global_step == 0


def test_a_detector_that_finds_nothing_is_shown_to_find_nothing(tmp_path):
    module = Detects()
    nothing = {name: torch.zeros(0) for name in ("boxes", "labels", "scores")}
    module.forward = lambda images: [nothing] * len(images)
    module.validation_step = lambda batch, batch_idx: None
    trainer = quiet_trainer(callbacks=[DetectionLogger(samples=2)], default_root_dir=tmp_path)
    trainer.validate(module, loader(2, 2), verbose=False)
    (file,) = (tmp_path / "media/val/detections").iterdir()
    shown = {tuple(it) for it in np.asarray(Image.open(file)).reshape(-1, 3).tolist()}

    assert TRUE in shown
    assert FOUND not in shown


@pytest.mark.parametrize("answer", [[{}], [{"boxes": torch.zeros(0, 4)}] * 12, [], "boxes"])
def test_answers_that_lack_something_are_refused(answer):
    module = Detects()
    module.forward = lambda images: answer
    module.validation_step = lambda batch, batch_idx: None
    with pytest.raises(ValueError, match=r"^DetectionLogger: Detects answers a (list|str)"):
        quiet_trainer(callbacks=[DetectionLogger(samples=12)]).validate(module, loader(), verbose=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"score_threshold": 1.5}, "DetectionLogger: score_threshold is 1.5; give a number from 0 to 1."),
        ({"samples": 0}, "DetectionLogger: samples is 0; give a whole number of at least 1."),
    ],
)
def test_a_wrong_argument_is_refused(arguments, message):
    with pytest.raises(ValueError) as refusal:
        DetectionLogger(**arguments)

    assert str(refusal.value) == message

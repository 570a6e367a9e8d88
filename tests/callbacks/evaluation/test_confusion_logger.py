"""The matrix of every watched validation is drawn, over all samples, for files and loggers.

The sheet itself is proved in `test_classification_report.py`; that training sees nothing of it in `conformance/`.
"""

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torchmetrics.classification import MulticlassConfusionMatrix

from lightning_vision.callbacks import ConfusionLogger
from lightning_vision.callbacks.evaluation._sheets import confusion_sheet
from support.compare import seeded
from support.data import ResumableLoader, labelled_images, plain_loader
from support.modules import Plain
from support.trainers import quiet_trainer


class Counted(Plain):
    """Keeps torchmetrics' matrix of each validation."""

    def __init__(self):
        super().__init__()
        self.counts, self.matrices = MulticlassConfusionMatrix(10), []

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.counts.update(self(batch[0]), batch[1])

    def on_validation_epoch_end(self):
        if not self.trainer.sanity_checking:
            self.matrices.append(self.counts.compute())
        self.counts.reset()


def drawn(matrix):
    own, other = (matrix - matrix.diagonal().diag()).nonzero(as_tuple=True)
    return confusion_sheet(
        {
            "names": [str(it) for it in range(len(matrix))],
            "counts": torch.stack([matrix.sum(1), matrix.sum(0), matrix.diagonal()], 1),
            "confusions": torch.stack([own, other, matrix[own, other]], 1),
        }
    )


def pictures(folder):
    return [np.asarray(Image.open(it)) for it in sorted(folder.rglob("*.png"))]


def test_each_validation_is_torchmetrics_matrix_and_no_transposed_one(tmp_path):
    module = seeded(Counted)
    trainer = quiet_trainer(callbacks=[ConfusionLogger()], max_epochs=3, default_root_dir=tmp_path)
    trainer.fit(module, plain_loader(), ResumableLoader(labelled_images(30, seed=1), 6))
    written = pictures(tmp_path / "media/val/confusion")

    assert len(written) == 3
    assert not np.array_equal(written[0], written[2])
    for picture, matrix in zip(written, module.matrices, strict=True):
        assert np.array_equal(picture, drawn(matrix))
        assert not np.array_equal(picture, drawn(matrix.T))


def test_of_every_second_epoch_and_of_a_test_under_the_callbacks_name_and_never_of_a_rehearsal(tmp_path):
    logger = ConfusionLogger(every_n_epochs=2, name="mixed up")
    trainer = quiet_trainer(callbacks=[logger], max_epochs=3, default_root_dir=tmp_path)
    module = seeded(Plain)
    trainer.fit(module, plain_loader(), plain_loader(12))
    trainer.test(module, plain_loader(12), verbose=False)
    quiet_trainer(callbacks=[ConfusionLogger()], fast_dev_run=True, default_root_dir=tmp_path).test(
        module, plain_loader(), verbose=False
    )
    written = sorted(str(it.relative_to(tmp_path)) for it in tmp_path.rglob("*.png"))

    assert written == [
        "media/test/mixed up/step_00000030.png",
        "media/val/mixed up/step_00000010.png",
        "media/val/mixed up/step_00000030.png",
    ]


def test_tensorboard_has_the_same_picture(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    quiet_trainer(callbacks=[ConfusionLogger()], logger=logger).validate(seeded(Plain), plain_loader(12), verbose=False)
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0}).Reload()
    (image,) = events.Images("val/confusion")
    (picture,) = pictures(tmp_path)

    assert (image.width, image.height) == picture.shape[1::-1]


class Several(Plain):
    multilabel = True


class Many(Plain):
    def forward(self, image):
        return super().forward(image).repeat(1, 410)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Several, "an image may have several labels here, so none is taken for another; log MistakesLogger"),
        (Many, "4,100 classes are more than the 4,096 a matrix is kept of; let ClassificationReport"),
    ],
)
def test_what_has_no_matrix_is_refused_in_the_sanity_check(kind, message):
    module = seeded(kind)
    trainer = quiet_trainer(callbacks=[ConfusionLogger()], max_epochs=1)

    with pytest.raises(ValueError, match=f"^ConfusionLogger: {message}"):
        trainer.fit(module, plain_loader(), plain_loader(12))

    assert trainer.global_step == 0


def test_a_wrong_argument_is_refused():
    with pytest.raises(
        ValueError, match=r"^ConfusionLogger: every_n_epochs is -1; give a whole number of at least 0.$"
    ):
        ConfusionLogger(every_n_epochs=-1)

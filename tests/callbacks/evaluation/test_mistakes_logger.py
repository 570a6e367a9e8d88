"""The sheet of every watched validation shows its most confident mistakes, those of all processes.

Which mistakes are kept is proved in `test_classification_report.py`, that training sees nothing in `conformance/`.
"""

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from lightning_vision.callbacks import ConfusionLogger, EmbeddingLogger, GradCAMLogger, MistakesLogger
from lightning_vision.callbacks.evaluation._sheets import mistake_sheet
from support.compare import seeded
from support.data import ResumableLoader, labelled_images, plain_loader
from support.modules import Plain
from support.trainers import quiet_trainer

DATA = labelled_images(30, seed=1)


class Answers(Plain):
    """Keeps what it answers to all of the data at the end of each validation."""

    def __init__(self):
        super().__init__()
        self.answers = []

    def on_validation_epoch_end(self):
        if not self.trainer.sanity_checking:
            self.answers.append(self(DATA.tensors[0]))


def drawn(logits, worst, descending=True):
    images, target = DATA.tensors
    sure, said = logits.softmax(1).max(1)
    wrong = (said != target).nonzero()[:, 0]
    order = wrong[sure[wrong].argsort(descending=descending)][:worst]
    low, high = images[order].amin((1, 2, 3), keepdim=True), images[order].amax((1, 2, 3), keepdim=True)
    return mistake_sheet(
        {
            "names": [str(it) for it in range(10)],
            "multilabel": False,
            "images": ((images[order] - low) / (high - low) * 255).round().to(torch.uint8),
            "confidence": sure[order],
            "mistakes": torch.stack([target[order], said[order]], 1),
        }
    )


def pictures(folder):
    return [np.asarray(Image.open(it)) for it in sorted(folder.rglob("*.png"))]


def test_each_validation_has_its_own_most_confident_mistakes_and_not_its_least(tmp_path):
    module = seeded(Answers)
    trainer = quiet_trainer(callbacks=[MistakesLogger(worst=8)], max_epochs=2, default_root_dir=tmp_path)
    trainer.fit(module, plain_loader(), DataLoader(DATA, 7))
    written = pictures(tmp_path / "media/val/mistakes")

    assert len(written) == 2
    assert not np.array_equal(*written)
    for picture, logits in zip(written, module.answers, strict=True):
        assert np.array_equal(picture, drawn(logits, 8))
        assert not np.array_equal(picture, drawn(logits, 8, descending=False))


class Right(Plain):
    """Knows the label by the brightness of a noiseless image."""

    def forward(self, image):
        return 50 * F.one_hot((image.mean((1, 2, 3)) * 3).round().long(), 10).float()


class Several(Plain):
    multilabel = True

    def test_step(self, batch, batch_idx):
        self(batch[0])


def test_where_nothing_is_wrong_there_is_no_sheet_and_of_several_labels_there_is_one(tmp_path):
    target = torch.arange(10)
    flat = (target[:, None, None, None] / 3).expand(-1, 1, 8, 8)
    labels = (torch.arange(10)[:, None] > target).long()
    for kind, given in ((Right, target), (Several, labels)):
        trainer = quiet_trainer(callbacks=[MistakesLogger()], default_root_dir=tmp_path / kind.__name__)
        trainer.test(seeded(kind), DataLoader(TensorDataset(flat, given), 5), verbose=False)

    assert pictures(tmp_path / "Right") == []
    assert len(pictures(tmp_path / "Several/media/test/mistakes")) == 1


def on_a_rank(folder):
    """The three loggers on shards of the same data."""
    data = ResumableLoader(DATA, 6, dist.get_rank(), 2)
    trainer = quiet_trainer(
        callbacks=[ConfusionLogger(), MistakesLogger(worst=8), EmbeddingLogger(samples=12)],
        devices=2,
        strategy="ddp",
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    trainer.validate(seeded(Plain), data, verbose=False)


def test_over_two_processes_counts_and_mistakes_are_those_of_one(two_ranks, tmp_path):
    two_ranks(on_a_rank, tmp_path / "two")
    alone = quiet_trainer(callbacks=[ConfusionLogger(), MistakesLogger(worst=8)], default_root_dir=tmp_path / "one")
    alone.validate(seeded(Plain), DataLoader(DATA, 6), verbose=False)
    two, one = (
        {it.parent.name: np.asarray(Image.open(it)) for it in (tmp_path / name).rglob("*.png")}
        for name in ("two", "one")
    )

    assert sorted(two) == ["confusion", "embedding", "mistakes"]
    for name, picture in one.items():
        assert np.array_equal(two[name], picture)


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (
            lambda: [ConfusionLogger(name="a"), MistakesLogger(name="a")],
            "ConfusionLogger: MistakesLogger also calls its pictures 'a', and they would write the same files; give "
            "one of them another name.",
        ),
        (
            lambda: [EmbeddingLogger(name="mistakes"), MistakesLogger()],
            "EmbeddingLogger: MistakesLogger also calls its pictures 'mistakes', and",
        ),
        (
            lambda: [ConfusionLogger(name="grad_cam"), GradCAMLogger()],
            "ConfusionLogger: GradCAMLogger also calls its pictures 'grad_cam', and",
        ),
    ],
)
def test_two_that_would_write_the_same_files_are_refused(callbacks, message):
    with pytest.raises(ValueError) as refusal:
        quiet_trainer(callbacks=callbacks()).validate(Plain(), plain_loader(12), verbose=False)

    assert str(refusal.value).startswith(message)


@pytest.mark.parametrize("kind", [ConfusionLogger, MistakesLogger, EmbeddingLogger])
def test_a_fit_without_a_watched_validation_is_told(kind, recwarn):
    for options in ({"limit_val_batches": 0}, {"limit_val_batches": 1}):
        quiet_trainer(callbacks=[kind()], max_epochs=1, limit_train_batches=1, **options).fit(
            seeded(Plain), plain_loader(), plain_loader(12)
        )

    assert [str(it.message) for it in recwarn if kind.__name__ in str(it.message)] == [
        f"{kind.__name__}: no validation was drawn in this fit, so there are no pictures."
    ]


def test_a_wrong_argument_is_refused():
    with pytest.raises(ValueError, match=r"^MistakesLogger: worst is 0; give a whole number of at least 1.$"):
        MistakesLogger(worst=0)

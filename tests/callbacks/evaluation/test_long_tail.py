"""Counts of a long tail, and the accuracy of classes with many and few training images, which sums to the whole."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_vision.callbacks import ClassificationReport
from lightning_vision.callbacks.evaluation.long_tail import exponential_counts, shot_accuracy
from support.data import labelled_images
from support.modules import Plain
from support.resuming import Recorder
from support.trainers import quiet_trainer

TRAINING = [500, 300, 101, 100, 60, 30, 20, 19, 5, 1]


@pytest.mark.parametrize(("largest", "mu", "classes"), [(500, 0.7, 10), (1000, 100 ** (-1 / 99), 100), (7, 1.0, 3)])
def test_row_225_counts_fall_off_exponentially(largest, mu, classes):
    counts = exponential_counts(largest, mu, classes)

    assert counts == [max(round(largest * mu**index), 1) for index in range(classes)]
    assert counts[0] == largest and len(counts) == classes and counts == sorted(counts, reverse=True)


def test_row_225_the_imbalance_is_the_one_that_mu_was_made_for():
    counts = exponential_counts(5000, 100 ** (-1 / 9), 10)

    assert (counts[0], counts[-1]) == (5000, 50)


def test_row_225_accuracies_of_the_groups_sum_back_to_the_overall_one():
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(1, 40, (10,), generator=draws)
    right = (images * torch.rand(10, generator=draws)).long()
    shots = shot_accuracy(torch.stack([images, images, right], 1), TRAINING)

    overall = sum(accuracy * count for accuracy, count in shots.values()) / images.sum().item()
    assert overall == pytest.approx((right.sum() / images.sum()).item())
    assert [count for _, count in shots.values()] == [it.sum().item() for it in images.split([3, 4, 3])]


def test_a_group_without_images_is_left_out():
    assert shot_accuracy(torch.tensor([[3, 3, 2], [0, 1, 0]]), [500, 1]) == {"many": (2 / 3, 3)}


@pytest.mark.parametrize("arguments", [(0, 0.5, 3), (10, 0.0, 3), (10, 1.5, 3), (10, 0.5, 0)])
def test_counts_that_are_none_are_refused(arguments):
    with pytest.raises(ValueError, match=r"^exponential_counts: largest is .*; give at least 1, a number above "):
        exponential_counts(*arguments)


def test_other_counts_than_classes_are_refused():
    with pytest.raises(ValueError, match=r"^shot_accuracy: there are 1 numbers of training images for 2 classes; give"):
        shot_accuracy(torch.ones(2, 3, dtype=torch.int64), [4])


def validated(tmp_path, **settings):
    torch.manual_seed(0)
    net, logger, data = Plain(), Recorder(), labelled_images(100)
    report = ClassificationReport(worst=0, **settings)
    trainer = quiet_trainer(callbacks=[report], logger=logger, default_root_dir=tmp_path)
    trainer.validate(net, DataLoader(data, batch_size=30), verbose=False)
    shots = {
        name.removeprefix("val/shots/"): it for _, row in logger.rows for name, it in row.items() if "shots" in name
    }
    return shots, net.eval()(data.tensors[0]).argmax(1) == data.tensors[1], data.tensors[1]


def test_row_225_the_report_logs_them(tmp_path):
    shots, right, target = validated(tmp_path, long_tail=[20, 100], class_counts=TRAINING)
    groups = {"many": target < 3, "medium": (target >= 3) & (target < 7), "few": target >= 7}

    assert shots == pytest.approx({shot: right[own].float().mean().item() for shot, own in groups.items()})
    assert sum(shots[shot] * own.sum() for shot, own in groups.items()) / 100 == pytest.approx(right.float().mean())
    assert validated(tmp_path)[0] == {}


@pytest.mark.parametrize(
    ("long_tail", "what"), [(3, "long_tail is 3"), ([1], r"long_tail is \[1\]"), ([20, 10], "the second of long_tail")]
)
def test_bounds_that_are_none_are_refused(long_tail, what):
    with pytest.raises(ValueError, match=f"^ClassificationReport: {what}.*; give "):
        ClassificationReport(long_tail=long_tail)


def test_counts_that_nobody_tells_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"^ClassificationReport: how many training images each class has is not known"
    ):
        validated(tmp_path, long_tail=[20, 100])


class Stepped(Plain):
    steps = 0

    def training_step(self, batch, batch_idx):
        self.steps += 1
        return super().training_step(batch, batch_idx)


def test_in_a_fit_that_is_refused_before_the_first_step(tmp_path):
    net, loader = Stepped(), DataLoader([labelled_images(4)[it] for it in range(4)], batch_size=2)
    trainer = quiet_trainer(callbacks=[ClassificationReport(worst=0, long_tail=[20, 100])], default_root_dir=tmp_path)
    with pytest.raises(ValueError, match=r"^ClassificationReport: how many training images each class has is not"):
        trainer.fit(net, loader, loader)

    assert net.steps == 0


def test_counts_that_are_no_list_are_refused():
    with pytest.raises(ValueError, match=r"^ClassificationReport: class_counts is 7; give a list, the training images"):
        ClassificationReport(long_tail=[20, 100], class_counts=7)


def test_several_labels_an_image_are_refused(tmp_path):
    images, labels = torch.zeros(4, 1, 8, 8), torch.eye(10)[:4]
    net = Plain()
    net.multilabel = True
    callbacks = [ClassificationReport(worst=0, long_tail=[20, 100], class_counts=TRAINING)]
    with pytest.raises(
        ValueError, match=r"^ClassificationReport: long_tail parts images by their one class, and these"
    ):
        quiet_trainer(callbacks=callbacks, default_root_dir=tmp_path).validate(
            net, DataLoader(TensorDataset(images, labels), batch_size=2), verbose=False
        )

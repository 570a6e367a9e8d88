"""The report of this project's classifier says what the classifier itself says and predicts."""

import csv
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_vision import ImageClassifier
from lightning_vision.callbacks import ClassificationReport
from lightning_vision.callbacks.evaluation._table import told
from lightning_vision.callbacks.evaluation._tally import ClassTally
from lightning_vision.classification.calibration import Calibration
from support.data import labelled_images
from support.modules import small_network
from support.trainers import quiet_trainer


def several_labels(count, seed=0):
    """Labels 0..8 say that the digit is above them; no image has the last."""
    images, digits = labelled_images(count, seed).tensors
    return DataLoader(TensorDataset(images, (digits[:, None] > torch.arange(10)).long()), batch_size=16)


def classifier(loss):
    torch.manual_seed(0)
    return ImageClassifier(small_network(0.0), num_classes=10, in_channels=1, loss=loss)


def rows_in(file):
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def test_of_several_labels_it_is_the_classifiers_own_table(tmp_path, capsys):
    module = classifier("bce")
    trainer = quiet_trainer(callbacks=[ClassificationReport()], max_epochs=1, default_root_dir=tmp_path)
    trainer.fit(module, several_labels(64), several_labels(48, seed=1))
    chosen = list(module.thresholds)
    trainer.test(module, several_labels(48, seed=2), verbose=False)
    validated, tested = (rows_in(tmp_path / "report" / f"{it}_per_class.csv") for it in ("val", "test"))
    said = capsys.readouterr().out.splitlines()

    assert len({*chosen, 0.5}) > 5
    for rows in (validated, tested):
        assert [float(row["threshold"]) for row in rows] == pytest.approx(chosen, abs=1e-6)
    for name in ("precision", "recall", "f1", "average_precision", "threshold"):
        own = [row[name] for row in module.per_class]
        assert [float(row[name]) for row in tested] == pytest.approx(own, abs=1e-6)
    assert [int(row["images"]) for row in tested] == [row["support"] for row in module.per_class]
    assert sum("average_precision  threshold" in line for line in said) == 2


def answers(count=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, 4, generator=generator)
    return torch.rand(count, 1, 8, 8, generator=generator), logits, torch.randint(2, (count, 4), generator=generator)


def test_thresholds_decide_as_they_are_when_the_report_is_made():
    images, logits, label = answers()
    module = SimpleNamespace(thresholds=[0.5] * 4)
    tally = ClassTally(40, None, None, module)
    tally.add(images, logits, label)
    module.thresholds = [0.1, 0.3, 0.6, 0.9]
    report = tally.report()
    probability = logits.sigmoid()
    yes = probability > torch.tensor(module.thresholds)
    wrong = {(it, k) for it in range(40) for k in range(4) if bool(yes[it, k]) != bool(label[it, k])}
    sure = {round(float(probability[pair] if yes[pair] else 1 - probability[pair]), 5) for pair in wrong}

    assert report["counts"][:, 1].tolist() == yes.sum(0).tolist()
    assert report["counts"][:, 2].tolist() == (yes & (label > 0)).sum(0).tolist()
    assert report["threshold"] == module.thresholds
    assert {round(it, 5) for it in report["confidence"].tolist()} <= sure
    assert report["confidence"].tolist() == sorted(report["confidence"].tolist(), reverse=True)
    assert len(report["images"]) == len(report["mistakes"]) == len(report["confidence"]) > 20
    assert "threshold" in told(report, "").splitlines()[1]


@pytest.mark.parametrize("thresholds", [None, [0.2] * 3, {"a": 1}, [None] * 4])
def test_what_is_no_list_of_a_number_a_label_is_no_threshold(thresholds):
    images, logits, label = answers()
    tally = ClassTally(4, None, None, SimpleNamespace(thresholds=thresholds))
    tally.add(images, logits, label)

    assert tally.report()["threshold"] == [0.5] * 4


def test_labels_of_one_class_each_are_several_labels_where_the_module_says_so():
    images, logits, _ = answers()
    target = torch.arange(40) % 5
    tallies = [ClassTally(4, None, None, SimpleNamespace(multilabel=True)) for _ in range(2)]
    tallies[0].add(images, logits, target)
    tallies[1].add(images, logits, F.one_hot(target, 5)[:, :4])

    assert torch.equal(tallies[0].report()["counts"], tallies[1].report()["counts"])


@pytest.mark.parametrize("share", [1.0, 0.7])
def test_probabilities_of_one_label_are_no_several_labels(share, tmp_path, capsys):
    images, digits = labelled_images(32).tensors
    target = share * F.one_hot(digits, 10) + (1 - share) / 10
    for labels, folder in ((digits, "numbers"), (target, "probabilities")):
        trainer = quiet_trainer(callbacks=[ClassificationReport()], default_root_dir=tmp_path / folder)
        loader = DataLoader(TensorDataset(images, labels), batch_size=16)
        trainer.test(classifier("cross_entropy"), loader, verbose=False)
    numbers, probabilities = (
        rows_in(tmp_path / it / "report/test_per_class.csv") for it in ("numbers", "probabilities")
    )

    assert "test: 32 images" in capsys.readouterr().out
    assert probabilities == numbers
    assert (tmp_path / "probabilities/report/test_confusion.png").is_file()


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_a_mistake_is_as_sure_as_the_calibrated_prediction(loss, monkeypatch):
    module, reports = classifier(loss).eval(), []
    report = ClassTally.report
    monkeypatch.setattr(ClassTally, "report", lambda self: reports.append(report(self)) or reports[-1])
    delta = 0.3 * torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(0))
    data = several_labels(32) if loss == "bce" else DataLoader(labelled_images(32), batch_size=16)
    module.calibration = Calibration(0.25, delta)
    trainer = quiet_trainer(callbacks=[ClassificationReport()], fast_dev_run=2)
    trainer.test(module, data, verbose=False)
    confidence = reports[0]["confidence"]
    with torch.no_grad():
        probability = module.probabilities(data.dataset.tensors[0])
    label = data.dataset.tensors[1]
    if loss == "bce":
        sure = (probability - label).abs().amax(1)
        wrong = sure > 0.5
    else:
        sure, said = probability.max(1)
        wrong = said != label

    assert confidence.tolist() == pytest.approx(sure[wrong].sort(descending=True).values[:24].tolist(), abs=1e-6)


def test_over_two_processes_several_labels_are_decided_as_in_one(two_ranks):
    images, logits, label = answers()
    module = SimpleNamespace(thresholds=[0.1, 0.3, 0.6, 0.9])

    def report(parts):
        tally = ClassTally(8, None, None, module)
        for part in parts:
            tally.add(images[part], logits[part], label[part])
        return tally.report()

    whole = report([slice(0, 40)])
    for found in two_ranks(lambda: report([slice(0, 30)] if dist.get_rank() == 0 else [slice(30, 36), slice(36, 40)])):
        assert torch.equal(found["counts"], whole["counts"])
        assert found["average_precision"] == pytest.approx(whole["average_precision"], abs=1e-6)
        assert torch.equal(found["mistakes"], whole["mistakes"])
        assert torch.equal(found["images"], whole["images"])

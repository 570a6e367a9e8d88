"""The report counts what torchmetrics counts, keeps the worst mistakes, and writes them where logs are.

That training sees nothing of it and pairs are proved in `conformance/`, the seam in `hooks/test_predictions.py`.
"""

import csv

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.classification import (
    binary_confusion_matrix,
    multiclass_confusion_matrix,
    multilabel_confusion_matrix,
)

from lightning_vision import main
from lightning_vision.callbacks import ClassificationReport
from lightning_vision.callbacks.evaluation._mistakes import SIDE
from lightning_vision.callbacks.evaluation._sheets import CELL, captions, confusion_sheet, mistake_sheet, most_confused
from lightning_vision.callbacks.evaluation._table import rows_of, told, write_csv
from lightning_vision.callbacks.evaluation._tally import ClassTally


def answers(count=90, classes=7, seed=0, labels=False):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, classes, generator=generator)
    images = torch.rand(count, 1, 8, 8, generator=generator)
    if labels:
        return images, logits, torch.randint(2, (count, classes), generator=generator)
    return images, logits, torch.randint(classes, (count,), generator=generator)


def tallied(images, logits, target, worst=5, batch=11, **settings):
    tally = ClassTally(worst, **{"names": None, "pixels": None} | settings)
    for start in range(0, len(logits), batch):
        part = slice(start, start + batch)
        tally.add(images[part], logits[part], target[part])
    return tally.report()


def matrix_of(report):
    matrix = report["counts"][:, 2].diag()
    for own, other, times in report["confusions"].tolist():
        matrix[own, other] = times
    return matrix


def test_confusions_are_those_of_torchmetrics_most_frequent_first():
    images, logits, target = answers()
    report = tallied(images, logits, target)
    times = report["confusions"][:, 2].tolist()

    assert torch.equal(matrix_of(report), multiclass_confusion_matrix(logits, target, num_classes=7))
    assert times == sorted(times, reverse=True)
    assert report["names"] == list("0123456")


@pytest.mark.parametrize("column", [False, True])
def test_a_single_logit_decides_between_two_classes_at_a_half(column):
    images, logits, _ = answers(classes=1)
    target = torch.randint(2, (90,), generator=torch.Generator().manual_seed(1))
    report = tallied(images, logits, target[:, None].float() if column else target, names=["cat", "dog"])
    probability = logits[:, 0].sigmoid()
    sure = torch.where(target == 1, 1 - probability, probability)

    assert torch.equal(matrix_of(report), binary_confusion_matrix(probability, target))
    assert (report["names"], report["multilabel"]) == (["cat", "dog"], False)
    assert torch.allclose(report["confidence"], sure.topk(5).values)


def test_a_single_logit_of_more_than_two_classes_is_refused():
    images, logits, target = answers(classes=1)
    with pytest.raises(ValueError) as refusal:
        tallied(images, logits, target + 2, module=torch.nn.Linear(1, 1))

    assert str(refusal.value) == (
        "Linear answers one logit, which decides between the classes 0 and 1, and a label is 2; let it answer a logit "
        "for each class."
    )


def test_of_very_many_classes_only_the_counts_of_each_are_kept(monkeypatch):
    images, logits, target = answers()
    with_matrix = tallied(images, logits, target)
    monkeypatch.setattr("lightning_vision.callbacks.evaluation._tally.MATRIX", 6)
    without = tallied(images, logits, target)

    assert torch.equal(without["counts"], with_matrix["counts"])
    assert len(without["confusions"]) == 0
    assert torch.equal(without["mistakes"], with_matrix["mistakes"])


def test_several_labels_an_image_are_counted_each_and_have_no_confusions():
    images, logits, target = answers(labels=True)
    for given in (target, target.float()):
        report = tallied(images, logits, given)
        (_, _), (_, _) = each = multilabel_confusion_matrix(logits.sigmoid(), target, num_labels=7).permute(1, 2, 0)
        expected = torch.stack([each[1].sum(0), each[:, 1].sum(0), each[1, 1]], 1)

        assert torch.equal(report["counts"], expected)
        assert len(report["confusions"]) == 0


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("batch", [1, 4, 90])
def test_the_worst_mistakes_are_kept_however_batches_are_cut(batch, labels):
    images, logits, target = answers(labels=labels)
    report = tallied(images, logits, target, batch=batch)
    if labels:
        surprise = (target - logits.sigmoid()).abs()
        wrong = surprise.where((logits > 0) != (target > 0), -torch.ones(()))
        worst = wrong.amax(1).argsort(descending=True)[:5]
        at = wrong.argmax(1)
        rows = [[-1, int(at[it])] if logits[it, at[it]] > 0 else [int(at[it]), -1] for it in worst]
        confidence = wrong.amax(1)[worst]
    else:
        sure, said = logits.softmax(1).max(1)
        worst = sure.where(said != target, -torch.ones(())).argsort(descending=True)[:5]
        rows = [[int(target[it]), int(said[it])] for it in worst]
        confidence = sure[worst]
    low, high = images[worst].amin((1, 2, 3), keepdim=True), images[worst].amax((1, 2, 3), keepdim=True)

    assert report["mistakes"].tolist() == rows
    torch.testing.assert_close(report["confidence"], confidence)
    assert torch.equal(report["images"], ((images[worst] - low) / (high - low) * 255).round().to(torch.uint8))


def test_images_are_shown_as_they_were_before_the_datamodule_normalised_them():
    pixels = torch.randint(256, (4, 3, 6, 5), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    mean, std = [0.4, 0.5, 0.6], [0.1, 0.2, 0.3]
    normalised = (pixels / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    logits = torch.eye(4) * torch.tensor([4.0, 3.0, 2.0, 1.0])
    report = tallied(normalised, logits, torch.tensor([1, 2, 3, 0]), pixels=(mean, std), batch=3)
    plain = tallied(pixels, logits, torch.tensor([1, 2, 3, 0]))

    assert torch.equal(report["images"], pixels)
    assert torch.equal(plain["images"], pixels)


@pytest.mark.parametrize(
    ("shape", "kept"),
    [
        ((3, 1, 300, 150), (3, 1, SIDE, SIDE // 2)),
        ((3, 4, 8, 8), (3, 3, 8, 8)),
        ((3, 2, 8, 8), (3, 1, 8, 8)),
        ((3, 1, 1, 400), (3, 1, 1, SIDE)),
    ],
)
def test_kept_images_are_small_and_of_one_or_three_channels(shape, kept):
    report = tallied(torch.rand(shape), torch.eye(3), torch.tensor([1, 2, 0]))

    assert report["images"].shape == kept
    assert report["images"].dtype == torch.uint8


def test_batches_of_several_sizes_and_of_no_images_are_told():
    logits, target = torch.eye(3).repeat(2, 1), torch.tensor([1, 2, 0]).repeat(2)
    tally = ClassTally(6, None, None)
    tally.add(torch.rand(3, 1, 8, 8), logits[:3], target[:3])
    tally.add(torch.rand(3, 1, 9, 7), logits[3:], target[3:])

    assert tally.report()["images"].shape == (6, 1, 8, 8)
    assert tallied([1, 2, 3, 4, 5, 6], logits, target)["images"] is None
    assert tallied(torch.rand(6, 4), logits, target)["images"] is None


def test_without_mistakes_or_a_batch_there_is_nothing_to_show():
    images, logits, _ = answers()
    right = tallied(images, logits, logits.argmax(1))

    assert right["images"] is None
    assert len(right["confusions"]) == len(right["mistakes"]) == 0
    assert ClassTally(5, None, None).report() is None
    assert len(tallied(*answers(), worst=0)["mistakes"]) == 0


def test_labels_outside_the_classes_are_passed_over():
    images, logits, target = answers()
    target[::3], target[1] = -100, 7
    report = tallied(images, logits, target)
    known = (target >= 0) & (target < 7)

    assert torch.equal(matrix_of(report), multiclass_confusion_matrix(logits[known], target[known], num_classes=7))
    assert int(report["counts"][:, 0].sum()) == int(known.sum())


def test_the_table_has_the_ratios_of_each_class_worst_first_and_at_most_twenty(tmp_path):
    report = {
        "names": [f"kind {number}" for number in range(30)],
        "multilabel": False,
        "counts": torch.tensor([[10, 10, number // 3] for number in range(30)]),
        "confusions": torch.tensor([[4, 2, 7], [3, 4, 5]]),
    }
    write_csv(report, tmp_path / "table.csv")
    written = list(csv.DictReader((tmp_path / "table.csv").open()))
    lines = told(report, "a test").splitlines()

    assert rows_of(report)[29] == ("kind 29", 10, 10, 9, 0.9, 0.9, 0.9, ())
    assert [row["class"] for row in written] == report["names"]
    assert written[29]["f1"] == "0.900000"
    assert lines[0] == "a test: 300 images, 45.00% right"
    assert lines[1].endswith("(the worst 20 of 30)")
    assert [line.split()[1] for line in lines[2:5]] == ["0", "1", "2"]
    assert lines[-1] == "most often taken: kind 4 for kind 2 (7 of 10), kind 3 for kind 4 (5 of 10)"
    assert len(lines) == 2 + 20 + 1


def test_classes_that_never_came_have_ratios_of_zero_and_no_line():
    report = tallied(*answers(classes=4)[:2], torch.zeros(90, dtype=torch.int64))
    silent = tallied(torch.rand(2, 1, 8, 8), torch.tensor([[9.0, 0, 0], [9.0, 0, 0]]), torch.tensor([0, 0]))

    assert all(np.isfinite(row[4:7]).all() for row in rows_of(report))
    assert [line.split()[0] for line in told(silent, "").splitlines()[2:]] == ["0"]


def test_the_matrix_of_a_thousand_classes_shows_the_most_confused_ones():
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(1000, (3000,), generator=generator)
    logits = torch.nn.functional.one_hot(target, 1000).float()
    logits[:40] = torch.nn.functional.one_hot(torch.full((40,), 977), 1000)
    target[:40], target[40:100] = 12, (target[40:100] + 1) % 1000
    names = [f"a class with a long name {number}" for number in range(1000)]
    report = tallied(torch.rand(3000, 1, 8, 8), logits, target, names=names)
    few = tallied(torch.rand(3000, 1, 8, 8), logits[:, :24], target % 24, names=names[:24])

    assert len(most_confused(report)) == 24
    assert {12, 977} <= set(most_confused(report))
    # A line more, which says how many of how many.
    assert np.subtract(confusion_sheet(report).shape, confusion_sheet(few).shape)[0] > 10


def test_each_cell_of_the_matrix_has_the_colour_of_its_share():
    logits, target = torch.eye(3)[[0, 0, 0, 1, 2, 2]], torch.tensor([0, 0, 1, 1, 2, 2])
    sheet = confusion_sheet(tallied(torch.rand(6, 1, 8, 8), logits, target))
    empty, half, full = (np.round(255 * np.array(mpl.colormaps["Blues"](it)[:3])) for it in (0, 0.5**0.5, 1.0))
    (top, left), side = np.argwhere((sheet == full).all(2))[0], CELL
    # Beside the number, which stands in the middle.
    seen = [[sheet[top + row * side + 3, left + column * side + 3] for column in range(3)] for row in range(3)]
    expected = [[full, empty, empty], [half, half, empty], [empty, empty, full]]

    cells = [
        [sheet[top + row * side :][:side, left + column * side :][:, :side] for column in range(3)] for row in range(3)
    ]
    written = [[bool((cell != cell[3, 3]).any()) for cell in row] for row in cells]

    assert np.abs(np.subtract(seen, expected)).max() <= 1
    assert written == [[True, False, False], [True, True, False], [False, False, True]]


def test_the_sheet_says_what_was_said_how_surely_and_what_it_is():
    single = tallied(
        torch.rand(3, 3, 8, 8),
        torch.diag(torch.tensor([9.0, 6.0, 5.0])),
        torch.tensor([0, 2, 1]),
        names=["ape", "bee", "cat"],
    )
    logits, target = torch.tensor([[6.0, -5.0], [5.0, -5.0]]), torch.tensor([[0, 0], [1, 1]])
    several = tallied(torch.rand(2, 3, 8, 8), logits, target, names=["ape", "bee"])

    assert captions(single) == ["said bee 1.00\nis cat", "said cat 0.99\nis bee"]
    assert captions(several) == ["said ape 1.00\nis not", "said no bee 0.99\nis"]
    for report in (single, several):
        enlarged = report["images"][0].permute(1, 2, 0).numpy().repeat(12, 0).repeat(12, 1)
        assert np.array_equal(mistake_sheet(report)[6 : 6 + 8 * 12, 6 : 6 + 8 * 12], enlarged)


def test_from_the_command_line_reports_of_fit_and_test_stand_beside_the_runs_logs(tmp_path, capsys):
    files = ["--config", "classification/digits", "--config", "callbacks/classification_report"]
    short = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.accelerator", "cpu"]
    result = main(["fit", *files, *short, "--trainer.default_root_dir", str(tmp_path)])
    (folder,) = tmp_path.rglob("report")
    main(
        [
            "test",
            *files,
            "--trainer.accelerator",
            "cpu",
            "--ckpt_path",
            str(result.best_ckpt),
            "--trainer.default_root_dir",
            str(tmp_path / "other"),
        ]
    )
    (tested,) = (tmp_path / "other").rglob("report")
    said = capsys.readouterr().out

    assert sorted(it.name for it in folder.iterdir()) == ["val_confusion.png", "val_mistakes.png", "val_per_class.csv"]
    assert sorted(it.name for it in tested.iterdir()) == [
        it.replace("val", "test") for it in sorted(it.name for it in folder.iterdir())
    ]
    assert (folder.parent / "metrics.csv").is_file()
    assert "validation of epoch 0, step 2, the best by val/loss" in said
    assert "test: 359 images" in said
    assert all(min(Image.open(it).size) > 150 for it in folder.glob("*.png"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"worst": -1}, "worst is -1; give a whole number of at least 0."),
        ({"mode": "best"}, "mode is 'best'; give 'min' or 'max'."),
        ({"every_n_epochs": 0.5}, "every_n_epochs is 0.5; give a whole number of at least 0."),
    ],
)
def test_wrong_arguments_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"^ClassificationReport: {message}$"):
        ClassificationReport(**settings)

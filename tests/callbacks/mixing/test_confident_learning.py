"""Whose label is in doubt: folds, probabilities out of sample, and confident learning, by hand and as cleanlab does."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from lightning_vision.callbacks.mixing.confident_learning import (
    Doubt,
    class_thresholds,
    confident_class,
    fold_numbers,
    label_doubt,
    out_of_sample_probabilities,
    read_probabilities,
)

# Thresholds: class 0 (0.9 + 0.7 + 0.2) / 3 = 0.6, class 1 (0.8 + 0.3) / 2 = 0.55, class 2 (0.6 + 0.5 + 0.1) / 3 = 0.4.
PROBABILITIES = torch.tensor(
    [
        [0.90, 0.05, 0.05],
        [0.70, 0.20, 0.10],
        [0.20, 0.70, 0.10],  # labelled 0, and 1 is confident
        [0.10, 0.80, 0.10],
        [0.65, 0.30, 0.05],  # labelled 1, and 0 is confident
        [0.20, 0.20, 0.60],
        [0.10, 0.40, 0.50],
        [0.49, 0.41, 0.10],  # labelled 2, another is likelier, but none is confident
    ]
)
LABELS = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])


def blobs(count: int = 300, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (count,), generator=generator)
    return torch.randn(count, 5, generator=generator) + 2 * torch.nn.functional.one_hot(labels, 5), labels


def test_a_threshold_is_the_mean_of_a_class_for_its_own() -> None:
    assert torch.allclose(class_thresholds(PROBABILITIES, LABELS), torch.tensor([0.6, 0.55, 0.4]))
    assert class_thresholds(PROBABILITIES[:3], LABELS[:3]).tolist() == pytest.approx([0.6, 2.0, 2.0])


def test_a_class_is_confident_where_it_reaches_its_threshold_and_of_two_the_likelier_one() -> None:
    found = confident_class(PROBABILITIES, class_thresholds(PROBABILITIES, LABELS))

    assert found.tolist() == [0, 0, 1, 1, 0, 2, 2, -1]
    # Both reach theirs: the likelier one, whichever surpasses its own by more.
    assert confident_class(torch.tensor([[0.3, 0.45]]), torch.tensor([0.1, 0.4])).tolist() == [1]


def test_in_doubt_is_whose_confident_class_is_another() -> None:
    doubt = label_doubt(PROBABILITIES, LABELS)

    assert doubt.uncertain.tolist() == [False, False, True, False, True, False, False, False]
    assert doubt.trusted.tolist() == [True, True, False, True, False, True, True, False]
    assert doubt.predicted.tolist() == [0, 0, 1, 1, 0, 2, 2, 0]
    assert doubt.keep.tolist() == pytest.approx([1, 1, 0.2 / 0.9, 1, 0.3 / 0.95, 1, 1, 0.1 / 0.59])


def test_whose_likeliest_class_is_the_given_one_is_not_in_doubt() -> None:
    # Class 1 reaches its threshold 0.4 and class 0, the likeliest, not its own of 0.7.
    found = torch.tensor([[0.9, 0.1], [0.55, 0.45], [0.65, 0.35], [0.6, 0.4]])
    doubt = label_doubt(found, torch.tensor([0, 0, 0, 1]))

    assert confident_class(found, class_thresholds(found, torch.tensor([0, 0, 0, 1]))).tolist() == [0, 1, -1, 1]
    assert doubt.uncertain.tolist() == [False] * 4
    assert doubt.trusted.tolist() == [True, False, False, False]


def test_in_doubt_is_also_who_is_like_no_class() -> None:
    doubt = label_doubt(PROBABILITIES, LABELS, confidence_threshold=0.55)

    assert doubt.uncertain.tolist() == [False, False, True, False, True, False, True, True]
    assert not doubt.trusted[[6, 7]].any()


def test_the_same_samples_are_in_doubt_as_cleanlab_finds() -> None:
    filters = pytest.importorskip("cleanlab.filter")
    features, labels = blobs()
    wrong = labels.clone()
    wrong[:90] = (wrong[:90] + 1) % 4
    found = out_of_sample_probabilities(features, wrong, 5)
    theirs = filters.find_label_issues(wrong.numpy(), found.numpy(), filter_by="confident_learning")

    assert np.array_equal(label_doubt(found, wrong).uncertain.numpy(), theirs)


def test_row_190_each_sample_is_left_out_of_exactly_one_fit() -> None:
    features, labels = blobs()
    folds = fold_numbers(labels, 5, seed=1)
    found = out_of_sample_probabilities(features, labels, 5, seed=1)
    scaled = features.double().numpy()
    for fold in range(5):
        others, mine = (folds != fold).numpy(), (folds == fold).numpy()
        mean, deviation = scaled[others].mean(0), scaled[others].std(0)
        fitted = LogisticRegression(max_iter=1000).fit((scaled[others] - mean) / deviation, labels.numpy()[others])

        assert np.abs(fitted.predict_proba((scaled[mine] - mean) / deviation) - found.numpy()[mine]).max() < 1e-6
        assert abs(int(mine.sum()) - 60) <= 2
        counts = labels[folds == fold].bincount(minlength=4)
        assert (counts - labels.bincount() / 5).abs().max() < 1
    assert folds.bincount().sum() == len(labels)
    assert torch.allclose(found.sum(1), torch.ones(300))


def test_who_was_seen_by_its_own_judge_would_be_known_by_heart() -> None:
    """Labels are drawn at random and each sample has a feature of its own, so that nothing but memory can tell them."""
    labels = torch.randint(4, (200,), generator=torch.Generator().manual_seed(0))
    features = torch.eye(200)
    found = out_of_sample_probabilities(features, labels, 5)
    by_heart = LogisticRegression(max_iter=1000, C=1e4).fit(features.numpy(), labels.numpy())

    assert by_heart.score(features.numpy(), labels.numpy()) == 1.0
    assert (found.argmax(1) == labels).double().mean() < 0.4


def test_another_seed_makes_other_folds_and_the_same_one_the_same() -> None:
    _, labels = blobs()

    assert torch.equal(fold_numbers(labels, 5, 0), fold_numbers(labels, 5, 0))
    assert not torch.equal(fold_numbers(labels, 5, 0), fold_numbers(labels, 5, 1))


def test_a_class_that_no_other_fold_has_is_impossible() -> None:
    features, labels = blobs(60, 3)
    labels[:59][labels[:59] == 2], labels[59] = 0, 2
    found = out_of_sample_probabilities(features, labels, 5, num_classes=6)

    assert found.shape == (60, 6)
    assert found[59, 2] == 0
    assert not found[:, 3:].any()
    assert torch.allclose(found.sum(1), torch.ones(60))


def test_rows_hold_all_that_is_known_and_nan_is_neither() -> None:
    doubt = label_doubt(PROBABILITIES, LABELS)
    again = Doubt.of(doubt.rows())
    nothing = Doubt.of(torch.full((2, 5), float("nan")))

    assert all(torch.equal(*pair) for pair in zip(vars(doubt).values(), vars(again).values(), strict=True))
    assert not nothing.uncertain.any()
    assert not nothing.trusted.any()


def test_what_cannot_be_cross_validated_is_refused() -> None:
    features, labels = blobs(20)
    with pytest.raises(
        ValueError, match=r"^SelectMix: k_folds is 19 and no class has as many training samples; give f"
    ):
        out_of_sample_probabilities(features, labels, 19)
    with pytest.raises(ValueError, match=r"^SelectMix: all training samples have one class, so none can be in doubt; "):
        out_of_sample_probabilities(features, torch.ones(20, dtype=torch.int64), 2)


def test_labels_that_are_none_of_the_classes_are_refused() -> None:
    features, labels = blobs(20)
    for wrong, classes, message in ((labels - 100, None, "a label is -100, "), (labels, 1, "a label is [1-9], and th")):
        with pytest.raises(ValueError, match=f"^SelectMix: {message}"):
            out_of_sample_probabilities(features, wrong, 2, num_classes=classes)
    with pytest.raises(ValueError, match=r"^SelectMix: a label is -1, which is no class"):
        label_doubt(PROBABILITIES, LABELS - 1 - LABELS.min())
    with pytest.raises(ValueError, match=r"^SelectMix: a label is -1, which is no class"):
        fold_numbers(torch.tensor([-1, 0, 0, 1]), 2, 0)


def test_probabilities_are_read_from_a_file_and_nothing_else_is(tmp_path: Path) -> None:
    np.save(tmp_path / "found.npy", PROBABILITIES.double().numpy())
    np.savez(tmp_path / "found.npz", pred_probs=PROBABILITIES.numpy())
    for name in ("found.npy", "found.npz"):
        assert torch.equal(read_probabilities(tmp_path / name), PROBABILITIES)
    (tmp_path / "text.npy").write_text("0.5 0.5")
    np.save(tmp_path / "code.npy", np.array([print], object))
    for name in ("nowhere.npy", "text.npy", "code.npy"):
        with pytest.raises(
            ValueError, match=r"could not be read as probabilities \(.*\); write floats \(N, K\) with num"
        ):
            read_probabilities(tmp_path / name)
    for content in (np.arange(6).reshape(3, 2), np.array([0.5, 0.5]), np.array([[0.7, 0.7]]), np.array([[1.5, -0.5]])):
        np.save(tmp_path / "other.npy", content)
        with pytest.raises(
            ValueError, match=r"holds no probabilities \(N, K\) whose rows add up to 1; write a row for"
        ):
            read_probabilities(tmp_path / "other.npy")

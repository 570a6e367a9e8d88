"""Which labels are in doubt: probabilities out of sample, and confident learning over them.

Northcutt, Jiang and Chuang 2021, arXiv:1911.00068, section 3.1. Letters: N samples, D features, K classes.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "Doubt",
    "check_classes",
    "class_thresholds",
    "confident_class",
    "fold_numbers",
    "label_doubt",
    "out_of_sample_probabilities",
]

# A probability as large as its threshold but for rounding has reached it.
CLOSE = 1e-6
NEVER = 2.0


@dataclass(frozen=True)
class Doubt:
    """What is known of samples' labels.

    Args:
        given: The class of the label, int64 `(N,)`.
        predicted: The likeliest class, int64 `(N,)`.
        keep: What the given class has of the probability of the two, float `(N,)`; 1 where they are one.
        uncertain: Whose label is in doubt, bool `(N,)`.
        trusted: Whose label is the likeliest class and as likely as it is on average for that class, bool `(N,)`.
    """

    given: Tensor
    predicted: Tensor
    keep: Tensor
    uncertain: Tensor
    trusted: Tensor

    def rows(self) -> Tensor:
        """The same as numbers, float32 `(N, 5)`."""
        return torch.stack([it.float() for it in vars(self).values()], 1)

    @classmethod
    def of(cls, rows: Tensor) -> "Doubt":
        """What `rows` gave; samples of NaN are neither in doubt nor trusted."""
        given, predicted, keep, uncertain, trusted = rows.nan_to_num(0.0).unbind(1)
        return cls(given.long(), predicted.long(), keep, uncertain > 0, trusted > 0)


def check_classes(labels: Tensor, num_classes: int | None = None) -> None:
    """Refuse labels that are none of the classes 0 to `num_classes` - 1.

    Args:
        labels: Whole numbers `(N,)`.
        num_classes: None knows no highest class.

    Raises:
        ValueError: there is such a label.
    """
    if not len(labels):
        return
    low, high = (int(it) for it in torch.stack(labels.aminmax()))
    if low < 0:
        raise ValueError(
            f"SelectMix: a label is {low}, which is no class, and it judges each training sample by its class; leave "
            "samples without one out of the training set."
        )
    if num_classes is not None and high >= num_classes:
        raise ValueError(
            f"SelectMix: a label is {high}, and there are probabilities of {num_classes} classes, 0 to "
            f"{num_classes - 1}; give those of all classes, or their num_classes."
        )


def fold_numbers(labels: Tensor, k_folds: int, seed: int) -> Tensor:
    """The fold of each sample, int64 `(N,)` in 0 .. k_folds - 1, every class spread over all (`StratifiedKFold`).

    Raises:
        ValueError: a label is below 0, or no class has as many samples as there are folds.
    """
    check_classes(labels)
    # Here, for scikit-learn takes a while to import.
    from sklearn.model_selection import StratifiedKFold

    if int(labels.bincount().max()) < k_folds:
        raise ValueError(
            f"SelectMix: k_folds is {k_folds} and no class has as many training samples; give fewer folds."
        )
    number = torch.empty_like(labels)
    with warnings.catch_warnings():
        # Of a class with fewer samples than folds some folds have none, which is no harm.
        warnings.filterwarnings("ignore", message="The least populated class")
        folds = StratifiedKFold(k_folds, shuffle=True, random_state=seed)
        for fold, (_, left_out) in enumerate(folds.split(labels.numpy(), labels.numpy())):
            number[left_out] = fold
    return number


def out_of_sample_probabilities(
    features: Tensor, labels: Tensor, k_folds: int, seed: int = 0, num_classes: int | None = None
) -> Tensor:
    """Class probabilities of each sample by a linear classifier that was fitted to the other folds.

    scikit-learn's `LogisticRegression` on features of mean 0 and deviation 1 each.

    Args:
        features: Float `(N, D)` on the CPU.
        labels: Classes, int64 `(N,)`.
        k_folds: Parts of the samples.
        seed: Of the parts.
        num_classes: K; None is that of the labels.

    Returns:
        Float32 `(N, K)`; 0 for a class that was not among the other folds.

    Raises:
        ValueError: a label is none of the K classes, no class has as many samples as there are folds, or all have one
            class.
    """
    check_classes(labels, num_classes)
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    found = np.zeros((len(labels), num_classes or int(labels.max()) + 1))
    inputs, classes = features.double().numpy(), labels.numpy()
    if len(np.unique(classes)) < 2:
        raise ValueError("SelectMix: all training samples have one class, so none can be in doubt; leave it out.")
    number = fold_numbers(labels, k_folds, seed).numpy()
    for fold in range(k_folds):
        left_out = number == fold
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        classifier.fit(inputs[~left_out], classes[~left_out])
        found[np.ix_(left_out, classifier.classes_)] = classifier.predict_proba(inputs[left_out])
    return torch.from_numpy(found).float()


def class_thresholds(probabilities: Tensor, labels: Tensor) -> Tensor:
    """How likely each class is on average for the samples that are labelled so, `(K,)`; 2, never reached, without any.

    Args:
        probabilities: Out of sample, `(N, K)`.
        labels: int64 `(N,)`.

    Example:
        >>> class_thresholds(torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.4, 0.6]]), torch.tensor([0, 0, 1]))
        tensor([0.8000, 0.6000])
    """
    own = torch.nn.functional.one_hot(labels, probabilities.shape[1]).to(probabilities.dtype)
    count = own.sum(0)
    return ((own * probabilities).sum(0) / count).where(count > 0, NEVER)


def confident_class(probabilities: Tensor, thresholds: Tensor) -> Tensor:
    """The class that reaches its threshold, of several the likeliest one, int64 `(N,)`; -1 where none does."""
    reached = probabilities >= thresholds - CLOSE
    best: Tensor = probabilities.where(reached, -1.0).argmax(1)
    return best.where(reached.any(1), -1)


def label_doubt(probabilities: Tensor, labels: Tensor, confidence_threshold: float = 0.0) -> Doubt:
    """Whose label is in doubt, by confident learning, and whose can be trusted.

    In doubt is a sample of which another class than its own is confident and the likeliest (the off-diagonal of the
    confident joint, as cleanlab's `find_label_issues(filter_by="confident_learning")` finds it), and one of which no
    class is as likely as `confidence_threshold`.

    Args:
        probabilities: Out of sample, `(N, K)`.
        labels: int64 `(N,)`.
        confidence_threshold: 0 to 1.

    Raises:
        ValueError: a label is none of the K classes.
    """
    check_classes(labels, probabilities.shape[1])
    likelihood, predicted = probabilities.max(1)
    thresholds = class_thresholds(probabilities, labels)
    guess = confident_class(probabilities, thresholds)
    given = probabilities.gather(1, labels[:, None])[:, 0]
    other = predicted != labels
    uncertain = ((guess >= 0) & (guess != labels) & other) | (likelihood < confidence_threshold)
    trusted = ~uncertain & ~other & (given >= thresholds[labels] - CLOSE)
    keep = (given / (given + likelihood)).where(other, 1.0)
    return Doubt(labels, predicted, keep, uncertain, trusted)


def read_probabilities(path: Path) -> Tensor:
    """Probabilities of a file, float32 `(N, K)`.

    Raises:
        ValueError: the file is missing or holds anything else.
    """
    try:
        content = np.load(path, allow_pickle=False)
        table = np.asarray(content if isinstance(content, np.ndarray) else content[content.files[0]])
        whole = table.ndim == 2 and table.dtype.kind == "f" and len(table) > 0
        rows = torch.from_numpy(table.astype(np.float32)) if whole else None
    except (OSError, ValueError, IndexError, EOFError) as error:
        raise ValueError(
            f"SelectMix: {path} could not be read as probabilities ({error}); write floats (N, K) with numpy.save."
        ) from error
    if rows is None or bool((rows < 0).any()) or not bool(((rows.sum(1) - 1).abs() < 1e-2).all()):
        raise ValueError(
            f"SelectMix: {path} holds no probabilities (N, K) whose rows add up to 1; write a row for each training "
            "sample with numpy.save."
        )
    return rows

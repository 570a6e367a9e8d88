"""Predictions as plain records, one an image, for JSON Lines, CSV and Python."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

__all__ = ["prediction_records"]


def prediction_records(
    probabilities: Tensor,
    index: Sequence[int],
    class_names: Sequence[str],
    paths: Sequence[str | Path | None],
    top_k: int = 5,
    thresholds: Sequence[float] | None = None,
) -> list[dict[str, Any]]:
    """Turn the probabilities of a batch into plain records, one an image, as JSON Lines and CSV hold them.

    Args:
        probabilities: `(B, K)` in 0..1.
        index: Position of each image in its dataset, B numbers.
        class_names: K names.
        paths: File of each image, or None where it came from no file.
        top_k: Classes in `top_k`; at most K are listed.
        thresholds: Where an image may have several labels, above which probability each is said to be there, K numbers.

    Returns:
        `{"path": str or None, "index": int, "label": int, "class_name": str, "probabilities": [K floats],
        "top_k": [{"label", "class_name", "probability"}, ... most probable first]}`; `label` is the first of these.
        With `thresholds` also `"labels"`, the names of those above theirs, in the order of the classes.
    """
    order = probabilities.argsort(dim=1, descending=True, stable=True)[:, : max(top_k, 1)].tolist()
    records: list[dict[str, Any]] = [
        {
            "path": None if path is None else str(path),
            "index": int(position),
            "label": best[0],
            "class_name": class_names[best[0]],
            "probabilities": row,
            "top_k": [{"label": k, "class_name": class_names[k], "probability": row[k]} for k in best[:top_k]],
        }
        for path, position, row, best in zip(paths, index, probabilities.tolist(), order, strict=True)
    ]
    if thresholds is not None:
        for record in records:
            each = zip(class_names, record["probabilities"], thresholds, strict=True)
            record["labels"] = [name for name, probability, threshold in each if probability > threshold]
    return records

"""What `corrupt` shows on the terminal."""

from collections.abc import Iterable
from pathlib import Path

from lightning_vision.commands._report import print_table
from lightning_vision.robustness.scores import RobustnessScores

__all__ = ["label", "show_scores", "show_side_by_side"]


def label(model: str, models: Iterable[str]) -> str:
    """How a model is called: its file's name where that is no other's too."""
    stems = [Path(name).name for name in models]
    return Path(model).name if stems.count(Path(model).name) == 1 else model


def show_scores(title: str, scores: RobustnessScores) -> None:
    """A row for each corruption, a column for each severity, then clean score, mPC and rPC."""
    first = next(iter(scores.corruptions.values()))
    rows = {"corruption": "  ".join(f"{level:>7}" for level in (*first.by_severity, "mean", "of clean"))}
    for name, found in scores.corruptions.items():
        cells = "  ".join(f"{score:7.4f}" for score in (*found.by_severity.values(), found.mean))
        rows[name] = f"{cells}  {_share(found.relative):>8}"
    rows |= {"clean": f"{scores.clean:7.4f}", "mPC": f"{scores.mpc:7.4f}", "rPC": f"{_share(scores.rpc):>7}"}
    print_table(title, rows)


def show_side_by_side(scores: dict[tuple[str, str, str], RobustnessScores], models: Iterable[str]) -> None:
    """A row for each (model, data, metric)."""
    rows = {"": "  ".join(f"{name:>7}" for name in ("clean", "mPC", "rPC"))}
    for (model, data, metric), found in scores.items():
        cells = f"{found.clean:7.4f}  {found.mpc:7.4f}  {_share(found.rpc):>7}"
        rows[f"{label(model, models)}, {data}, {metric}"] = cells
    print_table("side by side", rows)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"

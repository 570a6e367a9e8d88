"""Measure a checkpoint on the test split."""

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_vision.callbacks.evaluation.classification_report import ClassificationReport
from lightning_vision.commands._report import print_table, require


def run(cli: Any, ckpt_path: str | None = None) -> str | None:
    """Evaluate the model on the datamodule; a row for each class is shown too, and of detectors COCO's table.

    Args:
        ckpt_path: Checkpoint whose weights are measured, or `last` for the newest one under the config's folder;
            without it the freshly built model is measured.

    Returns:
        Path of the written `per_class.csv`, None where the model keeps no such table or nothing is logged.
    """
    require(cli, "model", "data")
    cli.trainer.test(cli.model, datamodule=cli.datamodule, ckpt_path=ckpt_path, weights_only=True)
    rows: list[dict[str, Any]] = getattr(cli.model, "per_class", [])
    if table := getattr(cli.model, "coco_table", ""):
        _print_lines(table)
    if not rows:
        return None
    if not any(isinstance(it, ClassificationReport) for it in cli.trainer.callbacks):  # it has shown them
        _show(rows)
    if cli.run_dir is None:
        return None
    _write(rows, cli.run_dir / "per_class.csv")
    return str(cli.run_dir / "per_class.csv")


@rank_zero_only
def _print_lines(table: str) -> None:
    print("\n".join(["test, as COCO counts it", *(f"  {line}" for line in table.splitlines())]), flush=True)


@rank_zero_only
def _show(rows: list[dict[str, Any]]) -> None:
    scores = [name for name in rows[0] if name not in ("class", "support")]
    widths = {name: max(9, len(name)) for name in scores}
    table = {"class": "  support  " + "  ".join(f"{name:>{width}}" for name, width in widths.items())}
    for row in rows:
        cells = (f"{row[name]:{width}.4f}" for name, width in widths.items())
        table[str(row["class"])] = f"{row['support']:9}  " + "  ".join(cells)
    print_table("test, each class", table)


@rank_zero_only
def _write(rows: list[dict[str, Any]], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)

"""Average the weights of several checkpoints of one network, measured beside each of them and beside their ensemble."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_vision.base.weights import load_checkpoint
from lightning_vision.classification.classifier import ImageClassifier
from lightning_vision.classification.ensemble import LogitEnsemble
from lightning_vision.commands._files import output_folder
from lightning_vision.commands._merging import (
    Judge,
    average_in,
    module_of,
    monitored,
    moving_statistics,
    refuse_other_images,
    write_merged,
)
from lightning_vision.commands._report import print_table, require, require_one_process
from lightning_vision.merging.model_soup import greedy_soup, uniform_soup

CKPT, CSV = "soup.ckpt", "soup.csv"


def run(
    cli: Any,
    checkpoints: list[str] | str,
    recipe: Literal["greedy", "uniform"] = "greedy",
    monitor: str | None = None,
    mode: Literal["min", "max"] | None = None,
    pattern: str = "*.ckpt",
    output: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the soup of a folder's checkpoints, and a table of what each of them and both soups score.

    Args:
        checkpoints: Folder that is searched with all its sub-folders, or several files. Of a folder's files that hold
            the same weights, as a run's best and last often do, the first counts.
        recipe: Which soup is written: `greedy` keeps what does not make the validation score worse, `uniform` all.
        monitor: Metric of the validation split that decides, as `val/acc`; what the checkpoints were chosen by if not
            given.
        mode: Whether a large or a small metric is good; as the checkpoints have it if not given, else `min` for a loss.
        pattern: Names of files in a folder, as `best*.ckpt`.
        output: Folder for `soup.ckpt` and `soup.csv`; the given folder, or that of the first file, if not given.
        overwrite: Replace the files of an earlier soup.

    Returns:
        `checkpoint` and `table`, the paths written; `kept`, the files in the soup; `scores`, all metrics of each file,
        of `uniform soup` and `greedy soup`, and of `logit ensemble` where they are classifiers.

    Raises:
        ValueError: fewer than two checkpoints, of different architectures, classes or preparations; no data, no
            validation split, no such metric, or several processes.
        FileNotFoundError: there is no such file or folder.
        FileExistsError: a file exists and `overwrite` is off.
    """
    require(cli, "data")
    require_one_process(cli, "soup")
    given = [checkpoints] if isinstance(checkpoints, str) else list(checkpoints)
    contents = _ingredients(given, pattern)
    paths = list(contents)
    states = [content["state_dict"] for content in contents.values()]
    # Before anything is measured, for it says what cannot be mixed.
    mean = uniform_soup(states, labels=paths)
    refuse_other_images(paths, list(contents.values()))
    monitor, mode = monitored(list(contents.values()), monitor, mode)
    place = Path(given[0]) if Path(given[0]).is_dir() else Path(given[0]).parent
    folder = output_folder(cli, output or str(place), (CKPT, CSV), overwrite)
    judge = Judge(cli, module_of(cli, paths[0]), monitor, moving_statistics(states))
    scores = {path: judge.metrics(state) for path, state in zip(paths, states, strict=True)}
    alone = [scores[path][monitor] for path in paths]
    greedy = greedy_soup(states, judge.score, alone, higher_is_better=mode == "max", labels=paths)
    soups = {"uniform": judge.settled(mean)}
    soups["greedy"] = judge.settled(greedy.state_dict) if len(greedy.kept) > 1 else greedy.state_dict
    kept = {"uniform": paths, "greedy": [paths[it] for it in greedy.kept]}
    scores |= {f"{name} soup": judge.metrics(state) for name, state in soups.items()}
    if isinstance(judge.module, ImageClassifier):
        scores["logit ensemble"] = judge.metrics({}, _ensemble(judge.module, paths))
    written = {"checkpoint": str(folder / CKPT), "table": str(folder / CSV)}
    origin = {"recipe": recipe, "monitor": monitor, "ingredients": kept[recipe]}
    write_merged(contents[kept[recipe][0]], soups[recipe], origin, folder / CKPT)
    _write(scores, set(kept["greedy"]), folder / CSV)
    _tell(scores, monitor, mode, kept["greedy"], contents)
    print_table("written", {**written, "weights": f"{recipe} soup of {len(kept[recipe])} checkpoints"})
    return {**written, "kept": kept[recipe], "scores": scores}


def _ingredients(given: list[str], pattern: str) -> dict[str, dict[str, Any]]:
    """Contents by path, sorted; what a folder holds of earlier merges, and twice, is left out.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: there are fewer than two.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in given:
        searched = Path(name).is_dir()
        for path in sorted(Path(name).rglob(pattern)) if searched else [Path(name)]:
            content = load_checkpoint(path)
            if searched and "merged" in content:
                continue
            twin = next(
                (it for it in found if searched and _same(found[it]["state_dict"], content["state_dict"])), None
            )
            if twin is None:
                found[str(path)] = content
            else:
                print(f"  {path} holds the weights of {twin} and is left out")
    if len(found) < 2:
        raise ValueError(
            f"a soup needs two checkpoints of different weights, and there {'is' if len(found) == 1 else 'are'} "
            f"{len(found)} in {' and '.join(given)} (in folders, files called {pattern}); name a folder or files"
        )
    return dict(sorted(found.items()))


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def _ensemble(module: ImageClassifier, paths: list[str]) -> ImageClassifier:
    ensemble = ImageClassifier(
        LogitEnsemble(paths),
        num_classes=module.num_classes,
        in_channels=module.in_channels,
        loss="bce" if module.multilabel else "cross_entropy",
    )
    # Its loss in the table is the same function as the others'.
    ensemble.criterion = module.criterion
    ensemble.preprocessing = module.preprocessing
    return ensemble


def _tell(
    scores: Mapping[str, Mapping[str, float]],
    monitor: str,
    mode: str,
    kept: list[str],
    contents: Mapping[str, Mapping[str, Any]],
) -> None:
    other = "test/" + monitor.partition("/")[2]
    rows = {"": f"{monitor:>12}" + (f"{other:>12}" if other in scores[kept[0]] else "")}
    for name, metrics in scores.items():
        cells = "".join(f"{metrics[it]:12.4f}" for it in (monitor, other) if it in metrics)
        rows[name] = cells + ("  in the greedy soup" if name in kept else "")
    print_table(f"soup of {len(contents)} checkpoints, {'largest' if mode == 'max' else 'smallest'} {monitor}", rows)
    for path, content in contents.items():
        if (average := average_in(content)) is not None:
            print(f"  {path}: the weights are the average of {average}")
        if content.get("calibration"):
            print(f"  {path} is calibrated; the soup is not, so calibrate it anew")


def _write(scores: Mapping[str, Mapping[str, float]], kept: set[str], path: Path) -> None:
    names = list(dict.fromkeys(name for metrics in scores.values() for name in metrics))
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["weights", "in_greedy_soup", *names])
        for which, metrics in scores.items():
            table.writerow(
                [which, int(which in kept), *(f"{metrics[it]:.6g}" if it in metrics else "" for it in names)]
            )

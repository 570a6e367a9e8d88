"""Measure a checkpoint on corrupted test images: noise, blur, weather and digital, at five severities."""

import re
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import SaveConfigCallback

from lightning_vision.base.weights import module_from_checkpoint
from lightning_vision.callbacks.hooks.evaluation import Evaluation
from lightning_vision.catalogue import nearest
from lightning_vision.commands._corrupted_data import (
    check_corruptible,
    check_same_classes,
    corrupted_test,
    data_of_config,
    other_size,
)
from lightning_vision.commands._files import output_folder
from lightning_vision.commands._report import print_table, require, require_one_process
from lightning_vision.commands._robustness_file import CLEAN, CSV, JSON, MeasuredCells, file_digest, weights_digest
from lightning_vision.commands._robustness_tables import label, show_scores, show_side_by_side
from lightning_vision.configs import find_config
from lightning_vision.datamodules.common.datamodule import VisionDataModule
from lightning_vision.robustness.corruptions import CORRUPTION_FAMILIES, check_corruption

METRICS = ("test/map", "test/segm_map", "test/acc")


def run(
    cli: Any,
    ckpt_path: str | None = None,
    corruptions: list[str] | None = None,
    severities: list[int] | None = None,
    metrics: list[str] | None = None,
    sizes: list[int] | None = None,
    elsewhere: list[str] | None = None,
    against: list[str] | None = None,
    corruption_seed: int = 0,
    output: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Test a model on clean and on corrupted images, and tell what is left of its score (mPC and rPC).

    Every test is kept in `robustness.json` when it is over; the same command goes on where it was interrupted, and one
    with further corruptions, severities, sizes, data or models measures only these.

    Args:
        ckpt_path: Checkpoint whose weights are measured; without it the freshly built model is.
        corruptions: Names of corruptions or of the families noise, blur, weather and digital; all 15 if not given.
        severities: Of 1 to 5; all if not given.
        metrics: What `test` logs and is to be averaged, larger is better; test/map, test/segm_map and test/acc, as far
            as they are logged, if not given.
        sizes: Sides of the images, pixels, at which all is measured again.
        elsewhere: Configs, files or names, on whose `data` all is measured again.
        against: Further checkpoints to measure beside this one.
        corruption_seed: At least 0; another one draws other noise.
        output: Folder for `robustness.json` and `robustness.csv`; without it the run's folder or the current one.
        overwrite: Begin anew where the files tell of another model, other data or other settings.

    Returns:
        `json` and `csv`, the paths written, and `scores`: for each model, data and metric `clean`, `mpc`, `rpc` and
        `corruptions`.

    Raises:
        ValueError: an option names nothing, the datamodule is not of this package, or there are several processes.
        FileExistsError: the files tell of another model, other data or other settings and `overwrite` is off.
    """
    require(cli, "model", "data")
    require_one_process(cli, "corrupt")
    chosen, levels = _corruptions(corruptions), _severities(severities)
    if corruption_seed < 0:
        raise ValueError(f"--corruption_seed {corruption_seed}: give at least 0")
    described = _settings("data", cli.config.data.items())
    sources = {"data": (check_corruptible(cli.datamodule), described)}
    for size in sizes or ():
        sources[f"size {size}"] = check_corruptible(other_size(cli, size)), described
    for name in elsewhere or ():
        sources[name] = check_corruptible(data_of_config(name)), {"data": file_digest(find_config(name))}
    models = _models(cli, ckpt_path, against or [])
    common = {
        "version": version("lightning_vision"),
        "corruption_seed": corruption_seed,
        "limit_test_batches": cli.trainer.limit_test_batches,
        "precision": str(cli.trainer.precision),
        **_settings("callbacks", (cli.config.get("callbacks") or Namespace()).items()),
    }
    made_from = {}
    for model, (module, weights, trained) in models.items():
        for data, (datamodule, described) in sources.items():
            check_same_classes(model, module, trained, data, datamodule)
            made_with = _settings("model", module.hparams.items())
            made_from[model, data] = {"weights": weights, **made_with, **described, **common}
    folder = output_folder(cli, output, (), overwrite)
    kept = MeasuredCells(folder / JSON, made_from, overwrite)
    _only_measure(cli)
    tests = [CLEAN, *((name, severity) for name in chosen for severity in levels)]
    for model, (module, _, _) in models.items():
        # Lightning reads a file of weights once; from then on the module holds them.
        unread = ckpt_path if module is cli.model else None
        for data, (datamodule, _) in sources.items():
            for corruption, severity in tests:
                if (model, data, corruption, severity) in kept.cells:
                    continue
                found = _measure(cli, module, datamodule, unread, corruption, severity, corruption_seed)
                unread = None
                kept.add((model, data, corruption, severity), found)
                told = ", ".join(f"{name} {found[name]:.4f}" for name in _metrics(metrics, found))
                test = corruption if (corruption, severity) == CLEAN else f"{corruption} {severity}"
                print(f"{label(model, models)}, {data}, {test}: {told}", flush=True)
    names = _metrics(metrics, kept.cells[*next(iter(made_from)), *CLEAN])
    scores = {
        (*subject, metric): kept.summarise(subject, metric, chosen, levels) for subject in made_from for metric in names
    }
    kept.write()
    kept.write_table(folder / CSV)
    for (model, data, metric), shown in scores.items():
        show_scores(f"{metric} of {label(model, models)} on {data}", shown)
    if len(made_from) > 1:
        show_side_by_side(scores, models)
    files = {"json": str(folder / JSON), "csv": str(folder / CSV)}
    print_table("written", files)
    return {**files, "scores": kept.scores}


def _corruptions(given: list[str] | None) -> list[str]:
    """Names, families spelt out, each once."""
    wanted = list(CORRUPTION_FAMILIES) if given is None else given
    names = [name for entry in wanted for name in CORRUPTION_FAMILIES.get(entry, (entry,))]
    for name in names:
        check_corruption(name, 1)
    if not names:
        raise ValueError("--corruptions is empty; name some, or leave it out for all")
    return list(dict.fromkeys(names))


def _severities(given: list[int] | None) -> list[int]:
    levels = [1, 2, 3, 4, 5] if given is None else given
    if not levels or not set(levels) <= {1, 2, 3, 4, 5}:
        raise ValueError(f"--severities {levels}: give some of 1 to 5; clean images are always measured")
    return sorted(set(levels))


def _models(cli: Any, ckpt_path: str | None, against: list[str]) -> dict[str, tuple[LightningModule, str, Any]]:
    """Each model with a checksum of its weights and the preprocessing it was trained with."""
    name, digest, trained = "model", "", None
    if ckpt_path is None:
        digest = weights_digest(cli.model.state_dict())
    else:
        name, digest, trained = str(ckpt_path), file_digest(ckpt_path), cli.checkpoint.get("preprocessing")
    models: dict[str, tuple[LightningModule, str, Any]] = {name: (cli.model, digest, trained)}
    for path in against:
        module = module_from_checkpoint(path)
        models[path] = module, file_digest(path), getattr(module, "preprocessing", None)
    return models


def _settings(kind: str, given: Iterable[tuple[str, Any]]) -> dict[str, str]:
    """What may change a score, by dotted name; who fetches the images does not."""
    return {
        # Where something of a user's own lies in memory is another place in every process.
        f"{kind}.{name}": re.sub(r" at 0x[0-9a-f]+", "", str(value))
        for name, value in given
        if not name.endswith(("num_workers", "multiprocessing_context"))
    }


def _metrics(given: list[str] | None, logged: Iterable[str]) -> list[str]:
    """Which of the logged metrics are averaged."""
    there = list(logged)
    for name in given or ():
        if name not in there:
            hint = nearest(name, there) or f"; there are {', '.join(there)}"
            raise ValueError(f"--metrics {name}: the test logs no such metric{hint}")
    names = given or [name for name in METRICS if name in there]
    if not names:
        raise ValueError(f"the test logs none of {', '.join(METRICS)}; name one of {', '.join(there)} with --metrics")
    return names


def _only_measure(cli: Any) -> None:
    """Leave out of the trainer what would write, draw or show each of many tests."""
    cli.trainer.loggers = []
    silent = (Evaluation, ProgressBar, SaveConfigCallback)
    cli.trainer.callbacks = [callback for callback in cli.trainer.callbacks if not isinstance(callback, silent)]


def _measure(
    cli: Any,
    module: LightningModule,
    datamodule: VisionDataModule,
    ckpt_path: str | None,
    corruption: str,
    severity: int,
    seed: int,
) -> dict[str, float]:
    """What a test logs."""
    arguments = {"datamodule": datamodule, "ckpt_path": ckpt_path, "weights_only": True, "verbose": False}
    if (corruption, severity) == CLEAN:
        logged = cli.trainer.test(module, **arguments)
    else:
        with corrupted_test(datamodule, corruption, severity, seed):
            logged = cli.trainer.test(module, **arguments)
    return {name: float(value) for name, value in logged[0].items()}

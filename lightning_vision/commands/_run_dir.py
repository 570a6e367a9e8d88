"""One folder a run: `default_root_dir/version_N` holds its logs, its checkpoints and its config."""

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lightning_vision.commands._folders import first_rank, prepare_folder

__all__ = ["newest_checkpoint", "open_run", "place_run", "unused_dropped"]

# Loggers that write into save_dir/name/version_N; to others `version` is an identifier of their own.
FOLDERED = ("CSVLogger", "TensorBoardLogger")
SQLITE = "sqlite:///"
CONFIG = "config.yaml"
# What others are made of, by the extra that installs it.
PACKAGES = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow"}


def place_run(trainer: Namespace, resumed: Path | None = None) -> Path | None:
    """Make the loggers that a trainer config lists write into one folder under `default_root_dir`.

    A relative `save_dir` or `artifact_location`, or SQLite file in `tracking_uri`, is taken below `default_root_dir`,
    and loggers without a version share the next free one, so `--trainer.default_root_dir` moves everything. Absolute
    folders and given versions stay as they are.

    Args:
        trainer: The parsed, not yet instantiated arguments of the Trainer; its loggers' arguments are changed.
        resumed: Checkpoint of the run to continue; if it lies in such a folder, that one is used again.

    Returns:
        The folder of the first logger that makes one, not yet made; None where no such logger is configured.

    Raises:
        ModuleNotFoundError: a logger's package is not installed.
    """
    for kind, package in PACKAGES.items():
        if _loggers(trainer, (kind,)) and importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f'{kind} needs {package}; pip install "lightning_vision[{package}]"')
    specs = _loggers(trainer, FOLDERED)
    folders = [_folder(trainer, spec) for spec in specs]
    for spec in _loggers(trainer):
        for place in ("save_dir", "artifact_location"):
            if spec.get(place) is not None and "://" not in spec[place]:
                spec[place] = str(_root(trainer) / spec[place])
        if str(spec.get("tracking_uri")).startswith(SQLITE):
            spec["tracking_uri"] = f"{SQLITE}{_root(trainer) / spec['tracking_uri'].removeprefix(SQLITE)}"
    if not folders:
        return None
    run = resumed.absolute().parents[1] if resumed and len(resumed.absolute().parents) > 1 else None
    taken = [int(path.name[8:]) for folder in folders for path in folder.glob("version_*") if path.name[8:].isdigit()]
    version: int | str = max(taken, default=-1) + 1
    if run and run.parent == folders[0] and run.name.removeprefix("version_").isdigit():
        version = int(run.name.removeprefix("version_"))
    for spec in specs:
        if spec["version"] is None:
            spec["version"] = version
    version = specs[0].get("version", version)
    return folders[0] / (version if isinstance(version, str) else f"version_{version}")


def open_run(run: Path) -> None:
    """Make the folder of a run; what an earlier part of the run has written is kept beside what is to come.

    Raises:
        ValueError: the folder cannot be written to.
    """
    if first_rank():
        prepare_folder(run, "set --trainer.default_root_dir")
        for file in (path for path in (run / "metrics.csv", run / CONFIG) if path.exists()):
            earlier = len(list(run.glob(f"{file.stem}_*{file.suffix}")))
            file.rename(run / f"{file.stem}_{earlier}{file.suffix}")


@contextmanager
def unused_dropped(cli: Any) -> Iterator[None]:
    """Remove the run's folder afterwards if nothing was written into it or the run was refused before it trained."""
    try:
        yield
    except BaseException:
        if cli.run_dir is not None and cli.trainer.global_step == 0:
            _drop(cli.run_dir, lambda name: name in (CONFIG, "hparams.yaml") or name.startswith("events.out.tfevents"))
        raise
    if cli.run_dir is not None:
        _drop(cli.run_dir, lambda name: False)


def _drop(run: Path, spare: Callable[[str], bool]) -> None:
    """Remove a folder in which all that lies is `spare`."""
    if first_rank() and run.is_dir() and all(spare(path.name) for path in run.iterdir()):
        shutil.rmtree(run)


def newest_checkpoint(trainer: Namespace) -> Path:
    """The checkpoint called last that was written last under the folders of the loggers.

    Raises:
        FileNotFoundError: there is none.
    """
    folders = {_folder(trainer, spec) for spec in _loggers(trainer)} or {_root(trainer)}
    found = [path for folder in folders for path in folder.glob("**/checkpoints/*last*.ckpt")]
    if not found:
        places = ", ".join(map(str, sorted(folders)))
        raise FileNotFoundError(f"--ckpt_path last: no last.ckpt under {places}; give a checkpoint's path")
    return max(found, key=lambda path: path.stat().st_mtime)


def _loggers(trainer: Namespace, kinds: tuple[str, ...] = ()) -> list[Namespace]:
    """Arguments of the configured loggers; with `kinds` of those only, by the names of their classes."""
    loggers = trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]
    chosen = [logger for logger in loggers if isinstance(logger, Namespace) and logger.get("init_args")]
    return [it.init_args for it in chosen if not kinds or it.class_path.rpartition(".")[2] in kinds]


def _root(trainer: Namespace) -> Path:
    return Path(trainer.default_root_dir or ".").absolute()


def _folder(trainer: Namespace, spec: Namespace) -> Path:
    return _root(trainer) / (spec.get("save_dir") or ".") / (spec.get("name") or "")

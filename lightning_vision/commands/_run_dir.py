"""One folder a run: `default_root_dir/version_N` holds its logs, its checkpoints and its config."""

from pathlib import Path

from jsonargparse import Namespace
from lightning.pytorch.utilities.rank_zero import rank_zero_only

__all__ = ["place_run"]


def place_run(trainer: Namespace) -> Path | None:
    """Make the loggers that a trainer config lists write into one fresh folder under `default_root_dir`.

    A relative `save_dir` is taken below `default_root_dir`, and loggers without a version share the next free one, so
    `--trainer.default_root_dir` moves everything. Absolute folders and given versions stay as they are.

    Args:
        trainer: The parsed, not yet instantiated arguments of the Trainer; its loggers' arguments are changed.

    Returns:
        The folder of the first logger, None without a configured logger.

    Raises:
        ValueError: the folder cannot be written to.
    """
    root = Path(trainer.default_root_dir or ".").absolute()
    loggers = trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]
    specs = [logger.init_args for logger in loggers if isinstance(logger, Namespace) and logger.get("init_args")]
    folders = []
    for spec in specs:
        if spec.get("save_dir") is not None:
            spec["save_dir"] = str(root / spec["save_dir"])
            folders.append(Path(spec["save_dir"]) / (spec.get("name") or ""))
    taken = [int(path.name[8:]) for folder in folders for path in folder.glob("version_*") if path.name[8:].isdigit()]
    version = f"version_{max(taken, default=-1) + 1}"
    for spec in specs:
        if "version" in spec and spec["version"] is None:
            spec["version"] = version
    if not folders:
        return None
    run = folders[0] / str(specs[0].get("version") or version)
    if rank_zero_only.rank == 0:
        try:
            run.mkdir(parents=True, exist_ok=True)
            (run / ".writable").touch()
            (run / ".writable").unlink()
        except OSError as error:
            raise ValueError(f"cannot write logs to {run}: {error.strerror}; set --trainer.default_root_dir") from error
    return run

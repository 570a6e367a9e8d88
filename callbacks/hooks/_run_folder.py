"""Where the files of a run lie."""

from pathlib import Path

from lightning.pytorch import Trainer

__all__ = ["run_folder"]


def run_folder(trainer: Trainer) -> Path:
    """The folder of a run, beside its checkpoints: the first logger's, or without one `default_root_dir`.

    It makes no collective call, so one rank may ask alone.
    """
    logger, root = trainer.logger, trainer.default_root_dir
    if logger is None:
        return Path(root)
    if (own := getattr(logger, "log_dir", None)) is not None:
        return Path(own)
    # As Lightning places checkpoints: with W&B and MLflow runs would else write into one another's folder.
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(logger.save_dir or root, str(logger.name), version)

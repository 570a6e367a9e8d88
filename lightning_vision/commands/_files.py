"""What the subcommands that write files from a checkpoint share."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning_vision.base.weights import load_checkpoint
from lightning_vision.commands._folders import first_rank, keep_existing, prepare_folder

__all__ = ["output_folder", "saved_preprocessing"]


def output_folder(cli: Any, output: str | None, names: Iterable[str], overwrite: bool) -> Path:
    """The folder to write `names` into, made where it is missing: `output`, else the run's, else the trainer's root.

    Raises:
        FileExistsError: one of the files exists and `overwrite` is off.
        ValueError: the folder cannot be written to.
    """
    folder = Path(output or cli.run_dir or cli.trainer.default_root_dir).absolute()
    if first_rank():
        keep_existing([folder / name for name in names], overwrite)
        prepare_folder(folder, "choose another --output")
    return folder


def saved_preprocessing(cli: Any, ckpt_path: str) -> dict[str, Any]:
    """How the images were prepared that a checkpoint was trained on; a model built from it knows without reading it.

    Raises:
        ValueError: the checkpoint does not say.
    """
    found: dict[str, Any] | None = None
    if cli.config_init.get("model") is None:
        found = getattr(cli.model, "preprocessing", None)
    found = found or load_checkpoint(ckpt_path).get("preprocessing")
    if found is None:
        raise ValueError(f"{ckpt_path} does not say how its images were prepared; train with a datamodule that does")
    return found

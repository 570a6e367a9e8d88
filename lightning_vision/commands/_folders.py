"""Folders that subcommands write into."""

from collections.abc import Iterable
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_only

__all__ = ["first_rank", "keep_existing", "prepare_folder"]


def first_rank() -> bool:
    """Whether this process is the one that writes, known before a trainer exists."""
    rank: int = rank_zero_only.rank  # type: ignore[attr-defined]  # Lightning hangs it on the function
    return rank == 0


def keep_existing(paths: Iterable[Path], overwrite: bool) -> None:
    """Refuse to write over files of an earlier command.

    Raises:
        FileExistsError: one of `paths` exists and `overwrite` is off.
    """
    if not overwrite and (present := [path for path in paths if path.exists()]):
        raise FileExistsError(f"{present[0]} exists; choose another --output or add --overwrite")


def prepare_folder(folder: Path, way_out: str) -> None:
    """Make `folder` where it is missing and see that files can be made in it.

    Args:
        folder: The folder.
        way_out: End of the message when they cannot, for example `choose another --output`.

    Raises:
        ValueError: the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror}; {way_out}") from error

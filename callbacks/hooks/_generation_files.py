"""What is written of generations, a file of weights for each and a table of all, and a teacher read from a file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from lightning_vision.base.weights import load_checkpoint

from ._live_tensors import plain_name
from ._run_folder import run_folder
from ._table import table_text, write_table

__all__ = ["saved_generation", "scores_now", "teacher_from", "tell_of_generations"]


def scores_now(trainer: Trainer) -> dict[str, Any]:
    """What a validation has just measured, and after how many optimizer steps, as `scored_at`."""
    names = [it for it in trainer.callback_metrics if it != "generation" and not it.startswith("train")]
    return {"scored_at": trainer.global_step, **{name: float(trainer.callback_metrics[name]) for name in names}}


def saved_generation(trainer: Trainer, generation: int) -> Path | None:
    """Where the weights of a generation that ends now lie; None if the Trainer writes no checkpoints."""
    if not trainer.checkpoint_callbacks:
        return None
    file = run_folder(trainer) / "generations" / f"generation_{generation}.ckpt"
    # All ranks call it, for a strategy may gather weights; rank 0 writes.
    trainer.save_checkpoint(file, weights_only=True)
    return file


def tell_of_generations(trainer: Trainer, rows: Sequence[Mapping[str, Any]], name: str) -> None:
    """Print the table and write it as `report/NAME.csv` into the run's folder; rank 0 does."""
    if trainer.is_global_zero:
        file = run_folder(trainer) / "report" / f"{name}.csv"
        write_table(rows, file)
        print(f"{table_text(rows)}\nalso in {file}")


def teacher_from(owner: str, path: str, part: str, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a teacher from a checkpoint of the module that is trained.

    Args:
        owner: Who speaks in a refusal.
        path: Of the checkpoint.
        part: Path of the network in the module, without wrappers of `torch.compile`; empty is the module itself.
        wanted: Tensors by name, whose shapes, types and devices the teacher's are to have.

    Raises:
        ValueError: the file is missing, damaged or holds code, or is of another network.
    """
    try:
        found = load_checkpoint(path)["state_dict"]
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{owner}: teacher_ckpt: {error}; give the path of a checkpoint.") from error
    below, found = f"{part}." if part else "", {plain_name(name): it for name, it in found.items()}
    saved: dict[str, Any] = {name: found.get(f"{below}{plain_name(name)}") for name in wanted}
    missing = [name for name, it in wanted.items() if getattr(saved[name], "shape", None) != it.shape]
    if missing:
        raise ValueError(
            f"{owner}: teacher_ckpt={path!r} is of another network: it has no {missing[0]} of the shape "
            f"{tuple(wanted[missing[0]].shape)}; give a checkpoint of the network that is trained."
        )
    return {name: saved[name].to(it) for name, it in wanted.items()}

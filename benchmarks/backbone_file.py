"""What a file of the backbone costs, beside a checkpoint of the whole run."""

from collections.abc import Callable
from tempfile import TemporaryDirectory

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from lightning_vision.callbacks import BackboneFile

from .probed import Featured, split
from .side_by_side import Row, Side, take_turns

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Train `resnet20_cifar` for three epochs of one batch of 64, and write after each.

    Args:
        quick: One repetition.
    """
    with TemporaryDirectory() as folder:
        sides: dict[str, Side] = {
            "plain": _side(folder),
            "ours": _side(folder, BackboneFile(every_n_epochs=1)),
            "last": _side(folder, BackboneFile()),
            "checkpoint": _side(folder, ModelCheckpoint(folder)),
        }
        times = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (15, 1)).items()}
    what = "three epochs of one batch, a file after each"
    return [
        Row.slowdown(what, "without", times["ours"], times["plain"], "cpu"),
        Row.slowdown("three epochs of one batch, a file at the end", "without", times["last"], times["plain"], "cpu"),
        Row.slowdown(what, "with a checkpoint after each", times["ours"], times["checkpoint"], "cpu"),
    ]


def _side(folder: str, *callbacks: Callback) -> Side:
    batches = split(quick=True)[:1]

    def prepare() -> Callable[[], None]:
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=3,
            callbacks=list(callbacks),
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=any(isinstance(it, ModelCheckpoint) for it in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        module = Featured()
        return lambda: trainer.fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]  # a list will do

    return prepare

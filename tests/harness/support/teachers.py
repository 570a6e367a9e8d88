"""A checkpoint where a shipped config names one that its user would have: `teacher: teacher.ckpt`."""

import atexit
import shutil
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from support.trainers import quiet_trainer

__all__ = ["teacher_file", "with_checkpoints", "write_checkpoints"]


@cache
def teacher_file() -> Path:
    """A checkpoint of an untrained classifier of `(B, 1, 8, 8)` into ten classes, written once a process."""
    from lightning_vision import ImageClassifier

    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        module = ImageClassifier("resnet8_cifar", num_classes=10, in_channels=1)
    trainer = quiet_trainer()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(Path(folder) / "teacher.ckpt")
    return Path(folder) / "teacher.ckpt"


def with_checkpoints(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with `teacher_file` in the place of every value that ends with `.ckpt`, in lists too."""
    return {name: _there(value) for name, value in arguments.items()}


def write_checkpoints(arguments: Mapping[str, Any]) -> None:
    """Write `teacher_file` to every value that ends with `.ckpt`, a path from where we stand."""
    for value in arguments.values():
        for it in value if isinstance(value, list) else [value]:
            if _is_checkpoint(it):
                shutil.copy(teacher_file(), it)


def _there(value: Any) -> Any:
    if isinstance(value, list):
        return [_there(it) for it in value]
    return str(teacher_file()) if _is_checkpoint(value) else value


def _is_checkpoint(value: Any) -> bool:
    return isinstance(value, str) and value.endswith(".ckpt")

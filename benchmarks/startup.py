"""How long the command takes to answer, against a bare LightningCLI and against `import torch`."""

import subprocess
import sys
import sysconfig
from pathlib import Path
from tempfile import TemporaryDirectory

from .side_by_side import Row, Side, take_turns

__all__ = ["rows"]

BARE = "from lightning.pytorch.cli import LightningCLI; LightningCLI()"
IMPORT = "import time; start = time.perf_counter(); import lightning_vision; print(time.perf_counter() - start)"


def rows(quick: bool) -> list[Row]:
    """Start each command in a process of its own and wait for its end.

    Args:
        quick: One repetition, no warm-up.
    """
    command = str(Path(sysconfig.get_path("scripts")) / "lightning_vision")
    repetitions, warmup = (1, 0) if quick else (9, 1)
    with TemporaryDirectory() as folder:
        sides = {
            "bare": _process(folder, sys.executable, "-c", BARE, "--help"),
            "help": _process(folder, command, "--help"),
            "list": _process(folder, command, "list", "tasks"),
            "torch": _process(folder, sys.executable, "-c", "import torch"),
            "config": _process(folder, command, "fit", "--print_config", "--config", "classification/digits"),
        }
        wall = {name: clocks["wall"] for name, clocks in take_turns(sides, repetitions, warmup).items()}
        imports = [float(_output(folder, sys.executable, "-c", IMPORT)) for _ in range(repetitions + warmup)][warmup:]
    bare, peer = wall["bare"], "`--help` of a bare `LightningCLI`"
    config = "`fit --print_config --config classification/digits`"
    return [
        Row.slowdown("`lightning_vision --help`", peer, wall["help"], bare, "wall", "<= 0.15"),
        Row.slowdown("`lightning_vision list tasks`", peer, wall["list"], bare, "wall", "<= 0.15"),
        Row("`import lightning_vision`", "", imports, "wall", None, "<= 0.1"),
        Row.slowdown(config, "`import torch`", wall["config"], wall["torch"], "wall"),
    ]


def _process(folder: str, *command: str) -> Side:
    return lambda: lambda: _output(folder, *command)


def _output(folder: str, *command: str) -> str:
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout

"""The command's front door: picks the subcommand, turns errors into one sentence and an exit code. Needs no torch."""

import importlib
import os
import sys
import traceback
from importlib.metadata import version
from pathlib import Path

from lightning_vision.catalogue import nearest
from lightning_vision.commands import help_lines
from lightning_vision.result import Result

__all__ = ["console", "main"]

TRACEBACK = "LIGHTNING_VISION_TRACEBACK"
# Raised by the parser and by Lightning for what the user typed; by name, because importing them costs seconds.
USAGE_ERRORS = {"ArgumentError", "MisconfigurationException"}


def main(args: list[str] | None = None) -> Result:
    """Run `lightning_vision ARGS` inside this interpreter.

    Args:
        args: The words after `lightning_vision`; None takes them from the command line.

    Returns:
        What was measured and written.

    Raises:
        ValueError: the subcommand does not exist, or its arguments are wrong.
        KeyboardInterrupt: the run was interrupted; its last checkpoint is kept.
    """
    name, *rest = (sys.argv[1:] if args is None else args) or [""]
    if name in ("", "-h", "--help"):
        print(_usage())
        return Result()
    if name == "--version":
        print(version("lightning_vision"))
        return Result()
    known = help_lines()
    if name not in known:
        raise ValueError(f"no subcommand {name!r}{nearest(name, known) or '.'} See `lightning_vision --help`")
    command = importlib.import_module(f"lightning_vision.commands.{name}")
    try:
        if hasattr(command, "main"):
            return Result(output=command.main(rest))
        from lightning_vision.cli import run

        return run(command, rest)
    except SystemExit as stop:
        # Lightning leaves the interpreter after Ctrl-C, the parser after --help and --print_config.
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stop
        if stop.code:
            raise RuntimeError(f"lightning_vision {name} stopped with exit code {stop.code}") from stop
        return Result()


def console() -> int:
    """Entry point of the console script: its exit code.

    0 when done, 1 for a bug, 2 for a mistake in the input, 130 after Ctrl-C, 141 when nobody reads the output any more.
    """
    try:
        main()
    except KeyboardInterrupt:
        print("lightning_vision: interrupted; what was written stays", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader, `head` for instance, has gone; nothing is left for Python to flush. Not 0: a run may be cut short.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if _other_process_left(error):
            print("lightning_vision: another process of this run stopped and says why", file=sys.stderr)
            return 2
        if os.environ.get(TRACEBACK) or not _told(error):
            traceback.print_exc()
            return 1
        command = " ".join(["lightning_vision", *sys.argv[1:2]])
        print(f"{command}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _usage() -> str:
    shown = help_lines()
    width = max(map(len, shown)) + 2
    lines = [f"  {name:{width}}{line}" for name, line in shown.items()]
    return "\n".join(
        [
            "usage: lightning_vision SUBCOMMAND [--config FILE_OR_NAME ...] [--KEY VALUE ...]",
            "",
            *lines,
            "",
            "`lightning_vision SUBCOMMAND --help` tells its options, `lightning_vision list configs` the shipped runs.",
            f"{TRACEBACK}=1 in the environment shows the traceback of an error.",
        ]
    )


def _other_process_left(error: BaseException) -> bool:
    """Whether this is only the echo of another rank's end: the connection to it broke."""
    if not isinstance(error, RuntimeError) or "torch" not in sys.modules:
        return False
    import torch.distributed as dist

    broken = "closed by peer" in str(error) or "reset by peer" in str(error)
    return broken and dist.is_available() and dist.is_initialized()


def _told(error: BaseException) -> bool:
    """Whether the message says it all: this package raised it on purpose, or the parser or the Trainer refused."""
    if type(error).__name__ in USAGE_ERRORS:
        return True
    import lightning_vision.callbacks
    import lightning_vision.datamodules

    wings = (lightning_vision, lightning_vision.callbacks, lightning_vision.datamodules)
    folders = [Path(wing.__path__[0]).resolve() for wing in wings]
    innermost = traceback.extract_tb(error.__traceback__)[-1]
    # What torch raises in C has our frame as its innermost, too, and is a bug: only our own `raise` tells.
    ours = any(folder in Path(innermost.filename).resolve().parents for folder in folders)
    return ours and (innermost.line or "").startswith("raise ")

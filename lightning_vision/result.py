"""What a subcommand leaves behind. Needs no torch."""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Result"]


@dataclass
class Result:
    """What a subcommand leaves behind.

    Args:
        metrics: Final value of every logged metric, for example `{"test/acc": 0.99}`.
        best_ckpt: Checkpoint with the best monitored value, else the newest of the first saver, None without a saver.
        run_dir: Folder that holds the run's files, None where nothing was written.
        output: What the subcommand itself returns, for example the paths that `export` wrote.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    best_ckpt: str | None = None
    run_dir: str | None = None
    output: Any = None

"""What several subcommands say on the terminal."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch.optim import Optimizer

__all__ = ["effective", "print_table", "require", "require_one_process", "without_advice"]


def require(cli: Any, *keys: str) -> None:
    """Refuse to go on without a `model` or `data` entry.

    Raises:
        ValueError: one is missing.
    """
    parts = {"model": cli.model, "data": cli.datamodule}
    for key in keys:
        if parts[key] is None:
            raise ValueError(f"no {key} given; add --config NAME (see `list configs`) or --{key} CLASS")


def require_one_process(cli: Any, command: str) -> None:
    """Refuse several processes.

    Raises:
        ValueError: there are.
    """
    if (processes := cli.trainer.world_size) > 1:
        raise ValueError(f"{command} runs in one process, not {processes}; add --trainer.devices 1")


def print_table(title: str, rows: Mapping[str, str]) -> None:
    """Print `rows` under `title`, names left and values right of a common column."""
    width = max(map(len, rows), default=0)
    print("\n".join([title, *(f"  {name:{width}}  {value}" for name, value in rows.items())]), flush=True)


def effective(optimizer: Optimizer) -> str:
    """Class and settings of an optimizer, a range where its parameter groups differ."""
    settings = {}
    for name, default in optimizer.defaults.items():
        # After a checkpoint is loaded torch adds defaults that the groups of other libraries' optimizers do not have.
        values = [group.get(name, default) for group in optimizer.param_groups]
        same = all(value == values[0] for value in values)
        settings[name] = f"{values[0]}" if same else f"{min(values):.3g} to {max(values):.3g}"
    chosen = ", ".join(f"{name}={value}" for name, value in settings.items() if value not in ("None", "False"))
    return f"{type(optimizer).__name__}({chosen}) on {len(optimizer.param_groups)} parameter groups"


@contextmanager
def without_advice(continues: bool) -> Iterator[None]:
    """Keep out of the output what a user cannot act on.

    Args:
        continues: Whether a run goes on, so that what Lightning says of its callbacks matters.
    """
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")

    def worth_reading(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not (message.startswith("\N{ELECTRIC LIGHT BULB} Tip") or message.endswith("using: 0 TPU cores"))

    log.addFilter(worth_reading)
    try:
        with warnings.catch_warnings(), ExitStack() as stack:
            # Lightning's own call of a torch function that changes its name.
            warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
            # Twenty lines about states before a step, which nobody asked for.
            warnings.filterwarnings("ignore", message=r"Using ModelCheckpoint with manual optimization")
            plain = warnings.formatwarning

            def formatted(message: Warning | str, *place: Any, **more: Any) -> str:
                # The user's own file is what matters, not the line of ours that tells of it.
                own = str(message).startswith("left out ")
                told = str(message).replace(" in epoch 0", "") if not continues else str(message)
                return f"warning: {told}\n" if own else plain(message, *place, **more)

            warnings.formatwarning = formatted
            stack.callback(setattr, warnings, "formatwarning", plain)
            if not continues:
                # A checkpoint that is only measured lies in another run's folder and needs none of its callbacks.
                warnings.filterwarnings("ignore", message=r"The dirpath has changed from")
                warnings.filterwarnings("ignore", message=r"Be aware that when using `ckpt_path`, callbacks used to")
            yield
    finally:
        log.removeFilter(worth_reading)

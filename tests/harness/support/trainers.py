"""The Trainer of small tests: on the CPU, in silence, without files; and the command's flags for silence."""

from typing import Any

from lightning.pytorch import Trainer

__all__ = ["QUIET", "quiet_trainer"]

QUIET = ("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false")


def quiet_trainer(**options: Any) -> Trainer:
    """A Trainer with `options`; what they do not say is off."""
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    return Trainer(**{"accelerator": "cpu"} | quiet | options)

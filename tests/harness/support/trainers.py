"""The Trainer of small tests: on the CPU, in silence, without files."""

from typing import Any

from lightning.pytorch import Trainer

__all__ = ["quiet_trainer"]


def quiet_trainer(**options: Any) -> Trainer:
    """A Trainer with `options`; what they do not say is off."""
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    return Trainer(**{"accelerator": "cpu"} | quiet | options)

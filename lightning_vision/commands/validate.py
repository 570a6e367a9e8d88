"""Measure a checkpoint on the validation split."""

from typing import Any

from lightning_vision.commands._report import require


def run(cli: Any, ckpt_path: str | None = None) -> None:
    """Evaluate the model on the datamodule.

    Args:
        ckpt_path: Checkpoint whose weights are measured, or `last` for the newest one under the config's folder;
            without it the freshly built model is measured.
    """
    require(cli, "model", "data")
    cli.trainer.validate(cli.model, datamodule=cli.datamodule, ckpt_path=ckpt_path, weights_only=True)

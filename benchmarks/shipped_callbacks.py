"""Callbacks as the files in `cli_configs/callbacks` set them."""

from typing import Any

from lightning.pytorch import Callback

from lightning_vision.catalogue import find
from lightning_vision.configs import built, read_config, shipped

__all__ = ["callback_and_settings"]


def callback_and_settings(name: str) -> tuple[type[Callback], dict[str, Any]]:
    """The class in `cli_configs/callbacks/NAME.yaml` and the arguments given to it there."""
    (given,) = read_config(shipped()[f"callbacks/{name}"])["callbacks"].values()
    entry = find(given["class_path"])
    assert entry is not None, f"the catalogue has no {given['class_path']}"
    return entry.load(), built(given.get("init_args", {}))

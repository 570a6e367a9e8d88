"""Scenes of digits with their boxes, as `DigitScenes.plot` draws them."""

from matplotlib.figure import Figure

from lightning_vision.datamodules import DigitScenes

__all__ = ["draw"]


def draw() -> Figure:
    """Four scenes for validation."""
    return DigitScenes().plot("val", positions=[46, 69, 162, 255], titles=["", "", "", ""])

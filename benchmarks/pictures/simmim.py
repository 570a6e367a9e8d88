"""The picture of SimMIM: digits, what is seen of them, and what it makes of that after seconds of training."""

from matplotlib.figure import Figure

from lightning_vision.self_supervised.simmim import SimMIM

from ._reconstructions import reconstructions

__all__ = ["draw"]


def draw() -> Figure:
    """Nine digits of which 8 of 16 patches are hidden."""
    return reconstructions(SimMIM, 200, mask_ratio=0.5, mask_patch_size=2, loss="l2")

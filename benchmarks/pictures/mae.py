"""The picture of MAE: digits, what is seen of them, and what it makes of that after seconds of training."""

from matplotlib.figure import Figure

from lightning_vision.self_supervised.mae import MAE

from ._reconstructions import reconstructions

__all__ = ["draw"]


def draw() -> Figure:
    """Nine digits of which 8 of 16 patches are hidden."""
    decoder = {"decoder_dim": 48, "decoder_depth": 1, "decoder_heads": 3, "positions": "learned"}
    return reconstructions(MAE, 200, mask_ratio=0.5, norm_targets=False, **decoder)

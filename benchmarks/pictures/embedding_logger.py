"""The picture of EmbeddingLogger: digits as a small network's last layer is given them, by PCA and by t-SNE."""

import torch
from lightning.pytorch import LightningModule
from matplotlib.figure import Figure

from lightning_vision.callbacks import EmbeddingLogger

from ._nearest_mean import beside_each_other
from ._trained_digits import digits, trained

__all__ = ["draw"]


def draw() -> Figure:
    """The first 500 digits of those that the network learnt from."""
    images, labels = digits()
    network = trained(labels, 10)
    with torch.no_grad():
        features = network[:-1](images[:500])
    sheets = []
    for logger in (EmbeddingLogger(projection="pca"), EmbeddingLogger(projection="tsne")):
        picture, _ = logger.draw(LightningModule(), features, labels[:500], None)
        assert picture is not None
        sheets.append(picture)
    return beside_each_other(sheets)

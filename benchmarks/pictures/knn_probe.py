"""The picture of KNNProbe: digits, and the neighbours that vote on them."""

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from lightning_vision.callbacks import knn_predict

from ._trained_digits import digits, rows_of, trained

__all__ = ["draw"]

BANK, SHOWN = 1000, 7


def draw() -> Figure:
    """Two digits that 20 neighbours in pixels mistake, and the nearest ones in pixels and in a network's features."""
    images, labels = digits()
    bank, asked = images[:BANK], images[BANK:]
    learnt = trained(labels, 10)[:-1]
    with torch.no_grad():
        spaces = {"pixels": (bank.flatten(1), asked.flatten(1)), "features": (learnt(bank), learnt(asked))}
    told = knn_predict(spaces["pixels"][1], spaces["pixels"][0], labels[:BANK], 20, 0.07)
    wrong = (told != labels[BANK:]).nonzero()[:2, 0].tolist()
    rows = []
    for query in wrong:
        for space, (near, far) in spaces.items():
            similarity = F.normalize(near, dim=1) @ F.normalize(far[query], dim=0)
            nearest = similarity.topk(SHOWN).indices
            answer = int(knn_predict(far[query, None], near, labels[:BANK], 20, 0.07))
            lines = [f"{int(labels[BANK + query])}, told {answer}"]
            lines += [f"{int(labels[it])}: {float(similarity[it]):.3f}" for it in nearest]
            rows.append((f"by {space}", torch.cat([asked[query, None], bank[nearest]]), lines))
    return rows_of(rows)

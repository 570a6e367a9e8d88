"""The picture of the filter report: kernels of a network as drawn, and after an epoch of training."""

import torch
from matplotlib.figure import Figure

from benchmarks.study_maps import trained_network
from lightning_vision.backbones import create
from lightning_vision.explain import filter_report, filter_shift

__all__ = ["draw"]


def draw() -> Figure:
    """Entropy and orthogonality by layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = create("resnet8_cifar", num_classes=10, in_channels=3)
    trained, _ = trained_network(0, epochs=1)
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots(1, 2)
    for network, label, colour in ((fresh, "as drawn", "0.6"), (trained, "after an epoch", "tab:red")):
        rows = filter_report(network)[:-1]
        for axis, key in zip(axes, ("entropy", "orthogonality"), strict=True):
            axis.plot([float(row[key]) for row in rows], "o-", color=colour, label=label)
            axis.set(title=key, xlabel="layer", xticks=range(len(rows)))
    axes[0].axhline(0.954, color="black", linewidth=0.8, linestyle=":")
    axes[0].legend()
    figure.suptitle(f"shift from one to the other: {filter_shift(trained, fresh):.3f}", fontsize=10)
    return figure

"""The picture of EigenCAMLogger: the first components of a layer's maps, which ask for no class."""

from matplotlib.figure import Figure

from lightning_vision.callbacks import eigen_cam

from ._digit_filters import DigitFilters, show, three_digits

__all__ = ["draw"]


def draw() -> Figure:
    """Digits 3, 7 and 0, to the last of which the filters answer most."""
    image, network = three_digits(), DigitFilters()
    figure = Figure(figsize=(10, 1.5), layout="constrained")
    axes = figure.subplots(1, 5)
    show(axes[0], image[0, 0], "image", "gray_r")
    for component in range(4):
        shown = eigen_cam(network, image, "maps", component=component)[0]
        show(axes[1 + component], shown, f"component {component}")
    return figure

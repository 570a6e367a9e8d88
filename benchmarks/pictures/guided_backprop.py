"""The picture of GuidedBackpropLogger: gradient, guided gradient and Guided Grad-CAM of three digits, by class."""

from matplotlib.figure import Figure

from lightning_vision.callbacks import attribute, gradient_picture, guided_backprop, guided_grad_cam

from ._digit_filters import DigitFilters, three_digits

__all__ = ["draw"]

LABELS = (3, 7, 0)


def draw() -> Figure:
    """A column for each class that is asked for, all of the same image."""
    network, image = DigitFilters().eval(), three_digits(LABELS)
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    axes = figure.subplots(4, len(LABELS))
    for column, label in zip(axes.T, LABELS, strict=True):
        column[0].imshow(image[0, 0], cmap="gray")
        column[0].set_title(f"asked for {label}")
        maps = (
            attribute(network, image, "Saliency", label, arguments={"abs": False}),
            guided_backprop(network, image, label),
            guided_grad_cam(network, image, "maps", label),
        )
        for axis, values in zip(column[1:], maps, strict=True):
            axis.imshow(gradient_picture(values[0].numpy()))
    for axis, name in zip(axes[:, 0], ("image", "gradient", "guided", "Guided\nGrad-CAM"), strict=True):
        axis.set_ylabel(name)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return figure

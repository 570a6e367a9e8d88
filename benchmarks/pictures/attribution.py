"""The picture of AttributionLogger: four attributions of captum for three digits, class by class."""

from typing import Any

from matplotlib.figure import Figure

from lightning_vision.callbacks import attribute, signed_picture

from ._digit_filters import DigitFilters, three_digits

__all__ = ["draw"]

LABELS = (3, 7, 0)
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "Input x\ngradient": ("InputXGradient", {}),
    "Integrated\ngradients": ("IntegratedGradients", {"n_steps": 20}),
    "Occlusion": ("Occlusion", {"sliding_window_shapes": [1, 4, 4], "strides": [1, 2, 2]}),
    "Kernel\nSHAP": ("KernelShap", {"feature_mask": 4, "n_samples": 400}),
}


def draw() -> Figure:
    """A column for each class that is asked for, all of the same image; red speaks for it, blue against it."""
    network, image = DigitFilters().eval(), three_digits(LABELS)
    figure = Figure(figsize=(9, 6.9), layout="constrained")
    axes = figure.subplots(1 + len(ROWS), len(LABELS))
    for column, label in zip(axes.T, LABELS, strict=True):
        column[0].imshow(image[0, 0], cmap="gray")
        column[0].set_title(f"asked for {label}")
        for axis, (attribution, arguments) in zip(column[1:], ROWS.values(), strict=True):
            axis.imshow(
                signed_picture(attribute(network, image, attribution, label, arguments=arguments)[0, 0].numpy())
            )
    for axis, name in zip(axes[:, 0], ("image", *ROWS), strict=True):
        axis.set_ylabel(name)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return figure

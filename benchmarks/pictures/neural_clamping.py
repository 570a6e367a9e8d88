"""The picture of Neural Clamping: the shift that was learned, and what it does to digits and to confidence."""

from matplotlib.figure import Figure

from benchmarks.study_calibration import digits_of, outputs, over_trained
from lightning_vision.classification.calibration import Calibration
from lightning_vision.classification.clamping import neural_clamping
from lightning_vision.classification.temperature import fit_temperature

__all__ = ["draw"]


def draw() -> Figure:
    """Delta, a digit without and with it, and confidence against what came true in three ways."""
    network, val, test = over_trained(0), digits_of("val", 0), digits_of("test", 0)
    clamped = neural_clamping(network, val, lr=0.005, focal_gamma=0.0, penalty=0.01)
    assert clamped.delta is not None
    image = test[0][0][0, 0]
    figure = Figure(figsize=(10, 3), layout="constrained")
    axes = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.6))
    for part, shown, title in zip(
        axes[:3],
        (image, clamped.delta[0], image + clamped.delta[0]),
        ("x", "delta, ten times", "x + delta"),
        strict=True,
    ):
        factor = 10 if title.startswith("delta") else 1
        part.imshow((factor * shown).numpy(), cmap="gray", vmin=-2.5, vmax=2.5)
        part.set(xticks=[], yticks=[], title=title)
    temperature = fit_temperature(*outputs(network, val, Calibration()))
    named = {"as trained": Calibration(), "temperature": Calibration(temperature), "neural clamping": clamped}
    for (name, calibration), colour in zip(named.items(), ("0.6", "C0", "C3"), strict=True):
        logits, target = outputs(network, test, calibration)
        confidence, label = logits.softmax(1).max(1)
        order = confidence.argsort()
        right = (label == target)[order].double().cumsum(0)
        gap = (confidence[order].double().cumsum(0) - right) / len(right)
        axes[3].plot(confidence[order].tolist(), gap.tolist(), color=colour, label=name)
    axes[3].axhline(0, color="black", linewidth=0.8)
    axes[3].set(xlabel="confidence", ylabel="claimed too much, cumulated")
    axes[3].spines[["top", "right"]].set_visible(False)
    axes[3].legend(frameon=False)
    return figure

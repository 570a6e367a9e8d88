"""The picture of temperature scaling: a network trained for too long, before and after."""

from matplotlib.figure import Figure

from benchmarks.study_calibration import digits_of, outputs, over_trained
from lightning_vision.classification.calibration import Calibration
from lightning_vision.classification.reliability_bins import reliability, reliability_diagram
from lightning_vision.classification.temperature import fit_temperature

__all__ = ["draw"]


def draw() -> Figure:
    """Reliability of test digits as the network was trained, and with the temperature that fits other digits."""
    network, val, test = over_trained(0), digits_of("val", 0), digits_of("test", 0)
    temperature = fit_temperature(*outputs(network, val, Calibration()))
    shown = {}
    for title, calibration in (("as trained", Calibration()), (f"T = {temperature:.2f}", Calibration(temperature))):
        logits, target = outputs(network, test, calibration)
        shown[title] = reliability(logits.softmax(1), target, bins=10)
    return reliability_diagram(shown)

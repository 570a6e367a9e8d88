"""Two classes on a line, one ten times rarer: where a classifier parts them before and after the adjustment."""

import numpy as np
from matplotlib.figure import Figure

__all__ = ["draw"]

PRIOR = 10 / 11
AT = (0.0, 2.0)


def draw() -> Figure:
    """Left: densities as often as they occur, and the boundary they give. Right: the same with tau = 1, and others."""
    x = np.linspace(-3, 5, 401)
    frequent, rare = (np.exp(-((x - mean) ** 2) / 2) / np.sqrt(2 * np.pi) for mean in AT)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True)
    for axis, shares, title in (
        (left, (PRIOR, 1 - PRIOR), "plain: as often as they occur"),
        (right, (1.0, 1.0), "adjusted, tau = 1: each class alike"),
    ):
        axis.fill_between(x, shares[0] * frequent, color="tab:blue", alpha=0.4, label="frequent, 10 of 11")
        axis.fill_between(x, shares[1] * rare, color="tab:orange", alpha=0.5, label="rare, 1 of 11")
        axis.set(title=title, yticks=[], xlabel="image, one feature")
    for axis, taus in ((left, (0.0,)), (right, (0.0, 0.5, 1.0))):
        height = axis.get_ylim()[1]
        axis.set_ylim(0, 1.3 * height)
        for tau in taus:
            boundary, top = _boundary(tau), (1.0 + 0.2 * (1 - tau)) * height
            axis.vlines(boundary, 0, top, color="black", linestyle="-" if tau in (0.0, 1.0) else "--")
            axis.annotate(
                f"boundary, tau {tau:g}", (boundary, top), (-3, -2), textcoords="offset points", fontsize=8, ha="right"
            )
    left.legend(loc="upper left", fontsize=8)
    return figure


def _boundary(tau: float) -> float:
    """Where `log p(x | rare) pi - log p(x | frequent) pi` minus tau times the log of the priors is 0."""
    odds = np.log(PRIOR / (1 - PRIOR)) * (1 - tau)
    return float((AT[1] ** 2 / 2 + odds) / AT[1])

"""The picture of activation maximisation: favourites of each class, without priors and with more and more."""

from matplotlib.figure import Figure

from lightning_vision.explain.activation_maximisation import maximise_activation

from ._trained_digits import digits, rows_of, trained

__all__ = ["draw"]


def draw() -> Figure:
    """Ten classes in three rows."""
    images, labels = digits()
    network = trained(labels, 10)
    settings = [("no priors", 0.0, 0), ("the defaults", 0.1, 1), ("smoother", 1.0, 1)]
    rows = [("most liked digit", images[network(images).argmax(0)], [f"{it:.0f}" for it in network(images).amax(0)])]
    for name, tv_weight, jitter in settings:
        found = maximise_activation(network, list(range(10)), size=(1, 8, 8), tv_weight=tv_weight, jitter=jitter)
        rows.append((name, found.images, [f"{end:.0f}" for end in found.end]))
    return rows_of(rows)

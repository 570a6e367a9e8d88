"""The picture of fooling images: what a network of digits takes for each digit, made in three ways."""

from matplotlib.figure import Figure

from lightning_vision.explain.fooling_images import make_fooling_images

from ._trained_digits import digits, rows_of, trained

__all__ = ["draw"]


def draw() -> Figure:
    """Ten classes in three rows, with the confidence under each."""
    network = trained(digits()[1], 10)
    rows = []
    for method in ("gradient", "evolution", "cppn"):
        found = make_fooling_images(network, (1, 8, 8), method=method, steps=100)
        rows.append((method, found.images[0], [f"{share:.2%}" for share in found.confidence[0]]))
    return rows_of(rows)

"""The picture of multifaceted visualisation: the class "even" of a network that tells even digits from odd ones."""

from matplotlib.figure import Figure

from lightning_vision.explain.multifaceted import visualise_facets

from ._trained_digits import digits, rows_of, trained

__all__ = ["draw"]


def draw() -> Figure:
    """Five facets: the mean each began with and the picture it became."""
    images, labels = digits()
    network = trained(labels % 2, 2)
    found = visualise_facets(network, images, 0, facets=5, top=800, features="5", steps=30)
    members = [labels[found.chosen[found.facet == facet]].bincount(minlength=10) for facet in range(5)]
    told = [f"{int(it.max())} of {int(it.sum())} are {int(it.argmax())}" for it in members]
    return rows_of(
        [
            ("mean", found.means, [f"{start:.1f}\n{text}" for start, text in zip(found.start, told, strict=True)]),
            ("picture", found.images, [f"{end:.1f}" for end in found.end]),
        ]
    )

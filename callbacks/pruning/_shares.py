"""How many weights each layer keeps: as many as a criterion says, a share of its own, or at least some."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import Tensor

from ._criterion import Criterion, Moment

__all__ = ["keep_by_layer", "keep_with_floor"]


def keep_by_layer(criterion: Criterion, moment: Moment, counts: Mapping[str, int]) -> dict[str, Tensor]:
    """Masks in which each layer keeps its own count; the criterion is asked of one layer after the other."""
    return {
        name: mask
        for name, count in counts.items()
        for name, mask in criterion.keep(_of(moment, [name]), count).items()
    }


def keep_with_floor(criterion: Criterion, moment: Moment, count: int, floor: int) -> dict[str, Tensor]:
    """Masks in which `count` weights stay in all and at least `floor` in each layer, or all that it has left.

    A layer that the criterion would leave fewer keeps its `floor` best ones, and the others are asked again for the
    rest: the minimum threshold of Gupta et al. 2022, arXiv:2209.14624, section 3.3.

    Args:
        criterion: Whose choice it is.
        moment: When.
        count: Weights that stay; at least those that the floors add up to.
        floor: Weights of a layer.
    """
    least = {name: min(floor, int(kept.sum())) for name, kept in moment.kept.items()}
    masks: dict[str, Tensor] = {}
    free = list(moment.weights)
    while True:
        found = dict(criterion.keep(_of(moment, free), count))
        short = [name for name, mask in found.items() if int(mask.sum()) < least[name]]
        if not short:
            return {name: (found | masks)[name] for name in moment.weights}
        masks |= keep_by_layer(criterion, moment, {name: least[name] for name in short})
        count -= sum(least[name] for name in short)
        free = [name for name in free if name not in short]


def _of(moment: Moment, names: Iterable[str]) -> Moment:
    names = list(names)
    weights = {name: moment.weights[name] for name in names}
    return replace(moment, weights=weights, kept={name: moment.kept[name] for name in names})

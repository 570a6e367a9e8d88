"""The parameters of a network as groups, from the head down to the stem, and which of them train in an epoch."""

from collections.abc import Collection, Sequence
from itertools import chain

from lightning.pytorch import LightningModule
from timm.models import group_parameters
from torch import nn

from ..hooks._frozen import part_name
from ..hooks._live_tensors import plain_name

__all__ = ["found_groups", "thawed", "whole_parts"]


def thawed(groups: Sequence[tuple[str, ...]], ends: Sequence[int], epoch: int) -> tuple[str, ...] | None:
    """Names of the parts that train: the first group, one more from each of `ends` on, everything from the last.

    >>> [thawed((("head",), ("top",)), (1, 3), epoch) for epoch in range(4)]
    [('head',), ('head', 'top'), ('head', 'top'), None]

    Args:
        groups: Names of the parts in each group but the last, from the head down.
        ends: As many epochs, in rising order, counted from 0.
        epoch: Which one.
    """
    count = sum(epoch >= end for end in ends)
    return None if count == len(ends) else tuple(chain.from_iterable(groups[: count + 1]))


def found_groups(pl_module: LightningModule) -> list[list[str]]:
    """Names of the trained parameters in groups from the head down, as timm's network or else the parts tell.

    A timm network that can say which of its parameters belong together, its stages or blocks, is asked; what the module
    holds beside such networks comes first. Without one each part is a group, in the order in which they were made: the
    module's own, or those of its only part, and so on.
    """
    names = [plain_name(name) for name, it in pl_module.named_parameters() if it.requires_grad]
    levels = dict.fromkeys(names, 0)
    networks = [
        (part_name(name), part)
        for name, part in pl_module.named_modules()
        if hasattr(part, "group_matcher") and not hasattr(part, "_orig_mod")
    ]
    for path, network in networks:
        numbers = group_parameters(network, network.group_matcher(coarse=True), reverse=True)
        top = max(numbers.values())
        # Without a classifier of its own the network reads below what lies beside it.
        below = not getattr(network, "num_classes", 0)
        for name, number in numbers.items():
            if (full := f"{path}.{plain_name(name)}") in levels:
                levels[full] = top - number + below
    if not networks:
        path, parts = _first_fork(pl_module)
        order = {name: len(parts) - place for place, name in enumerate(parts)}
        # What hangs on the module itself, such as a position embedding, belongs to the input.
        levels = {name: order.get(name.removeprefix(path).partition(".")[0], len(parts) + 1) for name in names}
    return [[name for name in names if levels[name] == level] for level in sorted(set(levels.values()))]


def whole_parts(pl_module: LightningModule, names: Collection[str]) -> tuple[str, ...]:
    """The largest parts all of whose parameters are among `names`, and the names that lie in none.

    So the layers without parameters in a part that trains, dropouts for example, belong to it.
    """
    wanted, found, covered = set(names), list[str](), set[str]()
    for path, part in pl_module.named_modules():
        named = [(plain_name(name), it) for name, it in part.named_parameters()]
        inside = [f"{part_name(path)}.{name}" for name, it in named if it.requires_grad]
        if path and inside and wanted.issuperset(inside) and not covered.issuperset(inside):
            found.append(part_name(path))
            covered.update(inside)
    return (*found, *(name for name in names if name not in covered))


def _first_fork(pl_module: LightningModule) -> tuple[str, list[str]]:
    """The path, with its dot, of the outermost part that holds several with trained parameters, and their names."""
    path, owner = "", pl_module
    while True:
        inside: dict[str, nn.Module] = {
            name: part for name, part in owner.named_children() if any(it.requires_grad for it in part.parameters())
        }
        if len(inside) != 1:
            return path, list(inside)
        ((name, owner),) = inside.items()  # type: ignore[assignment]  # from here on any module
        path = path if name == "_orig_mod" else f"{path}{name}."

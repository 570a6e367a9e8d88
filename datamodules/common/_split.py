"""Stratified splits that are the same in every process, stage and session."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ._draws import Stream, draw_bits

__all__ = ["few_labelled", "iterative_split", "stratified_split"]


def stratified_split(
    targets: Tensor, fractions: Sequence[float], seed: int, keys: Tensor | None = None
) -> list[Tensor]:
    """Divide samples into parts that hold `fractions` of each class, to within one sample.

    Small classes fill the earlier parts first. No random state is read or changed.

    Args:
        targets: Class of each sample, int64 `(N,)`.
        fractions: Share of each part, in sum 1.
        seed: Another seed, another split.
        keys: What identifies each sample, int64 `(N,)`, by default its position. Keys made from file names keep the
            split (but for the edges of its parts) when files are added.

    Returns:
        Positions of each part, int64, ascending.
    """
    bits = draw_bits(torch.arange(len(targets)) if keys is None else keys, seed, Stream.SPLIT)
    order = bits.argsort(stable=True)
    shares = torch.tensor(fractions, dtype=torch.float64).cumsum(0)
    parts: list[list[Tensor]] = [[] for _ in fractions]
    for label in targets.unique().tolist():
        members = order[targets[order] == label]
        edges = (shares * len(members) + 0.5).long().tolist()
        edges[-1] = len(members)
        for part, start, stop in zip(parts, [0, *edges], edges, strict=False):
            part.append(members[start:stop])
    return [torch.cat(part).sort().values if part else order[:0] for part in parts]


def few_labelled(targets: Tensor, count: int, classes: int, seed: int, source: str) -> Tensor:
    """Positions of `count` samples of each class, int64, ascending; of a larger count they are a part.

    Args:
        targets: Class of each sample, int64 `(N,)`.
        count: Samples of each class.
        classes: How many classes there are.
        seed: Another seed, other samples.
        source: The datamodule's name, for the message.

    Raises:
        ValueError: a class has fewer samples.
    """
    counts = targets.bincount(minlength=classes)
    if counts.min() < count:
        least = int(counts.argmin())
        raise ValueError(
            f"labels_per_class is {count}, but class {least} of {source} has {int(counts[least])} training images; "
            "give at most as many"
        )
    order = draw_bits(torch.arange(len(targets)), seed, Stream.LABELLED).argsort(stable=True)
    return torch.cat([order[targets[order] == label][:count] for label in range(classes)]).sort().values


def iterative_split(targets: Tensor, fractions: Sequence[float], seed: int, keys: Tensor | None = None) -> list[Tensor]:
    """Divide samples with several labels into parts that hold about `fractions` of each label.

    The rarest label is dealt first, each of its samples to the part that lacks it most; with equals, to the part with
    more room (Sechidis, Tsoumakas and Vlahavas 2011, doi:10.1007/978-3-642-23808-6_10, whose ties are broken at
    random, here for the earlier part). Samples without labels come last.

    Args:
        targets: 0 and 1, `(N, K)`.
        fractions: Share of each part, in sum 1.
        seed: Another seed, another split.
        keys: What identifies each sample, int64 `(N,)`, by default its position.

    Returns:
        Positions of each part, int64, ascending.
    """
    samples, classes = targets.shape
    bits = draw_bits(torch.arange(samples) if keys is None else keys, seed, Stream.SPLIT)
    order = bits.argsort(stable=True).tolist()
    labels: list[list[int]] = [[] for _ in range(samples)]
    for sample, label in targets.nonzero().tolist():
        labels[sample].append(label)
    members: list[list[int]] = [[] for _ in range(classes)]
    for sample in order:
        for label in labels[sample]:
            members[label].append(sample)
    left = [len(own) for own in members]
    wanted = [[share * count for count in left] for share in fractions]
    room = [share * samples for share in fractions]
    parts: list[list[int]] = [[] for _ in fractions]
    dealt = [False] * samples

    def deal(sample: int, lacks: Sequence[float]) -> None:
        part = max(range(len(parts)), key=lambda number: (lacks[number], room[number]))
        parts[part].append(sample)
        dealt[sample] = True
        room[part] -= 1
        for own in labels[sample]:
            wanted[part][own] -= 1
            left[own] -= 1

    while any(left):
        rarest = min((label for label in range(classes) if left[label]), key=lambda label: left[label])
        for sample in members[rarest]:
            if not dealt[sample]:
                deal(sample, [row[rarest] for row in wanted])
    for sample in order:
        if not dealt[sample]:
            deal(sample, room)
    return [torch.tensor(part, dtype=torch.int64).sort().values for part in parts]

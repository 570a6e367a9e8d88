"""A stratified split that is the same in every process, stage and session."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ._draws import Stream, draw_bits

__all__ = ["stratified_split"]


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

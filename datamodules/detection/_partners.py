"""Who is mixed with whom, and whose objects come along."""

from dataclasses import replace

from torch import Tensor

from .annotations import Annotations

__all__ = ["of_partners", "partners"]


def partners(column: Tensor, count: int) -> list[Tensor]:
    """Which images each image of a batch is mixed with, `count` permutations, int64 `(B,)`; the first is itself.

    The batch is put in the order of a column of uniform numbers, and each has those that follow it there, the first
    following the last: nobody is its own partner and no two partners are one where the batch is large enough, and
    every image is the partner of as many.

    Args:
        column: Float32 `(B,)`.
        count: How many images make one.
    """
    order = column.argsort(stable=True)
    rank = order.argsort()
    return [order[(rank + later) % max(len(order), 1)] for later in range(count)]


def of_partners(annotations: Annotations, source: Tensor) -> Annotations:
    """The batch's annotations in the order of the images `images[source]`, objects sorted by nothing but that.

    Args:
        annotations: Of the batch; left alone.
        source: A permutation, int64 `(B,)`; image i of the result is image `source[i]`.
    """
    goes_to = source.argsort()
    sample = goes_to[annotations.sample]
    whole = {name: getattr(annotations, name)[source] for name in ("image_id", "placement", "size")}
    return replace(annotations, sample=sample, **whole)

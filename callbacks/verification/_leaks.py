"""Which layers mix the samples of a batch, by running a step with some of them exchanged."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..hooks._frozen import part_name
from ..hooks._rerun import StepFailedError
from ._watch import STEP, Call, Key, Watch, leaking_rows

__all__ = ["Leak", "Leaks", "batch_leaks"]

T = TypeVar("T")

_HALVES = ((0, False), (0, True), (1, False), (1, True))  # by which split, and whether the others are meant


@dataclass(frozen=True)
class Leak:
    """A layer that mixes samples.

    Args:
        path: Of the layer; "" is the module's own forward, `training_step` what the step computes between layers.
        kind: Its class.
        rows: Numbers of the rows that changed though their samples had not.
        share: By how much, as a share of the largest value that the layer puts out.
    """

    path: str
    kind: str
    rows: tuple[int, ...]
    share: float


@dataclass(frozen=True)
class Leaks:
    """What was found in a step.

    Args:
        leaks: Layers that mix samples, the first one in the order of calls first.
        batch_norms: Paths of batch norms that measure the batch while training.
        judged: Calls of layers that could be judged.
    """

    leaks: tuple[Leak, ...]
    batch_norms: tuple[str, ...]
    judged: int


def batch_leaks(
    run: Callable[[], Any],
    module: nn.Module,
    batch: Any = None,
    tolerance: float = 1e-4,
    agree: Callable[[bool], bool] = bool,
    allowed: Collection[str] = (),
    another: tuple[Callable[[], Any], Any] | None = None,
) -> Leaks:
    """Look for layers whose row i depends on what they are given in row j, by running a step five times.

    In two of the runs half of the samples, and then the other half, enter the outermost layers as their negatives, in
    two more the halves of another split, for a layer may exchange rows that stand in the same half. A row that changes
    though it came in unchanged has seen another sample. Batch norms rest meanwhile, or they would hide what comes after
    them. What is found is confirmed in six more runs, two of which are equal, for a layer may compute differently each
    time, and once more with another number of samples, for a layer may put out as many rows as there are samples by
    chance. Of nested layers the innermost is named.

    Args:
        run: Computes the step, each time from the same start, random streams included.
        module: Whose layers are called.
        batch: That the step computes, so that the loss's rows are known to be samples.
        tolerance: Changes of at most this share of a layer's largest output are rounding.
        agree: Of several processes, whether any has found something, or has failed.
        allowed: Paths of layers that may mix samples.
        another: The same step for another number of samples, which may raise `StepFailedError`, and its batch.
    """
    look = partial(_look, module=module, tolerance=tolerance, agree=agree, allowed=allowed)
    first, proven, judged = look(run, batch)
    # All processes have another batch or none does.
    if agree(bool(proven)) and not agree(another is None) and another is not None:
        # The step need not run with so many samples, and what was found stands then.
        with suppress(StepFailedError):
            paths = {leak.path for leak in look(*another)[1].values()}
            proven = {key: leak for key, leak in proven.items() if leak.path in paths}
    leaks = {leak.path: leak for leak in reversed(_innermost(first.calls, proven))}
    return Leaks(tuple(reversed(leaks.values())), tuple(first.batch_norms), judged)


def _look(
    run: Callable[[], Any],
    batch: Any,
    module: nn.Module,
    tolerance: float,
    agree: Callable[[bool], bool],
    allowed: Collection[str],
) -> tuple[Watch, dict[Key, Leak], int]:
    """A run's calls, those that mix samples, and how many could be judged."""

    def watched(
        calls: dict[Key, Call] | None = None, split: int = 0, others: bool = False, keep: Collection[Key] = ()
    ) -> Watch:
        with Watch(module, batch, allowed, calls, split, others, keep) as watch:
            run()
        return watch

    def suspected() -> tuple[Watch, dict[Key, Tensor]]:
        first, suspects = watched(), dict[Key, Tensor]()
        for exchange in _HALVES:
            watch = watched(first.calls, *exchange)
            for key in first.calls:
                rows = leaking_rows(key, first.calls, watch)
                if rows is not None:
                    suspects[key] = suspects.get(key, torch.zeros_like(rows)) | rows
        return first, suspects

    def confirmed() -> dict[Key, Leak]:
        same, again = watched(keep=found), watched(keep=found)
        halved = [watched(same.calls, *exchange, keep=found) for exchange in _HALVES]
        leaks = {key: _leak(module, key, found[key], same, again, halved) for key in first.calls if key in found}
        return {key: leak for key, leak in leaks.items() if leak is not None and leak.share > tolerance}

    first, suspects = _together(agree, suspected)
    found = {key: rows for key, rows in suspects.items() if rows.any()}
    # Allowed ones that put out no tensor with a row a sample mix still, so whatever lies around them does.
    mixing = {key for key in found if key[0] in allowed}
    found = {key: rows for key, rows in found.items() if mixing.isdisjoint([key, *_inside(key, first.calls)])}
    if mixing:
        found = {key: rows for key, rows in found.items() if key[0] != STEP}
    return first, _together(agree, confirmed) if agree(bool(found)) else {}, len(suspects)


def _together(agree: Callable[[bool], bool], compute: Callable[[], T]) -> T:
    """In all processes or in none, for one that fails alone would leave the others waiting in the next `agree`."""
    failed: list[Exception] = []
    try:
        found = compute()
    except Exception as error:  # of any kind: it is a stranger's step
        failed.append(error)
    if agree(bool(failed)):
        raise failed[0] if failed else StepFailedError("the step of another process failed")
    return found


def _innermost(calls: dict[Key, Call], leaks: dict[Key, Leak]) -> list[Leak]:
    """Those in which no other one lies; the step itself only if there is no other."""

    layers = {key: leak for key, leak in leaks.items() if key[0] != STEP}
    innermost = [leak for key, leak in layers.items() if not any(it in layers for it in _inside(key, calls))]
    return innermost or list(leaks.values())


def _inside(key: Key, calls: dict[Key, Call]) -> Iterator[Key]:
    for it in calls[key].inside:
        if it in calls:
            yield it
            yield from _inside(it, calls)


def _leak(
    module: nn.Module, key: Key, rows: Tensor, first: Watch, again: Watch, halved: Sequence[Watch]
) -> Leak | None:
    """None if the rows move no further than ten times as far as in two equal runs."""
    same, equal, *others = (it.calls[key].kept if key in it.calls else () for it in (first, again, *halved))
    largest = max((float(it.abs().max()) for it in same if it.numel()), default=0.0)
    masks = [leaking_rows(key, first.calls, watch) for watch in halved]
    moved = [_furthest(same, it, mask) for it, mask in zip(others, masks, strict=True) if mask is not None]
    if max(moved, default=0.0) <= 10 * _furthest(same, equal, rows):
        return None
    kinds = {part_name(path): type(part).__name__ for path, part in module.named_modules()}
    return Leak(key[0], kinds.get(key[0], ""), tuple(rows.nonzero().flatten().tolist()), max(moved) / (largest or 1.0))


def _furthest(left: Sequence[Tensor], right: Sequence[Tensor], rows: Tensor) -> float:
    """The largest difference in the rows of two lists of tensors; of tensors that have no such rows, in all of them."""
    if not rows.any() or [it.shape for it in left] != [it.shape for it in right]:
        return 0.0
    pairs = list(zip(left, right, strict=True))
    if own := [pair for pair in pairs if pair[0].ndim and len(pair[0]) == len(rows)]:
        pairs = [(a[rows.to(a.device)], b[rows.to(b.device)]) for a, b in own]
    return max((float((a.cpu().double() - b.cpu().double()).abs().max()) for a, b in pairs if a.numel()), default=0.0)

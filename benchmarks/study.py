"""What the studies share: runs in fresh processes, a table of every seed and paired differences to its first arm."""

import logging
import multiprocessing
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import sqrt
from statistics import mean, stdev
from typing import Any, TypeVar

import torch

__all__ = ["in_processes", "paired_difference", "table"]

Outcome = TypeVar("Outcome")


def in_processes(run: Callable[..., Outcome], tasks: Iterable[Sequence[Any]], processes: int) -> list[Outcome]:
    """`run(*task)` of each task, in order, with one torch thread in each of so many processes; 0 is this one."""
    if not processes:
        return [run(*task) for task in tasks]
    # Fresh interpreters: a fork of a process in which torch has computed can hang.
    with multiprocessing.get_context("spawn").Pool(processes, _quiet) as pool:
        return pool.starmap(run, tasks, chunksize=1)


def paired_difference(scores: Sequence[float], plain: Sequence[float]) -> tuple[str, str]:
    """Mean of the paired differences with its standard error, points, and whether it is larger than two of these.

    >>> paired_difference([91.0, 93.0], [90.0, 90.0])
    ('+2.0 ± 1.0', 'no')
    """
    gains = [score - base for score, base in zip(scores, plain, strict=True)]
    if len(gains) < 2:
        return f"{mean(gains):+.1f}", ""
    error = stdev(gains) / sqrt(len(gains))
    return f"{mean(gains):+.1f} ± {error:.1f}", "yes" if abs(mean(gains)) > 2 * error else "no"


def table(
    scores: Mapping[str, Sequence[float]],
    before: Mapping[str, Mapping[str, str]],
    after: Mapping[str, Mapping[str, str]],
) -> str:
    """Markdown: an arm a row, with the score of every seed, the mean and the paired difference to the first arm.

    Args:
        scores: Percent of each seed, by arm.
        before: Cells by column and arm, between the arm's name and its scores.
        after: Cells by column and arm, at the end.
    """
    plain = next(iter(scores.values()))
    numbers = [f"seed {seed}" for seed in range(len(plain))]
    columns = ["arm", *before, *numbers, "mean", "to plain", "over 2 SE?", *after]
    rules = ["---", *["--:"] * (len(before) + len(numbers) + 2), "---", *["--:"] * len(after)]
    lines = [f"| {' | '.join(columns)} |", f"|{'|'.join(rules)}|"]
    for arm, each in scores.items():
        gain = ("", "") if each is plain else paired_difference(each, plain)
        cells = [arm, *(column[arm] for column in before.values()), *(f"{score:.1f}" for score in each)]
        cells += [f"{mean(each):.1f}", *gain, *(column[arm] for column in after.values())]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _quiet() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    warnings.filterwarnings("ignore", module="lightning")

"""The guarantees that hold under each condition: neutral is nothing, counts are a plain run's, resume is exact.

Each check trains on the process it is called in, so that the same functions run on one process and on each of two.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_vision.callbacks import ExactResume
from lightning_vision.callbacks.hooks.freezing import Freezing
from support.conformance.conditions import FACTORS, Condition
from support.conformance.runs import Outcome, compare, fit, plain_run
from support.conformance.subjects import Subject

__all__ = [
    "EVERYTHING",
    "Verdict",
    "counts_as_plain",
    "different_ranks",
    "improper",
    "keys_differ",
    "neutral_is_nothing",
    "refused_without_reason",
    "resumed_is_straight",
    "under",
    "with_resume",
]

EVERYTHING = ("module", "optimizers", "schedulers", "counts", "rows", "metrics", "streams")


@dataclass
class Verdict:
    """What one condition brought.

    Args:
        found: broken guarantees.
        refusal: the sentence with which the condition was refused, or nothing.
        weights: of the working run, to be compared between ranks.
    """

    found: list[str]
    refusal: str = ""
    weights: dict[str, Any] = field(default_factory=dict)


def under(subject: Subject, condition: Condition, row: int, folder: Path) -> Verdict:
    """All checks of one condition; `row` is its number, so that several neutral settings take turns."""
    folder, condition = folder / str(row), condition.on_behalf_of(subject.kind)
    straight = fit(condition, [*with_resume(subject), _writer(condition, folder)], refusable=[subject.name])
    neutral = neutral_is_nothing(subject, condition, row)
    if straight.refusal:
        # Switched off it may be refused alike, but nowhere else.
        neutral = [line for line in neutral if not line.endswith(straight.refusal)]
        return Verdict(neutral + improper(subject, straight.refusal), straight.refusal)
    found = neutral + counts_as_plain(subject, straight, condition) + keys_differ(subject, straight, condition)
    found += resumed_is_straight(subject, condition, straight, folder)
    return Verdict([f"{condition}: {line}" for line in found], weights=straight.module)


def neutral_is_nothing(subject: Subject, condition: Condition, row: int) -> list[str]:
    """Guarantee 2; a callback that only watches leaves no trace under its working setting either."""
    makers = [lambda: subject.make_neutral(row)] if subject.neutral else []
    makers += [subject.make] if subject.only_watches else []
    plain = plain_run(condition)
    found = []
    for make in makers:
        outcome = fit(condition, [make()], refusable=[subject.name])
        refused = [f"it is refused: {outcome.refusal}"] if outcome.refusal else []
        lines = refused or compare(outcome.without_own(plain), plain, EVERYTHING)
        found += [f"switched off, {line}" for line in lines]
    return found


def counts_as_plain(subject: Subject, straight: Outcome, condition: Condition) -> list[str]:
    """Guarantees 9 and 11: steps, logged rows, batches that batch norm saw and the global streams are a plain run's.

    A class that lets parts rest for a while, as it declares, may draw less, and its batch norms may see fewer batches;
    one that shortens epochs takes fewer steps.
    """
    plain = plain_run(condition)
    if subject.kind.shortens_epochs:
        more = [name for name, count in plain.counts.items() if straight.counts[name] > count]
        return [f"{name} is {straight.counts[name]}, above {plain.counts[name]}" for name in more]
    found = compare(straight, plain, ["counts"] if subject.kind.rests else ["counts", "streams"])
    ours = [(step, sorted(row)) for step, row in straight.without_own(plain).rows]
    theirs = [(step, sorted(row)) for step, row in plain.rows]
    if ours != theirs:
        found.append(f"rows are logged at {ours} instead of {theirs}")
    for name, value in plain.module.items():
        if subject.kind.changes_architecture and name not in straight.module:
            continue
        fewer = subject.kind.rests and straight.module.get(name, value) < value
        if name.endswith("num_batches_tracked") and straight.module.get(name) != value and not fewer:
            found.append(f"{name} is {straight.module.get(name)} instead of {value}")
    return found


def keys_differ(subject: Subject, straight: Outcome, condition: Condition) -> list[str]:
    """Guarantee 5, unless the class declares an exception."""
    plain = plain_run(condition)
    found = []
    if subject.kind.adds_parameters or subject.kind.changes_architecture:
        return found
    if list(straight.module) != list(plain.module):
        found.append(f"module has the keys {sorted(set(straight.module) ^ set(plain.module))} more or less")
    ours, theirs = _optimizer_keys(straight), _optimizer_keys(plain)
    if issubclass(subject.kind, Freezing):
        # What was frozen all along has no state.
        theirs = [(held, {k: it[k] for k in own if k in it}) for (held, it), (_, own) in zip(theirs, ours, strict=True)]
    if ours != theirs:
        found.append(f"optimizers have the state {ours} instead of {theirs}")
    return found


def _optimizer_keys(outcome: Outcome) -> list[Any]:
    return [
        ([len(group["params"]) for group in state["param_groups"]], {k: sorted(v) for k, v in state["state"].items()})
        for state in outcome.optimizers
    ]


def resumed_is_straight(subject: Subject, condition: Condition, straight: Outcome, folder: Path) -> list[str]:
    """Guarantee 4: a new process, with other random draws, that goes on from a file which the straight run wrote."""
    if dist.is_initialized():
        dist.barrier()
    # Inside an epoch: the second, so that of the first only the file tells.
    files = sorted(folder.glob("1-*.ckpt" if condition.resume == "inside an epoch" else "0-*.ckpt"), key=_step)
    if subject.kind.shortens_epochs and (not files or _step(files[0]) >= straight.counts["global step"]):
        # The second epoch ends where a file would be written.
        files = sorted(folder.glob("0-*.ckpt"), key=_step)
    if not files or _step(files[0]) >= straight.counts["global step"]:
        return [f"no checkpoint was written where it should: {sorted(it.name for it in folder.glob('*'))}"]
    resumed = fit(condition, with_resume(subject), seeded=40, ckpt_path=files[0])
    rest = straight.rows[len(straight.rows) - len(resumed.rows) :]
    found = compare(resumed, straight, ["module", "optimizers", "schedulers", "metrics", "streams"])
    found += compare(Outcome(rows=resumed.rows), Outcome(rows=rest), ["rows"])
    if (ends := [(it.counts["global step"], it.counts["epoch"]) for it in (resumed, straight)])[0] != ends[1]:
        found.append(f"the run ended at step and epoch {ends[0]} instead of {ends[1]}")
    return [f"resumed {condition.resume} after step {_step(files[0])}, {line}" for line in found]


def with_resume(subject: Subject, **changed: Any) -> list[Callback]:
    """The callback beside what makes resuming exact."""
    own = subject.make(**changed)
    return [own] if isinstance(own, ExactResume) else [own, ExactResume()]


def _writer(condition: Condition, folder: Path) -> ModelCheckpoint:
    """Saves after every second batch that steps, which does not divide an epoch's five batches, or after each epoch."""
    when: dict[str, Any] = {"every_n_train_steps": 2 * condition.steps_a_batch}
    if condition.resume == "at its end":
        when = {"every_n_epochs": 1, "save_on_train_epoch_end": True}
    return ModelCheckpoint(folder, "{epoch}-{step}", save_top_k=-1, auto_insert_metric_name=False, **when)


def _step(file: Path) -> int:
    return int(file.stem.rpartition("-")[2])


def different_ranks(left: Verdict, right: Verdict) -> list[str]:
    """Guarantee 7: both ranks refuse alike or hold equal parameters; batch norm's statistics are each rank's own."""
    if left.refusal != right.refusal:
        return [f"one rank says {left.refusal!r} and the other {right.refusal!r}"]
    names = [name for name in left.weights if "running" not in name]
    equal = all(torch.equal(left.weights[name], right.weights[name]) for name in names)
    return [] if equal else ["the ranks have different parameters"]


def improper(subject: Subject, refusal: str) -> list[str]:
    """Guarantee 8: a refusal is a sentence about the callback, before the first step."""
    words = refusal.split()
    if refusal.startswith(f"{subject.name}: ") and refusal.endswith(".") and len(words) >= 8:
        return []
    return [f"no sentence that refuses before the first step: {refusal!r}"]


def refused_without_reason(refused: Mapping[Condition, str]) -> list[str]:
    """Refused conditions that no level explains: one level, not the ordinary one, refused wherever it stands."""
    tried = list(refused)
    explained = {
        (factor, level)
        for factor, levels in FACTORS.items()
        for level in levels[1:]
        if all(refused[it] for it in tried if getattr(it, factor) == level)
    }
    return [
        f"{condition}: refused, though parts of it work: {refused[condition]}"
        for condition in tried
        if refused[condition] and not any(getattr(condition, factor) == level for factor, level in explained)
    ]

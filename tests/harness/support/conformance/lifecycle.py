"""What surrounds a fit: a second one, evaluation after it, pickles and copies of the callback, a compiled module."""

import copy
import pickle
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from lightning_vision.callbacks.hooks.evaluation import Evaluation
from support.conformance.conditions import Condition
from support.conformance.runs import Outcome, compare, fit, loaders, plain_run
from support.conformance.subjects import Subject
from support.conformance.traces import traces_of

__all__ = [
    "acts",
    "compiled_is_plain",
    "copies_work",
    "evaluates",
    "fits_again",
    "leaves_nothing",
    "own_stream_only",
    "working",
]

RUN = ("module", "optimizers", "schedulers", "counts", "rows", "metrics", "streams")


def _module(condition: Condition, **arguments: Any) -> Any:
    torch.manual_seed(1)
    return condition.make_module(**arguments)


def working(subject: Subject) -> Outcome:
    """The run that others of this callback are compared with."""
    return fit(subject.ordinary, [subject.make()])


def leaves_nothing(subject: Subject, expected: Outcome) -> list[str]:
    """Guarantee 6 after a fit that ends well."""
    ours = _left(subject, subject.make())
    theirs = _left(subject) if subject.kind.changes_architecture else _left_plainly(subject.ordinary)
    return [f"left behind: {it}" for it in sorted(ours - theirs)] + [f"lost: {it}" for it in sorted(theirs - ours)]


def _left(subject: Subject, *callbacks: Callback) -> set[str]:
    module = subject.prepared(_module(subject.ordinary))
    return traces_of(fit(subject.ordinary, callbacks, module=module).trainer, module)


@cache
def _left_plainly(condition: Condition) -> frozenset[str]:
    module = _module(condition)
    return frozenset(traces_of(fit(condition, module=module).trainer, module))


def fits_again(subject: Subject, expected: Outcome) -> list[str]:
    """Guarantee 6: the same callback in a new run is like new, also after an exception; a Trainer is prolonged."""
    own = subject.make()
    fit(subject.ordinary, [own])
    again = fit(subject.ordinary, [own])
    found = [f"used for a second run, {line}" for line in compare(again, expected, RUN)]

    module = _module(subject.ordinary)
    trainer = fit(subject.ordinary, [subject.make()], module=module, max_epochs=1).trainer
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, **loaders(subject.ordinary))
    end, ends = (trainer.global_step, trainer.current_epoch), (expected.counts["global step"], 2)
    if end != ends:
        found.append(f"prolonged by an epoch on one Trainer, the run ended at step and epoch {end} instead of {ends}")
    return found


def evaluates(subject: Subject, expected: Outcome) -> list[str]:
    """After a fit validate, test and predict work twice alike on its Trainer and leave weights and streams alone."""
    module = _module(subject.ordinary)
    trainer = fit(subject.ordinary, [subject.make()], module=module).trainer
    data = loaders(subject.ordinary)["val_dataloaders"]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    stream = torch.get_rng_state()
    found = []
    for call in ("validate", "test", "predict"):
        first, second = (getattr(trainer, call)(module, data) for _ in range(2))
        if not first:
            found.append(f"{call} returned nothing")
        if compare(Outcome(rows=[first]), Outcome(rows=[second]), ["rows"]):
            found.append(f"{call} gave {first} and then {second}")
    found += compare(Outcome(module=dict(module.state_dict())), Outcome(module=before), ["module"])
    found += compare(Outcome(streams={"torch": torch.get_rng_state()}), Outcome(streams={"torch": stream}), ["streams"])
    return found


def copies_work(subject: Subject, expected: Outcome) -> list[str]:
    """A deep copy of a pickled callback trains like the original, made before a fit and after one."""
    own, found = subject.make(), []
    for when in ("before", "after"):
        try:
            twin = copy.deepcopy(pickle.loads(pickle.dumps(own)))
        except Exception as error:  # whatever a class raises that cannot be copied
            found.append(f"no pickle or copy {when} a fit: {type(error).__name__}: {error}")
        else:
            lines = compare(fit(subject.ordinary, [twin]), expected, RUN)
            found += [f"a copy made {when} a fit: {line}" for line in lines]
        if when == "before":
            fit(subject.ordinary, [own])
    return found


def compiled_is_plain(subject: Subject) -> list[str]:
    """A compiled module trains as one that is not; refusing it in a sentence is allowed."""
    # Four batches of one shape and no validation: each further shape or mode is traced anew, which costs a second.
    short = {"max_epochs": 1, "limit_train_batches": 4, "limit_val_batches": 0}
    module = torch.compile(_module(subject.ordinary), backend="eager")
    compiled = fit(subject.ordinary, [subject.make()], module=module, refusable=[subject.name], **short)
    torch.compiler.reset()
    expected = fit(subject.ordinary, [subject.make()], **short)
    compiled.module = {name.replace("_orig_mod.", ""): value for name, value in compiled.module.items()}
    return [] if compiled.refusal else [f"compiled, {line}" for line in compare(compiled, expected, RUN)]


def own_stream_only(subject: Subject, expected: Outcome) -> list[str]:
    """Guarantee 11: a module that draws nothing leaves the global streams as the plain run does."""
    module = _module(subject.ordinary, dropout=0.0)
    ours = fit(subject.ordinary, [subject.make()], module=module)
    return compare(ours, _drawing_nothing(subject.ordinary), ["streams"])


@cache
def _drawing_nothing(condition: Condition) -> Outcome:
    return fit(condition, module=_module(condition, dropout=0.0))


def acts(subject: Subject, expected: Outcome) -> list[str]:
    """Guarantee 8: a fit does not silently pass by it; weights, rates or logs change, or one that watches tells."""
    if issubclass(subject.kind, Evaluation):
        return _tells(subject)
    if subject.only_watches:
        return []
    changed = compare(expected, plain_run(subject.ordinary), ["module", "optimizers", "schedulers", "rows"])
    return [] if changed else ["it does nothing: weights, optimizers, schedules and logs are the plain run's"]


def _tells(subject: Subject) -> list[str]:
    """One that watches validations leaves files of the run, or numbers that the plain run has not."""
    with tempfile.TemporaryDirectory() as folder:
        rows, known = (
            {name for _, row in it.rows for name in row}
            for it in (fit(subject.ordinary, [subject.make()], default_root_dir=folder), plain_run(subject.ordinary))
        )
        if any(it.is_file() for it in Path(folder).rglob("*")) or rows - known:
            return []
    return ["it watches and tells nothing: there is no file and no number of it"]

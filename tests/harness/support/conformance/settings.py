"""Arguments: plain types, a round trip through YAML as the command makes it, refusals of what shards parameters."""

import inspect
from copy import deepcopy
from typing import Any

import jsonargparse
import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import FSDPStrategy

from support.conformance.checks import improper
from support.conformance.runs import fit
from support.conformance.subjects import Subject
from support.modules import Plain

__all__ = ["refuses_what_shards", "round_trips", "takes_a_twin_with_a_name"]


def round_trips(subject: Subject) -> list[str]:
    """Guarantee 10: parsed, written as YAML and parsed again, the settings are the same, and plain."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Callback, "callback")
    path = f"{subject.kind.__module__}.{subject.name}"
    found = []
    for changed in [{}, *subject.neutral]:
        # A copy: entries within are resolved where they stand.
        given = {"class_path": path, "init_args": {**deepcopy(dict(subject.working)), **changed}}
        first = parser.parse_object({"callback": given})
        written = parser.dump(first)
        again = parser.parse_string(written)
        if first != again:
            found.append(f"{changed}: {again} comes back instead of {first}")
        if odd := [it for it in _leaves(yaml.safe_load(written)) if not isinstance(it, (str, int, float, type(None)))]:
            found.append(f"{changed}: {odd} are not plain")
        made = parser.instantiate(again).callback
        if type(made) is not subject.kind:
            found.append(f"{changed}: a {type(made).__name__} comes back")
    parameters = list(inspect.signature(subject.kind).parameters)
    if parameters[-1:] != ["name"]:
        found.append(f"the last argument is not `name`: {parameters}")
    return found


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    return [leaf for it in value for leaf in _leaves(it)] if isinstance(value, list) else [value]


def refuses_what_shards(subject: Subject) -> list[str]:
    """Guarantee 8: a strategy that keeps parameters to itself is refused at set-up, unless the class declares it."""
    trainer = Trainer(accelerator="cpu", logger=False, barebones=True)
    trainer.strategy.__class__ = type("Sharded", (FSDPStrategy,), {})
    own = subject.make()
    trainer.callbacks = [own]
    declared = issubclass(FSDPStrategy, tuple(subject.kind.strategies))
    try:
        own.setup(trainer, Plain(), "fit")
    except ValueError as error:
        return ["it refuses what it declares"] if declared else improper(subject, str(error))
    finally:
        own.teardown(trainer, Plain(), "fit")
    return [] if declared else ["a strategy that shards is neither declared nor refused"]


def takes_a_twin_with_a_name(subject: Subject) -> list[str]:
    """Two of a class with names of their own train, or are refused in a sentence."""
    twins = fit(subject.ordinary, [subject.make(name="a"), subject.make(name="b")], refusable=[subject.name])
    return improper(subject, twins.refusal) if twins.refusal else []

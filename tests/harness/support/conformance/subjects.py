"""The callbacks under test, read from the catalogue, the shipped YAML and the classes; nothing is listed by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer

from lightning_vision.callbacks.hooks.method import Method, Place
from lightning_vision.catalogue import entries
from lightning_vision.configs import built, read_config, shipped
from support import ROOT
from support.conformance.conditions import Condition
from support.teachers import with_checkpoints

__all__ = ["Subject", "missing_parts", "subjects"]


@dataclass(frozen=True)
class Subject:
    """A callback and its settings.

    Args:
        kind: the class.
        working: arguments from its YAML.
        neutral: settings each of which switches it off; empty if the class says why there is none.
    """

    kind: type[Method]
    working: Mapping[str, Any] = field(default_factory=dict)
    neutral: Sequence[Mapping[str, Any]] = ()

    @property
    def name(self) -> str:
        return self.kind.__name__

    @property
    def only_watches(self) -> bool:
        """Whether a run must equal one without it under every setting."""
        return self.kind.place in (Place.OBSERVE, Place.RUN)

    @property
    def ordinary(self) -> Condition:
        """The first level of every factor, with the module that the callback needs."""
        return Condition().on_behalf_of(self.kind)

    def make(self, **changed: Any) -> Method:
        """A new callback with the working setting, some arguments changed."""
        return self.kind(**{**built(self.working), **changed})

    def prepared(self, module: LightningModule) -> LightningModule:
        """A module with the layers that the callback gives it at set-up, if the class says that it changes them."""
        if self.kind.changes_architecture:
            own, trainer = self.make(), Trainer(accelerator="cpu", logger=False, barebones=True)
            own.setup(trainer, module, "fit")
            own.teardown(trainer, module, "fit")
        return module

    def make_neutral(self, which: int) -> Method:
        """A new callback that is switched off by the neutral setting number `which`, counted round."""
        return self.make(**self.neutral[which % len(self.neutral)])


def missing_parts(kind: type) -> list[str]:
    """What a public callback lacks to be run by the suite: its YAML is named for the module that defines it."""
    name, file = kind.__name__, kind.__module__.rpartition(".")[2]
    if not issubclass(kind, Method):
        return [f"{name} is no Method"]
    missing = []
    if [entry.get("class_path") for entry in _entries(file)] != [name]:
        missing.append(f"one entry of class {name} in cli_configs/callbacks/{file}.yaml")
    headings = [card.read_text().partition("\n")[0].split() for card in (ROOT / "docs" / "methods").glob("*.md")]
    if not any(name in heading for heading in headings):
        missing.append(f"a card in docs/methods whose heading names {name}")
    if not isinstance(getattr(kind, "place", None), Place):
        missing.append(f"{name}.place")
    neutral = getattr(kind, "neutral", None)
    if not neutral:
        missing.append(f"{name}.neutral")
    elif isinstance(neutral, str) and len(neutral.split()) < 5:
        missing.append(f"{name}.neutral as a sentence that says why there is none")
    return missing


def _entries(file: str) -> list[dict[str, Any]]:
    path = shipped().get(f"callbacks/{file}")
    return [] if path is None else list(read_config(path)["callbacks"].values())


def _for_tests(file: str) -> dict[str, Any]:
    """What a line `# test: --callbacks.NAME.ARGUMENT VALUE` of the YAML says, for trainings of two epochs."""
    lines = [it for it in shipped()[f"callbacks/{file}"].read_text().splitlines() if it.startswith("# test: ")]
    words = " ".join(lines).replace("# test: ", "").split()
    given = [it for it in zip(words[::2], words[1::2], strict=True) if it[0].startswith("--callbacks.")]
    return {flag.rpartition(".")[2]: yaml.safe_load(value) for flag, value in given}


@cache
def subjects() -> tuple[Subject, ...]:
    """All public callbacks; one without YAML runs with its defaults, and `missing_parts` tells."""
    found = []
    for entry in entries():
        if entry.kind == "callback":
            kind = entry.load()
            named = _entries(file := kind.__module__.rpartition(".")[2])
            working = with_checkpoints((named[0].get("init_args") or {}) | _for_tests(file)) if named else {}
            neutral = getattr(kind, "neutral", ())
            found.append(Subject(kind, working, () if isinstance(neutral, str) else tuple(neutral)))
    return tuple(found)

"""What the package offers, readable without torch: names, dotted paths, one-liners and papers.

`catalogue.json` beside this file is written by `lightning_vision catalogue` from the docstrings of the classes. It
feeds the lazy imports, the short class names in configs, `lightning_vision list` and shell completion.
"""

import difflib
import importlib
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["FILE", "Entry", "entries", "find", "lazy_exports", "nearest"]

FILE = Path(__file__).with_name("catalogue.json")


@dataclass(frozen=True)
class Entry:
    """One public name.

    Args:
        name: What users type, for example `ImageClassifier` or `resnet8_cifar`.
        kind: `task`, `callback`, `datamodule`, `augmentation`, `backbone` or `part` (a function or class used from
            Python).
        path: Dotted path to import it from.
        summary: First line of its docstring.
        paper: Authors, year and identifier, empty where there is none.
    """

    name: str
    kind: str
    path: str
    summary: str
    paper: str = ""

    def load(self) -> Any:
        """Import the module that defines the name and return the object."""
        module, _, name = self.path.rpartition(".")
        return getattr(importlib.import_module(module), name)


@cache
def entries() -> tuple[Entry, ...]:
    """All public names, sorted by kind and name."""
    return tuple(Entry(**entry) for entry in json.loads(FILE.read_text(encoding="utf-8")))


def find(name: str) -> Entry | None:
    """The entry called `name`, or None."""
    return next((entry for entry in entries() if entry.name == name), None)


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the names in `known` that `name` may have meant, or nothing.

    >>> nearest("resnet8_cifr", ["resnet8_cifar", "cct_2_3x2_32"])
    '; did you mean resnet8_cifar?'
    """
    close = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def lazy_exports(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` (PEP 562) of a package whose names are imported on first use.

    The root package offers the tasks, every other package offers all entries that are defined below it. From now on the
    package keeps these names: importing a file that is called as one of them does not put the file in its place.
    """
    root = package.count(".") == 0
    paths = {
        entry.name: entry
        for entry in entries()
        if entry.path.startswith(f"{package}.") and (entry.kind == "task" or not root)
    }

    def get(name: str) -> Any:
        if name in paths:
            return paths[name].load()
        other = find(name)
        hint = f"; it stands in {'.'.join(other.path.split('.')[:2])}" if other else nearest(name, paths)
        raise AttributeError(f"module {package!r} has no attribute {name!r}{hint}")

    sys.modules[package].__class__ = _KeepsItsNames
    return get, lambda: sorted(paths), sorted(paths)


class _KeepsItsNames(ModuleType):
    """A package whose public names stay what they are when files of the same name, as `grad_cam.py`, are imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        # Importing a file sets it on its package; whoever wants the file finds it in `sys.modules`.
        if not (isinstance(value, ModuleType) and name in self.__all__):
            super().__setattr__(name, value)

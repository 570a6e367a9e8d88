"""One sentence out of the parser's nested error reports."""

import importlib
import inspect
import re
import traceback
from typing import Any

from jsonargparse import ArgumentParser

from lightning_vision.catalogue import entries, nearest

__all__ = ["explain", "unwrapped"]


def explain(report: str, parser: ArgumentParser) -> str:
    """Say what was wrong, where, and what was probably meant.

    Args:
        report: Message of the parser's ArgumentError, over many lines.
        parser: The parser, for the names that do exist.
    """
    where = ".".join(dict.fromkeys(re.findall(r'Parser key "([^"]+)"', report)))
    # The innermost report comes first; what stands behind its value repeats it for the levels above.
    inner, _, rest = report.partition("Given value type:")
    # A choice out of words alone is reported without the levels around it.
    given = next(iter(re.findall(r"Given value: (.{1,60})", rest) or re.findall(r"Got value: (.{1,60})", inner)), "")
    given = given or "something else"
    # An argument of a class that a flag changes is reported inside the parser's own record of it.
    given = re.sub(r"^NestedArg\(key='[^']*', val='?(.*?)'?\).*$", r"\1", given)
    if found := re.search(r"the following arguments are required: (.+)", report):
        owner = next(iter(re.findall(r"class_path '([^']+)'", report)), "")
        missing = found[1].split(", ")
        flags = " ".join(f"--{where}.{name} VALUE" for name in missing)
        named = " and ".join(missing)
        return f"{where}: {owner} needs `{named}`, as in {flags}" if owner else f"--{named} is missing"
    if found := re.search(r"unrecognized arguments: (--[^ =]+)", report):
        return _no_such(found[1].removeprefix("--"), parser.get_defaults().keys(), "option --")
    if found := re.search(r"Group '([^']+)' does not accept option '([^']+)'", report):
        return _no_such(f"{found[1]}.{found[2]}", parser.get_defaults().keys(), "key ")
    if found := re.search(r"Option '([^']+)' is not accepted", report):
        owners = re.findall(r"class_path[ =]'([^']+)'", report)
        if not owners:
            return _no_such(found[1].removesuffix(".class_path"), parser.get_defaults().keys(), "key ")
        return f"{where}: {owners[-1]} takes no `{found[1]}`{nearest(found[1], _parameters(owners[-1]))}"
    choices = re.findall(r"'([^']+)'", "".join(re.findall(r"Literal\[([^]]+)\]", report)))
    if found := re.search(r"Expected a dot import path string: (\S+)", report):
        if choices:
            known = list(dict.fromkeys(choices))
            wanted = ", ".join(known)
            return f"{where}: expected {wanted} or the path of a class, got {found[1]}{nearest(found[1], known)}"
        hint = nearest(found[1], [entry.name for entry in entries()])
        return f"{where}: no class called {found[1]}{hint or '; give its full import path'}"
    if choices := re.findall(r"'([^']+)'", "".join(re.findall(r"Literal\[([^]]+)\]", inner))):
        wanted = " or ".join(dict.fromkeys(choices))
        return f"{where}: expected {wanted}, got {given}{nearest(given, choices)}"
    if expected := re.findall(r"Expected a <class '(\w+)'>", inner):
        wanted = " or ".join(dict.fromkeys(kind.replace("NoneType", "null") for kind in expected))
        return f"{where}: expected {wanted}, got {given}"
    return " ".join(report.split())


def unwrapped(error: Exception) -> BaseException:
    """What a constructor raised, out of the reports that the parser wraps around it."""
    inner: BaseException = error
    while inner.__cause__ is not None and "jsonargparse" in traceback.extract_tb(inner.__traceback__)[-1].filename:
        inner = inner.__cause__
    return inner


def _no_such(name: str, known: Any, what: str) -> str:
    return f"there is no {what}{name}{nearest(name, known) or '; --help lists them'}"


def _parameters(path: str) -> list[str]:
    module, _, name = path.rpartition(".")
    return list(inspect.signature(getattr(importlib.import_module(module), name)).parameters)

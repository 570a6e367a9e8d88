"""Rewrite the catalogue from the docstrings (for contributors)."""

import ast
import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

from lightning_vision import catalogue
from lightning_vision.commands._arguments import Parser

WINGS = ("lightning_vision.callbacks", "lightning_vision.datamodules", "lightning_vision")
# Machinery, not offers: what stands here is imported by its full path.
INNER = {"base", "commands", "export", "hooks", "inspection"}


def main(argv: list[str]) -> list[dict[str, str]]:
    """Write `catalogue.json`, or with `--check` only compare it.

    Args:
        argv: Nothing, or `--check`.

    Raises:
        ValueError: the file is out of date (`--check`), two public things share a name, or one lacks a docstring.
    """
    parser = Parser("lightning_vision catalogue", description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail when the file is out of date, write nothing")
    options = parser.parse_args(argv)
    found = sorted(
        (entry for wing in WINGS for entry in _public(wing)), key=lambda entry: (entry["kind"], entry["name"])
    )
    names = [entry["name"] for entry in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"public names must be unique, these are not: {', '.join(twice)}")
    text = json.dumps(found, indent=1) + "\n"
    if options.check and text != catalogue.FILE.read_text(encoding="utf-8"):
        raise ValueError("catalogue.json is out of date; run `lightning_vision catalogue`")
    if not options.check:
        catalogue.FILE.write_text(text, encoding="utf-8")
    return found


def _public(wing: str) -> list[dict[str, str]]:
    root = Path(importlib.import_module(wing).__path__[0])
    found = []
    for file in sorted(root.rglob("*.py")):
        inside = file.relative_to(root).with_suffix("").parts
        top_level = wing == "lightning_vision" and len(inside) == 1
        if top_level or inside[0] in INNER or file.stem.startswith("_"):
            continue
        path = ".".join([wing, *inside])
        found += [_entry(path, name) for name in _all(file)]
    return found


def _all(file: Path) -> list[str]:
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def _entry(module: str, name: str) -> dict[str, str]:
    thing = getattr(importlib.import_module(module), name)
    doc = inspect.getdoc(thing) if callable(thing) else ""
    if callable(thing) and (not doc or (isinstance(thing, type) and not thing.__dict__.get("__doc__"))):
        raise ValueError(f"{module}.{name} is public and has no docstring")
    reference = re.search(r"^References?:\s*(.+?)(?:\n\s*\n|\n\w|\Z)", doc or "", re.DOTALL | re.MULTILINE)
    return {
        "name": name,
        "kind": _kind(thing, module),
        "path": f"{module}.{name}",
        "summary": (doc or "").partition("\n")[0].rstrip("."),
        "paper": " ".join(reference[1].split()) if reference else "",
    }


def _kind(thing: Any, module: str) -> str:
    from lightning.pytorch import Callback, LightningDataModule, LightningModule
    from timm.models import is_model

    from lightning_vision.datamodules.augmentation import Augmentation
    from lightning_vision.datamodules.detection import BoxAugmentation

    bases: dict[str, type | tuple[type, ...]] = {
        "task": LightningModule,
        "callback": Callback,
        "datamodule": LightningDataModule,
        "augmentation": (Augmentation, BoxAugmentation),
    }
    for kind, base in bases.items():
        if isinstance(thing, type) and issubclass(thing, base) and not inspect.isabstract(thing):
            return kind
    return (
        "backbone" if inspect.isfunction(thing) and thing.__module__ == module and is_model(thing.__name__) else "part"
    )

"""Hyper-parameters as plain data: callables and modules become `{"class_path", "init_args"}` and are rebuilt from it.

A checkpoint that holds only plain data loads with `weights_only=True`. A class named in a file is looked up among what
is already imported, or in the libraries of `TRUSTED`, and its base class is checked before it is called, so that
reading a checkpoint never runs code that came with it.
"""

import importlib
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["TRUSTED", "describe", "is_description", "plain_arguments", "rebuild", "resolve_class"]

TRUSTED = ("lightning", "lightning_vision", "timm", "torch")


def describe(value: Any) -> Any:
    """`value` as plain data, nested values included.

    Classes become `{"class_path"}`; `functools.partial` of a class, also as jsonargparse makes it for an
    `OptimizerCallable`, becomes `{"class_path", "init_args"}`; an instance of a dataclass becomes a mapping of its
    fields.

    Raises:
        TypeError: data cannot express `value`: a function, a lambda, a module or another object.
    """
    if value is None or type(value) in (bool, int, float, str) or isinstance(value, Tensor):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {describe(key): describe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [describe(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, type):
        return {"class_path": _import_path(value)}
    if is_dataclass(value):
        return {field.name: describe(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, partial):
        # jsonargparse puts the class behind an instantiator of its own: partial(instantiate, ..., cls, **init_args).
        parsed = bool(value.args) and str(getattr(value.func, "__module__", "")).startswith("jsonargparse.")
        wrapped = value.args[-1] if parsed else value.func
        if isinstance(wrapped, type) and (parsed or not value.args):
            return {"class_path": _import_path(wrapped), "init_args": describe(value.keywords)}
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        return describe(value.item())
    raise TypeError(f"{value!r} is no plain data")


def is_description(value: Any) -> bool:
    """Whether `value` is a mapping that names a class."""
    return isinstance(value, Mapping) and "class_path" in value


def plain_arguments(arguments: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Split constructor arguments into plain data and what data cannot express.

    Args:
        arguments: Name and value of each argument.
        config: What a command line said about the arguments; it describes modules that the parser built.

    Returns:
        The plain arguments, and name and kind of those left out, for example `{"optimizer": "function"}`.
    """
    plain: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for name, value in arguments.items():
        said = config.get(name)
        try:
            plain[name] = describe(value)
        except TypeError:
            if isinstance(said, Mapping) and str(said.get("class_path")).rpartition(".")[2] == type(value).__name__:
                plain[name] = describe(said)
            else:
                left_out[name] = type(value).__name__
    return plain, left_out


def rebuild(value: Any, *bases: type) -> Any:
    """The callable that `value` describes: a partial of a subclass of `bases`. Other values are returned as they are.

    An argument that is described too becomes a module where the constructor is annotated with one, else a partial.

    Raises:
        ValueError: the class is not imported, or of another kind.
    """
    if not is_description(value):
        return value
    cls = resolve_class(value["class_path"], *bases)
    arguments = {**(value.get("init_args") or {}), **(value.get("dict_kwargs") or {})}
    nested = {name: rebuild(item, nn.Module, Optimizer, LRScheduler) for name, item in arguments.items()}
    for name, item in arguments.items():
        if is_description(item) and _takes_module(cls, name):
            nested[name] = nested[name]()
    return partial(cls, **nested)


def resolve_class(class_path: str, *bases: type) -> type:
    """The subclass of `bases` called `class_path`, found without importing anything outside `TRUSTED`.

    Raises:
        ValueError: the class is not imported, or is no subclass of `bases`.
    """
    module, _, name = str(class_path).rpartition(".")
    if module not in sys.modules and module.partition(".")[0] in TRUSTED:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ValueError(f"{class_path} cannot be imported: {error}") from error
    found = getattr(sys.modules.get(module), name, None)
    wanted = " or ".join(base.__name__ for base in bases)
    if found is None:
        raise ValueError(f"{class_path} is not imported; import the module that defines this {wanted}, then load again")
    if not (isinstance(found, type) and issubclass(found, bases)):
        raise ValueError(f"{class_path} was refused and not called: it is no subclass of {wanted}")
    return found


def _takes_module(cls: type, name: str) -> bool:
    """Whether the constructor's parameter `name`, its own or of a base it hands over to, is annotated as a module."""
    for base in cls.__mro__:
        constructor = vars(base).get("__init__")
        if constructor is None or name not in getattr(constructor, "__annotations__", {}):
            continue
        try:
            annotation = get_type_hints(constructor)[name]
        except NameError:  # a name that is imported for type checkers only
            return False
        kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
        return any(isinstance(kind, type) and issubclass(kind, nn.Module) for kind in kinds)
    return False


def _import_path(cls: type) -> str:
    """The shortest dotted path that leads to `cls`."""
    parts = cls.__module__.split(".")
    for length in range(1, len(parts) + 1):
        module = ".".join(parts[:length])
        if getattr(sys.modules.get(module), cls.__qualname__, None) is cls:
            return f"{module}.{cls.__qualname__}"
    raise TypeError(f"{cls!r} cannot be imported by its name")

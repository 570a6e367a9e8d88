"""How words and configs become a parser's input: named callbacks, short class names, own defaults."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jsonargparse
from jsonargparse import Namespace

from lightning_vision.catalogue import find

__all__ = ["callback_names", "import_named", "own_defaults", "spell_out"]


def callback_names(args: list[str], configs: list[dict[str, Any]]) -> list[str]:
    """Names of the callback entries that configs (`callbacks: {NAME: ...}`) and flags (`--callbacks.NAME`) speak of."""
    flags = [
        arg.removeprefix("--callbacks.").partition("=")[0].partition(".")[0] for arg in args if "--callbacks." in arg
    ]
    return list(dict.fromkeys([name for config in configs for name in config.get("callbacks") or {}] + flags))


def spell_out(args: list[str], options: Callable[..., Any]) -> list[str]:
    """`args` with `=true` at the switches of a subcommand, `--overwrite`, which the parser wants to have a value."""
    parameters = inspect.signature(options).parameters.values()
    switches = {f"--{parameter.name}" for parameter in parameters if parameter.annotation is bool}
    alone = [following.startswith("-") for following in [*args[1:], "-"]]
    return [f"{arg}=true" if arg in switches and last else arg for arg, last in zip(args, alone, strict=True)]


def import_named(value: Any) -> None:
    """Import every catalogue class that `value` (arguments and configs, nested) names, to give it its short name."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            import_named(item)
    elif isinstance(value, str) and (entry := find(value.rpartition("=")[2])):
        entry.load()


@contextmanager
def own_defaults() -> Iterator[None]:
    """While parsing, a class that replaces another starts from its own defaults.

    jsonargparse keeps every argument that both classes accept, so `--model.optimizer SGD` would train with the weight
    decay and learning rate that the config chose for AdamW. It offers no switch, hence this one private touch.
    """
    hints: Any = jsonargparse._typehints
    kept = hints.discard_init_args_on_class_path_change

    def discard(parser_or_action: Any, previous: Any, value: Any) -> None:
        if previous and "init_args" in previous and previous["class_path"] != value["class_path"]:
            previous["init_args"] = Namespace()

    hints.discard_init_args_on_class_path_change = discard
    try:
        yield
    finally:
        hints.discard_init_args_on_class_path_change = kept

"""How words and configs become a parser's input: named callbacks, short class names, own defaults."""

import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from typing import Any

import jsonargparse
import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningModule

from lightning_vision.base.hyperparameters import resolve_class
from lightning_vision.catalogue import find

__all__ = ["callback_names", "drop_superseded", "import_named", "own_defaults", "spell_out"]


def callback_names(args: list[str], configs: list[dict[str, Any]]) -> list[str]:
    """Names of the callback entries that configs (`callbacks: {NAME: ...}`) and flags (`--callbacks.NAME`) speak of.

    Raises:
        ValueError: a config lists its callbacks instead of naming them.
    """
    flags = [arg.removeprefix("--callbacks.") for arg in args if arg.startswith("--callbacks.")]
    entries: dict[str, Any] = {}
    for config in configs:
        listed = config.get("callbacks") or {}
        if not isinstance(listed, dict):
            raise ValueError("`callbacks` must map names to entries, as in `callbacks: {sam: {class_path: SAM}}`")
        entries |= listed
    return list(dict.fromkeys([*entries, *(flag.partition("=")[0].partition(".")[0] for flag in flags)]))


def drop_superseded(model: Namespace) -> None:
    """Set arguments of a configured model aside that its checkpoint makes idle: weights to fetch or to read."""
    kind = resolve_class(model.class_path, LightningModule)
    given = model.get("init_args") or Namespace()
    idle = {name: value for name, value in getattr(kind, "superseded", {}).items() if name in given}
    given.update(Namespace(**idle))


def spell_out(args: list[str], options: Callable[..., Any]) -> list[str]:
    """`args` as the parser wants them.

    Words before the first flag, as the folder in `soup runs`, are what the subcommand cannot do without, in the order
    of its parameters; the last takes all that are left if it may be several. Its switches, as `--overwrite`, get a
    value, and an option that may be several and is given again, as `--teacher a.ckpt --teacher b.ckpt`, a list.

    Raises:
        ValueError: there are more words than those parameters take.
    """
    parameters = inspect.signature(options).parameters.values()
    missing = [it for it in parameters if it.default is it.empty][1:]
    needed = [it.name for it in missing]
    words = list(takewhile(lambda arg: not arg.startswith("-"), args)) if needed else []
    if words:
        named = [[f"--{name}", word] for name, word in zip(needed[:-1], words, strict=False)]
        rest = words[len(needed) - 1 :]
        if len(rest) > 1 and "list" not in str(missing[-1].annotation):
            raise ValueError(
                f"{' '.join(rest[1:])}: there are more words than {' '.join(needed)}; leave out what is too much, or "
                "put a name such as --config in front of it"
            )
        if rest:
            named.append([f"--{needed[-1]}", rest[0] if len(rest) == 1 else json.dumps(rest)])
        # Last, for what a config says of them gives way to what was typed.
        args = [*args[len(words) :], *(it for pair in named for it in pair)]
    for it in parameters:
        if "list" in str(it.annotation):
            args = _gathered(args, f"--{it.name}")
    switches = {f"--{parameter.name}" for parameter in parameters if parameter.annotation is bool}
    following = [*args[1:], "--"]
    return [
        f"{arg}=true" if arg in switches and after.startswith("-") else arg
        for arg, after in zip(args, following, strict=False)
    ]


def _gathered(args: list[str], flag: str) -> list[str]:
    """`args` with the values of a flag that is given more than once, as `FLAG VALUE` or `FLAG=VALUE`, in one list."""
    values, others, words = [], [], iter(args)
    for word in words:
        name, equals, value = word.partition("=")
        if name == flag:
            values.append(value if equals else next(words, ""))
        else:
            others.append(word)
    return [*others, flag, json.dumps(values)] if len(values) > 1 and all(values) else args


def import_named(value: Any) -> None:
    """Import every catalogue class that `value` (arguments and configs, nested) names, to give it its short name."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            import_named(item)
    elif isinstance(value, str):
        word = value.partition("=")[2] if value.startswith("--") else value
        if entry := find(word):
            entry.load()
        elif word.startswith(("{", "[")):
            with suppress(yaml.YAMLError):  # the parser will say what is wrong with it
                import_named(yaml.safe_load(word))


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

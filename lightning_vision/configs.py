"""The shipped configs: where they lie and how `--config NAME` finds them. Needs no torch."""

from pathlib import Path
from typing import Any

import yaml

from lightning_vision.catalogue import find, nearest

__all__ = ["built", "config_paths", "find_config", "read_config", "shipped"]


def shipped() -> dict[str, Path]:
    """Name (`classification/digits`) and path of every shipped config."""
    import lightning_vision.cli_configs

    root = Path(lightning_vision.cli_configs.__path__[0])
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob("*.yaml"))}


def find_config(name: str) -> Path:
    """The file that `--config name` means: a path, else a shipped config's name with or without `.yaml`.

    Raises:
        FileNotFoundError: neither exists; the message names the nearest shipped configs.
    """
    if Path(name).is_file():
        return Path(name)
    known = shipped()
    short = name.removesuffix(".yaml").removeprefix("cli_configs/")
    if short in known:
        return known[short]
    hint = nearest(short, known) or "; `lightning_vision list configs` shows the shipped ones"
    raise FileNotFoundError(f"--config {name}: no such file and no shipped config of that name{hint}")


def config_paths(args: list[str]) -> tuple[list[str], list[Path]]:
    """`args` with every `--config` value replaced by the file it means, and these files."""
    resolved, files = [], []
    previous = ""
    for arg in args:
        flag, equals, value = arg.partition("=")
        if previous in ("--config", "-c"):
            files.append(find_config(arg))
            arg = str(files[-1])
        elif flag == "--config" and equals:
            files.append(find_config(value))
            arg = f"--config={files[-1]}"
        resolved.append(arg)
        previous = arg
    return resolved, files


def read_config(path: Path) -> dict[str, Any]:
    """The mapping in a config file.

    Raises:
        ValueError: the file is no YAML, or no mapping of keys to values.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"--config {path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise ValueError(f"--config {path}: holds {type(content).__name__}, expected a mapping of keys to values")
    return content


def built(value: Any) -> Any:
    """`value` with the object in the place of each entry `{class_path, init_args}` of a class in the catalogue."""
    if isinstance(value, list):
        return [built(item) for item in value]
    if not isinstance(value, dict):
        return value
    settings = {key: built(item) for key, item in value.items()}
    entry = find(str(settings.get("class_path")))
    return settings if entry is None else entry.load()(**settings.get("init_args", {}))

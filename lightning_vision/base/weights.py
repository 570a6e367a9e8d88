"""Weights and checkpoints from files, read without running code that the files may carry."""

import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .hyperparameters import resolve_class
from .param_groups import classifier_names

__all__ = ["load_checkpoint", "load_weights", "mismatch", "module_from_checkpoint", "read_weights"]

CONTAINERS = ("state_dict", "model_state_dict", "model", "module", "network", "backbone")
WRAPPERS = {"network", "module", "model", "backbone", "encoder", "_orig_mod", "_forward_module"}
# Share of a network's tensors that a file must hold, and of the file's that must be used, to be the same architecture.
SAME = 0.9


def load_checkpoint(path: str | Path | IO[bytes], weights_only: bool = True) -> dict[str, Any]:
    """The content of a Lightning checkpoint, tensors in host memory.

    Args:
        path: A file's path, or a file opened for reading bytes (it is rewound).
        weights_only: Refuse everything but tensors and plain data; turn it off only for files of your own.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, holds code, or is no Lightning checkpoint.
    """
    content = _read(path, "checkpoint", weights_only)
    if not isinstance(content, dict) or not {"state_dict", "pytorch-lightning_version"} <= content.keys():
        raise ValueError(f"{_named(path)} is no Lightning checkpoint; a file of weights alone goes to `weights`")
    return content


def module_from_checkpoint(path: str | Path, **overrides: Any) -> LightningModule:
    """The module that a checkpoint was made from, of the class that the checkpoint names.

    Args:
        path: Checkpoint of a module of this package, or of a subclass that is already imported.
        **overrides: Constructor arguments over those saved, or in place of those that could not be saved.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no such checkpoint, names a class that is not allowed, or needs an argument again.
    """
    class_path = load_checkpoint(path).get("class_path")
    if class_path is None:
        raise ValueError(
            f"{path} does not name its LightningModule; add --model CLASS, or call load_from_checkpoint of it"
        )
    cls: Any = resolve_class(class_path, LightningModule)
    # Modules that are not of this package too: no `_instantiator` from the file, which imports what the file names.
    safe = {**overrides, "_instantiator": None}
    module: LightningModule = cls.load_from_checkpoint(path, map_location="cpu", weights_only=True, **safe)
    return module


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name from a safetensors file, a torch file or a checkpoint, taken out of known containers.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, holds code, or holds no tensors by name.
    """
    if Path(path).suffix == ".safetensors":
        if not Path(path).is_file():
            raise FileNotFoundError(f"no weights at {path}")
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or no safetensors file ({error})") from error
    content: Any = _read(path, "weights")
    while isinstance(content, Mapping):
        tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
        content = next((content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)), None)
    raise ValueError(f"{path} holds no weights: no tensors by name, alone or under {', '.join(CONTAINERS)}")


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Copy a file's weights into `network`; what does not match is reported in a warning.

    Prefixes of wrappers (`network.`, `module.`, `model.`, `backbone.`) are stripped. A classifier of another size is
    left as it is. Names in the file that begin as one of `network.left_out` are none that the network misses.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, or is of another architecture.
    """
    found, own = read_weights(path), network.state_dict()
    prefixes = {""} | {prefix for key in found for prefix in _wrapper_prefixes(key)}
    prefix = max(sorted(prefixes), key=lambda prefix: sum(f"{prefix}{name}" in found for name in own))
    cut = tuple(f"{prefix}{name}" for name in getattr(network, "left_out", ()))
    found = {key: value for key, value in found.items() if not key.startswith(cut or ("\0",))}
    file = {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}
    head = tuple(name for name in own if name.startswith(classifier_names(network) or ("\0",)))
    other_head = [name for name in head if name in file and file[name].shape != own[name].shape]
    for name in head if other_head else ():
        file.pop(name, None)
    missing, unexpected, shapes = _difference(own, file)
    body = set(own) - set(head)
    modules = {name.partition(".")[0] for name in own}
    # Projection heads of pre-training stand beside the network's own modules and say nothing about the architecture.
    foreign = [name for name in unexpected if name.partition(".")[0] in modules]
    unexpected += [key for key in found if not key.startswith(prefix)]
    matched = len(body & set(file))
    if shapes or not matched or matched < SAME * len(body) or len(foreign) > (1 - SAME) * len(file):
        reasons = _sentence(missing, unexpected, shapes)
        raise ValueError(f"{path} holds weights of another architecture than {type(network).__name__}: {reasons}")
    network.load_state_dict({name: value for name, value in file.items() if name in own}, strict=False)
    missing = [name for name in missing if name not in other_head]
    if other_head:
        rank_zero_warn(f"{path}: the classifier ({', '.join(other_head)}) has another size and starts untrained")
    if missing or unexpected:
        rank_zero_warn(f"{path}: {matched} tensors below the classifier match; {_sentence(missing, unexpected, [])}")


def mismatch(own: Mapping[str, Tensor], found: Mapping[str, Any]) -> str:
    """How the state dict `found` differs from `own`, as part of a sentence; empty where all names and shapes agree."""
    missing, unexpected, shapes = _difference(own, found)
    return _sentence(missing, unexpected, shapes)


def _difference(own: Mapping[str, Tensor], found: Mapping[str, Any]) -> tuple[list[str], list[str], list[str]]:
    """Names that `found` lacks, names that only `found` has, and names with another shape."""
    shapes = [name for name in own if name in found and _shape(own[name]) != _shape(found[name])]
    return [name for name in own if name not in found], [name for name in found if name not in own], shapes


def _sentence(missing: list[str], unexpected: list[str], shapes: list[str]) -> str:
    parts = [(missing, "missing"), (unexpected, "not in the network"), (shapes, "of another shape")]
    said = [
        (len(names), what, ", ".join([*names[:3], *(["..."] if names[3:] else [])])) for names, what in parts if names
    ]
    return ", ".join(f"{count} {what} ({first})" for count, what, first in said)


def _shape(value: Any) -> Any:
    return getattr(value, "shape", None)


def _wrapper_prefixes(key: str) -> list[str]:
    words = key.split(".")
    depth = next((i for i, word in enumerate(words) if word not in WRAPPERS), len(words))
    return [".".join(words[:i]) + "." for i in range(1, depth + 1)]


def _named(path: str | Path | IO[bytes]) -> str:
    return str(path) if isinstance(path, (str, Path)) else str(getattr(path, "name", "the open file"))


def _read(path: str | Path | IO[bytes], what: str, weights_only: bool = True) -> Any:
    if isinstance(path, (str, Path)):
        if not Path(path).is_file():
            raise FileNotFoundError(f"no {what} at {path}")
        source: Any = str(path)
    else:
        source = path
    try:
        # Only the zip format can be mapped; a mapped file costs nothing for the tensors that are not used.
        mmap = isinstance(source, str) and zipfile.is_zipfile(source)
        with warnings.catch_warnings():
            # torch warns of unusual pickles before it refuses them; the refusal says more.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            content = torch.load(source, map_location="cpu", weights_only=weights_only, mmap=mmap)
    except Exception as error:
        if isinstance(error, pickle.UnpicklingError) and (code := _code_in(source, str(error))):
            refusal = f"{_named(path)} was refused: reading it would run code from the file ({code})"
            raise ValueError(refusal) from error
        raise ValueError(f"{_named(path)} is damaged or no torch file, so no {what} can be read from it") from error
    if not isinstance(source, str):
        source.seek(0)
    return content


def _code_in(source: Any, message: str) -> str:
    """What a refused pickle wanted to call, empty where the file is no pickle at all."""
    if named := re.search(r"GLOBAL (\S+)", message):
        return named[1]
    data = Path(source).read_bytes() if isinstance(source, str) else (source.seek(0), source.read())[1]
    try:
        strings = [str(arg) for _, arg, _ in pickletools.genops(data) if isinstance(arg, str)]
    except Exception:
        return ""
    return ".".join(strings[:2]) or "a pickled object"

"""A LightningModule whose checkpoints hold plain data and tell what they are."""

import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import IO, Any, Self

from lightning.pytorch import LightningModule
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters

from .hyperparameters import plain_arguments
from .weights import load_checkpoint, mismatch

__all__ = ["PlainCheckpoints"]


class PlainCheckpoints(LightningModule):
    """Checkpoints load with `weights_only=True`, however the module was made, and name their class."""

    # Arguments that only matter before training, with the value that checkpoints store in their place.
    superseded: Mapping[str, Any] = {}
    _left_out: Mapping[str, str] = {}

    def save_hyperparameters(
        self, *args: Any, ignore: Any = None, frame: FrameType | None = None, logger: bool = True
    ) -> None:
        """Store the constructor's arguments as plain data; those that data cannot express are left out.

        Takes the place of Lightning's method, which stores objects and, under the command, the command's text.
        """
        caller = frame or sys._getframe(1)
        arguments = _constructor_arguments(self, caller)
        if args:
            arguments = {name: arguments[name] for name in args} if isinstance(args[0], str) else dict(args[0])
        # Private: the only description of modules that the command's parser has built.
        plain, left_out = plain_arguments(arguments, _given_hyperparameters.get() or {})
        self._left_out = {name: kind for name, kind in self._left_out.items() if name not in plain} | left_out
        super().save_hyperparameters(plain, ignore=ignore, frame=caller, logger=logger)

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path | IO[bytes],
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        **kwargs: Any,
    ) -> Self:
        """Lightning's method, for files that need no trust.

        Args:
            checkpoint_path: Path, or a file opened for reading bytes.
            map_location: Where the module goes; None keeps the device it was saved on.
            hparams_file: YAML file with constructor arguments over those saved.
            strict: Whether names of weights must match; None asks the module.
            weights_only: Refuse files that hold more than tensors and plain data.
            **kwargs: Constructor arguments over those saved, or in place of those that could not be saved.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no checkpoint of this class, or an argument must be passed again.
        """
        content = load_checkpoint(checkpoint_path, weights_only is not False)
        left_out = content.get("left_out", {})
        known = {*left_out, *content.get(cls.CHECKPOINT_HYPER_PARAMS_KEY, {}), *kwargs}
        if not hparams_file and (unknown := [name for name in _required(cls) if name not in known]):
            maker = content.get("class_path", "a class that it does not name")
            raise ValueError(f"the checkpoint was made by {maker}, so {cls.__name__} misses {', '.join(unknown)}")
        if again := [name for name in left_out if name not in kwargs]:
            what = " and ".join(f"{name} (a {left_out[name]})" for name in again)
            call = f"load_from_checkpoint(path, {', '.join(f'{name}=...' for name in again)})"
            raise ValueError(f"the checkpoint could not store {what}; pass it again: {call}")
        # A file that names an `_instantiator` would have jsonargparse import every class that the file names.
        safe = {**kwargs, "_instantiator": None}
        return super().load_from_checkpoint(
            checkpoint_path, map_location, hparams_file, strict, weights_only is not False, **safe
        )

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Copy weights into the module.

        Raises:
            ValueError: names or shapes are those of another architecture.
        """
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            problem = mismatch(self.state_dict(), state_dict) or str(error)
            name = type(self).__name__
            raise ValueError(f"the weights are of another architecture than this {name}: {problem}") from error

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["class_path"] = f"{type(self).__module__}.{type(self).__qualname__}"
        checkpoint["left_out"] = dict(self._left_out)
        saved = checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {})
        saved.update({name: value for name, value in self.superseded.items() if name in saved})


def _constructor_arguments(module: LightningModule, frame: FrameType | None) -> dict[str, Any]:
    """What the most derived constructor of `module` was called with; `frame` is that of one of its constructors."""
    arguments: dict[str, Any] = {}
    while frame and frame.f_code.co_name == "__init__" and frame.f_locals[frame.f_code.co_varnames[0]] is module:
        names, _, keywords, values = inspect.getargvalues(frame)
        arguments = {name: values[name] for name in names[1:]} | (values[keywords] if keywords else {})
        frame = frame.f_back
    return arguments


def _required(cls: type) -> list[str]:
    """Arguments of the constructor without default."""
    parameters = inspect.signature(cls).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [item.name for item in parameters if item.kind in named and item.default is item.empty]

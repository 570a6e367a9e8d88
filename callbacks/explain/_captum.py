"""Attributions of captum by name: found, checked against what they take, and bound to a model."""

import importlib
import importlib.util
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_vision.catalogue import nearest

__all__ = ["Recipe", "read_recipe"]

# What a constructor of captum calls the model, or the attribution that it wraps.
SUBJECTS = ("forward_func", "model", "attribution_method")
# Not among the arguments: they come with the images.
OURS = ("self", *SUBJECTS, "layer", "inputs", "target", "additional_forward_args")


@dataclass(frozen=True)
class Recipe:
    """An attribution as settings describe it, not yet bound to a model.

    Args:
        kind: Class of the attribution.
        init_args: Of its constructor, without model and layer.
        arguments: Of its `attribute`, without images and class.
        inner: The attribution that it wraps, whose arguments are among `arguments`.
    """

    kind: type[Any]
    init_args: Mapping[str, Any]
    arguments: Mapping[str, Any]
    inner: "Recipe | None" = None

    @property
    def core(self) -> type[Any]:
        """The class that computes: its own, or that of what it wraps."""
        return self.kind if self.inner is None else self.inner.core

    @property
    def at_layer(self) -> bool:
        """Whether a layer takes part."""
        return "layer" in _parameters(self.core.__init__)

    @property
    def of_class(self) -> bool:
        """Whether it says something of a class, not of the images alone."""
        return "target" in _parameters(self.core.attribute)

    @property
    def of_layer(self) -> bool:
        """Whether it says something of what a layer puts out, not of the images."""
        from captum.attr import LayerAttribution

        return issubclass(self.core, LayerAttribution)

    def bound(self, model: nn.Module, layer: nn.Module | None) -> Any:
        """The attribution of a model, at a layer if it needs one."""
        names = _parameters(self.kind.__init__)
        subject = next(name for name in names if name in SUBJECTS)
        given: dict[str, Any] = {subject: model if self.inner is None else self.inner.bound(model, layer)}
        if "layer" in names:
            given["layer"] = layer
        return self.kind(**given, **self.init_args)

    def given(self, images: Tensor, class_index: Tensor) -> dict[str, Any]:
        """What `attribute` is called with beside the images `(B, C, H, W)`, for classes `(B,)`."""
        taken = _parameters(self.core.attribute)
        given = dict(self.arguments)
        if "target" in taken:
            given["target"] = class_index
        if "baselines" in taken and taken["baselines"].default is inspect.Parameter.empty:
            # Drawn from several images, of which captum wants two at least.
            value = given.get("baselines", 0)
            if isinstance(value, (int, float)):
                given["baselines"] = torch.full_like(images[:1], value).repeat(2, 1, 1, 1)
        if isinstance(given.get("feature_mask"), int):
            given["feature_mask"] = _squares(images, given["feature_mask"])
        return given


def read_recipe(
    owner: str, attribution: str, init_args: Mapping[str, Any] | None, arguments: Mapping[str, Any] | None
) -> Recipe:
    """Find an attribution and check what it is given; lists become tuples, as captum wants them.

    Args:
        owner: Who asks, for the errors.
        attribution: Name in `captum.attr`, or the dotted path of a class like those.
        init_args: Of its constructor; `attribution_method`, of one that wraps another, is a name, or `class_path` with
            `init_args`.
        arguments: Of its `attribute`, those of a wrapped one among them.

    Raises:
        ModuleNotFoundError: captum is not installed.
        ValueError: there is no such attribution of images, or it does not take an argument, or lacks one.
    """
    if importlib.util.find_spec("captum") is None:
        raise ModuleNotFoundError(f'{owner} needs captum; pip install "lightning_vision[explain]"')
    recipe = _constructed(owner, attribution, init_args or {})
    taken: dict[str, inspect.Parameter] = {}
    part: Recipe | None = recipe
    while part is not None:
        taken |= _parameters(part.kind.attribute)
        part = part.inner
    _check(owner, f"{recipe.kind.__name__}.attribute", "arguments", arguments or {}, taken)
    squares = (arguments or {}).get("feature_mask")
    if isinstance(squares, int) and (isinstance(squares, bool) or squares < 1):
        raise ValueError(f"{owner}: feature_mask is {squares!r}; give the side of its squares, at least 1 pixel.")
    return replace(recipe, arguments=_as_tuples(arguments or {}))


def _constructed(owner: str, attribution: str, init_args: Mapping[str, Any]) -> Recipe:
    kind = _found(owner, attribution)
    names, given, inner = _parameters(kind.__init__), _as_tuples(init_args), None
    if "attribution_method" in names:
        wrapped = given.pop("attribution_method", None)
        wrapped = {"class_path": wrapped} if isinstance(wrapped, str) else wrapped
        if not isinstance(wrapped, dict) or not isinstance(wrapped.get("class_path"), str):
            raise ValueError(
                f"{owner}: {kind.__name__} wraps another attribution; name it in init_args, as "
                "attribution_method: Saliency."
            )
        inner = _constructed(owner, wrapped["class_path"], wrapped.get("init_args") or {})
    _check(owner, kind.__name__, "init_args", given, names)
    return Recipe(kind, given, {}, inner)


def _found(owner: str, attribution: str) -> type[Any]:
    """The class by its short name or dotted path."""
    path, _, name = attribution.rpartition(".")
    try:
        module = importlib.import_module(path or "captum.attr")
    except ImportError as error:
        raise ValueError(f"{owner}: {path} of attribution={attribution!r} cannot be imported: {error}.") from error
    kind = getattr(module, name, None)
    if _explains_images(kind):
        return kind  # type: ignore[return-value]  # it is a class with `attribute`
    known = [it for it in dir(module) if _explains_images(getattr(module, it))]
    raise ValueError(
        f"{owner}: {module.__name__} has no attribution of images called {name!r}"
        f"{nearest(name, known) or '; those of captum stand at https://captum.ai/api.'}"
    )


def _explains_images(kind: Any) -> bool:
    """Whether it is a class that is made of a model, or of another attribution, and asked about inputs."""
    asked = getattr(kind, "attribute", None) if inspect.isclass(kind) else None
    if not callable(asked):
        return False
    return "inputs" in _parameters(asked) and any(it in SUBJECTS for it in _parameters(kind.__init__))


def _check(
    owner: str, called: str, door: str, given: Mapping[str, Any], taken: Mapping[str, inspect.Parameter]
) -> None:
    """Refuse what is not taken, and what lacks."""
    named = {name: it for name, it in taken.items() if it.kind is not inspect.Parameter.VAR_KEYWORD}
    free = [name for name in named if name not in OURS]
    for name in given:
        if name not in free:
            takes = nearest(name, free) or f"; it takes {', '.join(free) or 'none'}."
            raise ValueError(f"{owner}: {door} of {called} cannot hold {name!r}{takes}")
    needed = [name for name in free if named[name].default is inspect.Parameter.empty and name != "baselines"]
    if missing := [name for name in needed if name not in given]:
        raise ValueError(f"{owner}: {called} needs {' and '.join(missing)}; give it in {door}.")


def _parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def _as_tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _as_tuples(it) for key, it in value.items()}
    return tuple(_as_tuples(it) for it in value) if isinstance(value, list) else value


def _squares(images: Tensor, side: int) -> Tensor:
    """Which feature each pixel belongs to, int64 `(1, C, H, W)`: squares of `side` pixels, over all channels."""
    rows, columns = (torch.arange(size, device=images.device) // side for size in images.shape[-2:])
    mask = rows[:, None] * (int(columns[-1]) + 1) + columns
    return mask.expand(1, *images.shape[1:]).contiguous()

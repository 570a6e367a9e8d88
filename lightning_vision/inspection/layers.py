"""The layers of a network by their dotted names, and what they put out.

Everything here takes any `nn.Module` that is called as `model(images)`, a LightningModule among them.
"""

import difflib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from .at_rest import at_rest
from .maps import Layout, as_maps, layout_of, maps_or_none, tokens_before
from .scores import class_scores

__all__ = ["Reading", "find_layer", "read_layer", "read_maps", "spatial_layer"]

# Their outputs are those of another layer, or mix positions with something else.
PASSED_OVER = (nn.Linear, nn.Identity, nn.Dropout, nn.Dropout2d, nn.Softmax)
COMPILED = "_orig_mod"  # what torch.compile puts into names


@dataclass(frozen=True)
class Reading:
    """What a layer put out for a batch, in the type that it computes in.

    Args:
        activation: Maps `(B, C, h, w)`.
        gradient: Of the images' class scores by them, `(B, C, h, w)`.
        logits: Answer of the model `(B, K)`, of a detector its list of detections.
        class_index: Whose scores they are, int64 `(B,)`.
    """

    activation: Tensor
    gradient: Tensor
    logits: Any
    class_index: Tensor


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """The part of `model` with a dotted name, as `layer4` or `network.blocks.11.norm1`.

    Raises:
        ValueError: there is none; the message gives the nearest names.
    """
    named = _named(model)
    if name in named:
        return named[name]
    if not isinstance(name, str):
        raise ValueError(
            f"a layer is given by its dotted name, as {list(named)[-1]!r}, and not as a {type(name).__name__}."
        )
    close = [path for path in named if path.endswith(f".{name}")][:3] or difflib.get_close_matches(name, named, n=3)
    meant = f"did you mean {' or '.join(close)}?" if close else f"its parts begin {', '.join(list(named)[:3])}."
    raise ValueError(f"{type(model).__name__} has no layer {name!r}; {meant}")


def read_layer(model: nn.Module, images: Tensor, layer: str, class_index: int | Tensor | None = None) -> Reading:
    """Run `model` and read the maps of a layer and the gradient of each image's class score by them.

    Nothing below the layer is differentiated, so frozen parameters do not matter, and what is above it is
    differentiated by the maps alone. Of a layer that runs several times the last run counts.

    Args:
        model: Called as `model(images)`, in eval mode; it is left as it was.
        images: `(B, C, H, W)`.
        layer: Dotted name.
        class_index: Class whose score is taken, one for all or int64 `(B,)`; None is each image's predicted one.

    Raises:
        ValueError: there is no such layer, it has no maps, the answer is no `(B, K)`, or does not depend on the layer.
    """
    with at_rest(model), _listening(model, layer, gradient=True) as kept:
        answer = model(images.detach().clone())
        leaf = _last_tensor(kept, layer)
        activation = _maps(model, leaf, layer, images, answer)
        scores, chosen = class_scores(answer, class_index)
        answer = apply_to_collection(answer, Tensor, Tensor.detach)
        found = torch.autograd.grad(scores.sum(), leaf, allow_unused=True)[0] if scores.requires_grad else None
    if found is None and not isinstance(answer, Tensor):
        found = torch.zeros_like(leaf)  # nothing was detected
    if found is None:
        raise ValueError(
            f"the answer of {type(model).__name__} does not depend on layer {layer!r}, or takes it without gradients "
            "(torch.no_grad, or a checkpoint with use_reentrant=True, in its forward); name another one."
        )
    return Reading(activation, _maps(model, found, layer, images, answer), answer, chosen)


def read_maps(model: nn.Module, images: Tensor, layer: str) -> tuple[Tensor, Any]:
    """Run `model` without gradients and read the maps of a layer, `(B, C, h, w)`, and the answer, whatever it is.

    Args:
        model: Called as `model(images)`, in eval mode; it is left as it was.
        images: `(B, C, H, W)`.
        layer: Dotted name.

    Raises:
        ValueError: there is no such layer, or it has no maps.
    """
    with at_rest(model), torch.no_grad(), _listening(model, layer, gradient=False) as kept:
        answer = model(images.detach().clone())
    return _maps(model, _last_tensor(kept, layer), layer, images, answer), answer


def spatial_layer(model: nn.Module, images: Tensor) -> str:
    """The name of the last layer that still has maps and whose maps reach the answer, which CAM methods look at.

    In a residual network that is the last stage, in a vision transformer with a class token the first normalisation of
    the last block, in a Swin its last normalisation. Found by running the model once, on the first of `images`.

    Raises:
        ValueError: no layer has maps, or the answer is no `(B, K)`.
    """
    layout, size = Layout(tokens_before(model), None), (images.shape[-2], images.shape[-1])
    # Turned round, so that of several names a layer has its first.
    names = {part: name for name, part in reversed(_named(model).items())}
    last: dict[str, Tensor] = {}
    asked: list[Tensor] = []

    def keep(part: nn.Module, _inputs: Any, output: Any) -> Tensor | None:
        last.pop(names[part], None)
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return None
        if maps_or_none(output, size, layout) is None or len(output) != 1:
            return None
        last[names[part]] = wanting = output if output.requires_grad else output.detach().requires_grad_()
        return _passed_on(wanting)

    with at_rest(model), ExitStack() as hooks:
        for part in names:
            if not isinstance(part, PASSED_OVER):
                hooks.callback(part.register_forward_hook(keep).remove)
            if isinstance(part, nn.Linear | nn.Conv2d):
                handle = part.register_forward_pre_hook(lambda _module, inputs: asked.extend(inputs[:1]))
                hooks.callback(handle.remove)
        answer = model(images[:1].detach().clone())
        if isinstance(answer, list):
            raise ValueError(
                f"{type(model).__name__} answers a list, as detectors do, which look at maps of many sizes; name the "
                "one that is wanted with layer=, as 'backbone.body.layer4'."
            )
        scores = [class_scores(answer, None)[0].sum()]
        if asked:
            # What the classifier is given, for fresh classifiers are often zero and then nothing reaches the answer.
            # Weighted unevenly, for the sum of what a layer norm puts out is constant.
            features = asked[-1].flatten()
            scores.append(features @ torch.arange(len(features), device=features.device).cos().to(features))
        ran = list(last.items())
        for score in scores:
            outputs = [output for _, output in ran] if score.requires_grad else []
            gradients = torch.autograd.grad(score, outputs, allow_unused=True, retain_graph=True) if outputs else ()
            for (name, _), gradient in zip(reversed(ran), reversed(gradients), strict=False):
                # Of the class token alone there is a gradient, and none of the image's.
                maps = None if gradient is None else maps_or_none(gradient, size, layout)
                if maps is not None and bool(maps.any()):
                    return name
    raise ValueError(
        f"{type(model).__name__} has no layer whose maps reach its answer, so there is no place in the image to point "
        "at; name one with layer=, or use a method that needs no layer (guided backpropagation, an attribution)."
    )


def _named(model: nn.Module) -> dict[str, nn.Module]:
    """Parts by dotted name, without what torch.compile adds, each by all of its names."""
    paths = model.named_modules(remove_duplicate=False)
    plain = ((".".join(it for it in path.split(".") if it != COMPILED), part) for path, part in paths)
    return {name: part for name, part in plain if name}


@contextmanager
def _listening(model: nn.Module, layer: str, gradient: bool) -> Iterator[list[Any]]:
    """Inside, what a layer puts out is kept, run by run; with `gradient` as leaves that the rest is computed from."""
    kept: list[Any] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> Tensor | None:
        kept.append(output.detach().requires_grad_(gradient) if isinstance(output, Tensor) else output)
        return _passed_on(kept[-1]) if isinstance(output, Tensor) else None

    handle = find_layer(model, layer).register_forward_hook(keep)
    try:
        # It stays until the gradient is there, for a network with checkpoints runs its layers again then.
        yield kept
    finally:
        handle.remove()


def _maps(model: nn.Module, output: Tensor, layer: str, images: Tensor, answer: Any) -> Tensor:
    """What the layer put out for the images, or a gradient by it, as one map for each."""
    size = (images.shape[-2], images.shape[-1])
    if isinstance(answer, list) and output.ndim == 4:
        # A detector resizes its images and pads them, so their proportions say nothing.
        size = (output.shape[-2], output.shape[-1])
    maps = as_maps(output.detach(), size, layout_of(model, find_layer(model, layer)), layer)
    if len(maps) != len(images):
        raise ValueError(
            f"layer {layer!r} puts out {len(maps)} maps for {len(images)} images, as inside windows; name one around "
            "it."
        )
    return maps


def _last_tensor(kept: list[Any], layer: str) -> Tensor:
    if not kept:
        raise ValueError(f"layer {layer!r} did not run when the model was called; name another one.")
    if not isinstance(kept[-1], Tensor):
        raise ValueError(f"layer {layer!r} puts out a {type(kept[-1]).__name__} and no maps; name one inside it.")
    return kept[-1]


def _passed_on(output: Tensor) -> Tensor:
    """What the next layer gets: a copy, for it may write in place; differentiable even if the part forbids it."""
    with torch.set_grad_enabled(output.requires_grad):
        return output.clone()

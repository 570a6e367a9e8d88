"""The layers of a network by their dotted names, and what they put out as maps; neutral ground, for all wings.

Everything here takes any `nn.Module` that is called as `model(images)`, a LightningModule among them.
"""

import difflib
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Reading", "as_maps", "at_rest", "class_scores", "find_layer", "output_of", "read_layer", "spatial_layer"]

# Their outputs are those of another layer, or mix positions with something else.
PASSED_OVER = (nn.Linear, nn.Identity, nn.Dropout, nn.Dropout2d, nn.Softmax)
COMPILED = "_orig_mod."  # what torch.compile puts into names


@dataclass(frozen=True)
class Reading:
    """What a layer put out for a batch.

    Args:
        activation: Maps `(B, C, h, w)`.
        gradient: Of the images' class scores by them, `(B, C, h, w)`; None if it was not asked for.
        logits: Answer of the model `(B, K)`.
        class_index: Whose scores they are, int64 `(B,)`.
    """

    activation: Tensor
    gradient: Tensor | None
    logits: Tensor
    class_index: Tensor


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Inside, `model` is in eval mode, no parameter needs a gradient, autograd works and nothing is compiled anew.

    Gradients are enabled also inside `torch.inference_mode()`, where images have to be cloned. At the end, also by an
    exception, train flags and `requires_grad` are as before; `.grad` is not touched.
    """
    flags = [(part, part.training) for part in model.modules()]
    needy = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if "torch._dynamo" in sys.modules:
            # Hooks do not fire in a module that was compiled before.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            model.eval()
            for parameter in needy:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in needy:
                parameter.requires_grad_(True)
            for part, training in flags:
                part.training = training


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """The part of `model` with a dotted name, as `layer4` or `network.blocks.11.norm1`.

    Raises:
        ValueError: there is none; the message gives the nearest names.
    """
    named = {path.replace(COMPILED, ""): part for path, part in model.named_modules() if path}
    if name in named:
        return named[name]
    close = [path for path in named if path.endswith(f".{name}")][:3] or difflib.get_close_matches(name, named, n=3)
    meant = f"did you mean {' or '.join(close)}?" if close else f"its parts begin {', '.join(list(named)[:3])}."
    raise ValueError(f"{type(model).__name__} has no layer {name!r}; {meant}")


def output_of(model: nn.Module, layer: nn.Module, images: Any) -> tuple[Tensor, Any]:
    """What a layer put out for a batch, of a layer that runs several times the last, and what the model answered.

    Raises:
        ValueError: the layer did not run, or puts out no tensor.
    """
    kept: list[Any] = []
    handle = layer.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    try:
        answer = model(images)
    finally:
        handle.remove()
    return _tensor(kept, model, layer), answer


def read_layer(
    model: nn.Module, images: Any, layer: str, class_index: int | Tensor | None = None, gradient: bool = True
) -> Reading:
    """Run `model` and read the maps of a layer and, if asked, the gradient of each image's class score by them.

    Nothing below the layer is differentiated, so frozen parameters do not matter, and what is above it is
    differentiated by the maps alone.

    Args:
        model: Called as `model(images)`, in eval mode; it is left as it was.
        images: `(B, C, H, W)`, or what else the model takes.
        layer: Dotted name.
        class_index: Class whose score is taken, one for all or int64 `(B,)`; None is each image's predicted one.
        gradient: Whether the gradient is wanted.

    Raises:
        ValueError: there is no such layer, it has no maps, the answer is no `(B, K)`, or does not depend on the layer.
    """
    part = find_layer(model, layer)
    kept: list[Any] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            kept.append(output)
            return None
        leaf = output.detach().requires_grad_(gradient)
        kept.append(leaf)
        # A copy, for the next layer may write in place, which a leaf does not allow.
        return leaf.clone()

    with at_rest(model), torch.set_grad_enabled(gradient):
        images = images.clone() if isinstance(images, Tensor) else images
        handle = part.register_forward_hook(keep)
        try:
            answer = model(images)
        finally:
            handle.remove()
        leaf = _tensor(kept, model, part, layer)
        scores, chosen = class_scores(answer, class_index)
        found = torch.autograd.grad(scores.sum(), leaf, allow_unused=True)[0] if gradient else None
    if gradient and found is None:
        raise ValueError(f"the answer of {type(model).__name__} does not depend on layer {layer!r}; name another one.")
    size = (int(images.shape[-2]), int(images.shape[-1]))
    prefix = _prefix(model)
    maps = [None if it is None else as_maps(it.detach(), size, prefix, layer) for it in (leaf, found)]
    assert maps[0] is not None
    return Reading(maps[0], maps[1], answer.detach(), chosen)


def class_scores(answer: Any, class_index: int | Tensor | None) -> tuple[Tensor, Tensor]:
    """The logit of one class of each image, `(B,)`, and which class it is, int64 `(B,)`.

    Args:
        answer: Logits `(B, K)`.
        class_index: One class for all, int64 `(B,)`, or None for each image's largest logit.

    Raises:
        ValueError: the answer is no `(B, K)`, or a class is outside 0..K-1.
    """
    if not isinstance(answer, Tensor) or answer.ndim != 2:
        got = f"{tuple(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
        raise ValueError(f"the model answered {got} and no logits (B, K), so there is no class to explain.")
    if class_index is None:
        chosen = answer.detach().argmax(1)
    else:
        chosen = torch.as_tensor(class_index, device=answer.device).expand(len(answer)).long()
        if int(chosen.min()) < 0 or int(chosen.max()) >= answer.shape[1]:
            raise ValueError(
                f"class_index is {chosen.unique().tolist()} and the model has classes 0 to {answer.shape[1] - 1}."
            )
    return answer.gather(1, chosen[:, None]).squeeze(1), chosen


def as_maps(output: Tensor, size: tuple[int, int], prefix: int | None, layer: str) -> Tensor:
    """A layer's output as maps `(B, C, h, w)`.

    Args:
        output: `(B, C, h, w)`, `(B, h, w, C)`, or tokens `(B, N, C)` of which the last h w are the image's.
        size: Height and width of the images, pixels, whose proportions the maps have.
        prefix: Tokens before those of the image (class, registers); None finds the smallest number that fits.
        layer: Its name, for the error.

    Raises:
        ValueError: no reading of the shape has the images' proportions.
    """
    maps = _maps_or_none(output, size, prefix)
    if maps is None:
        raise ValueError(
            f"layer {layer!r} puts out {tuple(output.shape)}, which are no maps of images of {size[0]}x{size[1]}; name "
            "one before pooling and flattening."
        )
    return maps


def spatial_layer(model: nn.Module, images: Tensor) -> str:
    """The name of the last layer that still has maps and whose maps reach the answer, which CAM methods look at.

    In a residual network that is the last stage, in a vision transformer with a class token the first normalisation of
    the last block, in a Swin its last normalisation. Found by running the model once, on the first of `images`.

    Raises:
        ValueError: no layer has maps, or the answer is no `(B, K)`.
    """
    size = (int(images.shape[-2]), int(images.shape[-1]))
    found: list[tuple[str, Tensor]] = []
    heads: list[Tensor] = []
    with at_rest(model), ExitStack() as hooks:
        prefix = _prefix(model)

        def keep(name: str, output: Any) -> Any:
            if not isinstance(output, Tensor) or len(output) != 1 or not output.is_floating_point():
                return None
            if _maps_or_none(output, size, prefix) is None:
                return None
            wanting = output if output.requires_grad else output.detach().requires_grad_()
            found.append((name, wanting))
            return wanting.clone()

        for part in model.modules():
            if isinstance(part, nn.Linear):
                handle = part.register_forward_pre_hook(lambda _module, inputs: heads.append(inputs[0]))
                hooks.callback(handle.remove)
        for path, part in model.named_modules():
            if path and not isinstance(part, PASSED_OVER):
                name = path.replace(COMPILED, "")
                handle = part.register_forward_hook(lambda _module, _inputs, output, name=name: keep(name, output))
                hooks.callback(handle.remove)
        answer = model(images[:1].clone())
        score = class_scores(answer, None)[0].sum()
        if heads and heads[-1].requires_grad:
            # What the classifier is given counts, too: fresh classifiers are often zero. Weighted unevenly, for the sum
            # of what a layer norm puts out is constant.
            features = heads[-1].flatten()
            score = score + features @ torch.arange(len(features), device=features.device).cos().to(features)
        outputs = [output for _, output in found]
        gradients = torch.autograd.grad(score, outputs, allow_unused=True) if score.requires_grad else ()
        found = found if score.requires_grad else []
    for (name, _), gradient in reversed(list(zip(found, gradients, strict=True))):
        if gradient is None:
            continue
        maps = _maps_or_none(gradient, size, prefix)
        if maps is not None and bool(maps.any()):
            return name
    raise ValueError(
        f"{type(model).__name__} has no layer whose maps reach its answer, so there is no place in the image to point "
        "at; name one with layer=, or use a method that needs no layer (guided backpropagation, an attribution)."
    )


def _maps_or_none(output: Tensor, size: tuple[int, int], prefix: int | None) -> Tensor | None:
    if output.ndim == 4:
        first, second, third = output.shape[1:]
        if _alike(second, third, size):
            return output
        return output.permute(0, 3, 1, 2) if _alike(first, second, size) else None
    if output.ndim != 3:
        return None
    for before in range(9) if prefix is None else (prefix,):
        count = output.shape[1] - before
        height = round((max(count, 0) * size[0] / size[1]) ** 0.5)
        if height and count % height == 0 and _alike(height, count // height, size):
            return output[:, before:].transpose(1, 2).unflatten(2, (height, count // height))
    return None


def _alike(height: int, width: int, size: tuple[int, int]) -> bool:
    """Whether they have the proportions of `size`, to one cell; one cell alone is no map."""
    return height * width > 1 and abs(height * size[1] - width * size[0]) < max(size)


def _prefix(model: nn.Module) -> int | None:
    """Tokens before the image's, as timm's networks tell."""
    told = [getattr(part, "num_prefix_tokens", None) for part in model.modules()]
    return next((it for it in told if isinstance(it, int)), None)


def _tensor(kept: list[Any], model: nn.Module, layer: nn.Module, name: str | None = None) -> Tensor:
    called = name or type(layer).__name__
    if not kept:
        raise ValueError(f"layer {called!r} did not run when {type(model).__name__} was called; name another one.")
    if not isinstance(kept[-1], Tensor):
        raise ValueError(f"layer {called!r} puts out a {type(kept[-1]).__name__} and no maps; name one inside it.")
    return kept[-1]

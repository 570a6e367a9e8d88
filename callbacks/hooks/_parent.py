"""The parent of a changed network: the same layers, with the tensors that it had before."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ._lent import call_with

__all__ = ["answering_layer", "parents_outputs"]


def parents_outputs(
    model: nn.Module, tensors: Mapping[str, Tensor], images: Tensor, paths: Sequence[str]
) -> dict[str, Tensor]:
    """What submodules put out for images `(B, C, H, W)` with other tensors in the model, in evaluation mode.

    There is no gradient, the model is left as it was, and no random number is drawn. Of a submodule that runs several
    times the last run counts.
    """
    outputs: dict[str, Any] = {}
    with _evaluating(model), ExitStack() as stack, torch.no_grad():
        for path in paths:
            keep = partial(_keep, outputs, path)
            stack.callback(model.get_submodule(path).register_forward_hook(keep).remove)
        call_with(model, tensors, (images,))
    return outputs


def answering_layer(owner: str, model: nn.Module, images: Tensor) -> str:
    """Path of the innermost submodule that puts out the very tensor with which `model(images)` answers.

    Raises:
        ValueError: there is none.
    """
    outputs: dict[str, Any] = {}
    with _evaluating(model), ExitStack() as stack, torch.no_grad():
        for path, part in model.named_modules():
            if path:
                stack.callback(part.register_forward_hook(partial(_keep, outputs, path)).remove)
        answer = model(images)
    # Submodules end before what contains them.
    found = next((path for path, output in outputs.items() if output is answer), None)
    if found is None:
        raise ValueError(
            f"{owner}: {type(model).__name__} answers images with what no submodule of it put out, so there are no "
            "logits to compare with the parent's; let its forward return its last layer's output, or give "
            "logits_weight=0."
        )
    return found


def _keep(outputs: dict[str, Any], path: str, part: nn.Module, inputs: Any, output: Any) -> None:
    outputs[path] = output


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:
            # Hooks do not fire in a module that was compiled before.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        # By hand: `eval()` of a stranger's module may do more, which nobody would undo.
        for part in model.modules():
            stack.callback(setattr, part, "training", part.training)
            part.training = False
        yield

"""A network that is looked at and left as it was."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

__all__ = ["at_rest"]


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Inside, `model` is in eval mode, no parameter needs a gradient, autograd works and nothing is compiled anew.

    Gradients are enabled also inside `torch.inference_mode()`, where images have to be cloned; what the parts of the
    model keep from an inference mode stands as a copy in its place meanwhile. At the end, also by an exception, train
    flags, `requires_grad`, parameters, buffers and torch's random streams are as before; `.grad` is not touched.

    Raises:
        ValueError: the model keeps tensors of an inference mode where they are not found, or has checkpoints in it that
            cannot be looked through.
    """
    flags = [(part, part.training) for part in model.modules()]
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.random.fork_rng(devices=devices))
        if "torch._dynamo" in sys.modules:
            # Hooks do not fire in a module that was compiled before.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        _copy_inference_tensors(model, stack)
        for parameter in [it for it in model.parameters() if it.requires_grad]:
            stack.callback(parameter.requires_grad_, True)
            parameter.requires_grad_(False)
        # By hand: `eval()` of a stranger's module may do more, such as merge weights, which nobody would undo.
        for part, training in flags:
            stack.callback(setattr, part, "training", training)
            part.training = False
        try:
            yield
        except RuntimeError as error:
            sentence = _sentence(type(model).__name__, error)
            if sentence is None:
                raise
            raise ValueError(sentence) from error


def _copy_inference_tensors(model: nn.Module, stack: ExitStack) -> None:
    """Until `stack` ends, copies stand where parts keep tensors of an inference mode, which autograd cannot save."""
    copies: dict[int, Tensor] = {}
    for part in model.modules():
        stores: tuple[dict[str, Any], ...] = (vars(part), part._buffers, part._parameters)
        for kept in stores:
            found = {name: it for name, it in kept.items() if isinstance(it, Tensor)}
            found = {name: it for name, it in found.items() if it.is_inference()}
            for name, it in found.items():
                # Of tied ones there is one copy.
                if id(it) not in copies:
                    copies[id(it)] = nn.Parameter(it.clone()) if isinstance(it, nn.Parameter) else it.clone()
                kept[name] = copies[id(it)]
            stack.callback(kept.update, found)


def _sentence(name: str, error: RuntimeError) -> str | None:
    """What a user is told of an error of autograd, if it is one of those that are known."""
    if "nference tensor" in str(error):
        return (
            f"{name} keeps a tensor that it made in inference mode, which no gradient passes; clone it where forward "
            "takes it, or give the Trainer inference_mode=False."
        )
    if "use_reentrant=True" in str(error):
        return f"{name} has checkpoints through which no single gradient is asked; give them use_reentrant=False."
    if isinstance(error, CheckpointError):
        return (
            f"{name} computes parts anew in backward (torch.utils.checkpoint), which is not possible while its "
            "functions are replaced; switch its checkpoints off while it is explained."
        )
    return None

"""A network that is looked at and left as it was."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

__all__ = ["at_rest"]


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Inside, `model` is in eval mode, no parameter needs a gradient, autograd works and nothing is compiled anew.

    Gradients are enabled also inside `torch.inference_mode()`, where images have to be cloned. At the end, also by an
    exception, train flags, `requires_grad` and torch's random streams are as before; `.grad` is not touched.
    """
    flags = [(part, part.training) for part in model.modules()]
    needy = [parameter for parameter in model.parameters() if parameter.requires_grad]
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.random.fork_rng(devices=devices))
        if "torch._dynamo" in sys.modules:
            # Hooks do not fire in a module that was compiled before.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            # By hand: `eval()` of a stranger's module may do more, such as merge weights, which nobody would undo.
            for part, _ in flags:
                part.training = False
            for parameter in needy:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in needy:
                parameter.requires_grad_(True)
            for part, training in flags:
                part.training = training

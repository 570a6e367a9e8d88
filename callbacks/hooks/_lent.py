"""Calling a network with other tensors in the place of its own."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["call_with"]


def call_with(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    arguments: Sequence[Any],
    named_arguments: Mapping[str, Any] | None = None,
) -> Any:
    """What the module answers with these tensors lent to all that share the ones they stand for; it stays as it was.

    torch's own `functional_call` lends to each name of a layer. One that has two names, because a network uses it
    twice, is then left with what was lent: its parameters are the optimizer's no more. So each layer is named once.

    Args:
        module: Is called.
        tensors: Parameters and buffers by name, one name for each tensor.
        arguments: Of the call.
        named_arguments: Of the call.
    """
    own = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    lent = {id(own[name]): tensor for name, tensor in tensors.items() if name in own}
    places = {
        f"{path}.{name}" if path else name: lent[id(value)]
        for path, part in module.named_modules()
        for name, value in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
        if id(value) in lent
    }
    # Ties are seen to above.
    return functional_call(module, places, tuple(arguments), dict(named_arguments or {}), tie_weights=False)

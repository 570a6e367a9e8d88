"""Parameters that a callback gives to a module: optimizers and DDP see them, files do not.

They hang on the module under a reserved name, so `module.parameters()` has them when optimizers are configured and DDP
wraps. What a module saves and loads are the keys of a plain run: the callback keeps the values in its own state.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["ADDED", "ASIDE", "Added", "is_added", "is_aside"]

# The name on the module below which a callback's parameters hang: `added_LoRA.network-fc.down`.
ADDED = "added_"
# The same for what the module's own forward never calls: `added_aside_Distillation.layer2`.
ASIDE = f"{ADDED}aside_"


def is_added(name: str) -> bool:
    """Whether a tensor of this name in a module was added to it by a callback.

    >>> is_added("network.fc.added_LoRA.network-fc.up"), is_added("network.fc.weight")
    (True, False)
    """
    return any(part.startswith(ADDED) for part in name.split("."))


def is_aside(name: str) -> bool:
    """Whether a tensor of this name is no part of what the module computes: nothing averages, freezes or keeps it.

    >>> is_aside("added_aside_Distillation.hint.weight"), is_aside("network.fc.added_LoRA.network-fc.up")
    (True, False)
    """
    return any(part.startswith(ASIDE) for part in name.split("."))


class Added(nn.Module):
    """Modules by name whose parameters no state dict mentions, neither when it is made nor when it is loaded.

    Args:
        parts: By the path of a layer in the module, what is added for it; dots in the path become dashes.
    """

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for path, part in parts.items():
            self.add_module(path.replace(".", "-"), part)
        self.register_load_state_dict_post_hook(_expect_nothing)

    def hang_on(self, module: nn.Module, owner: str, prefix: str = ADDED) -> None:
        """Make this a part of `module` under a name that tells the callback it belongs to, its state key."""
        module.add_module(f"{prefix}{owner}", self)
        # Several in one order, however their callbacks are listed, for optimizers number parameters.
        for name in sorted(it for it in module._modules if it.startswith(ADDED)):
            module._modules[name] = module._modules.pop(name)

    def take_from(self, module: nn.Module, owner: str, prefix: str = ADDED) -> None:
        """Undo `hang_on`; twice does nothing."""
        module._modules.pop(f"{prefix}{owner}", None)

    def values(self) -> dict[str, Tensor]:
        """Copies of parameters and buffers by name, for the callback's state."""
        return {name: value.detach().clone() for name, value in [*self.named_parameters(), *self.named_buffers()]}

    def state_dict(self, *args: Any, destination: Any = None, **kwargs: Any) -> Any:
        """Nothing: see `values`."""
        return {} if destination is None else destination


def _expect_nothing(added: nn.Module, incompatible_keys: Any) -> None:
    """Nothing is missing in a state dict that lacks them."""
    missing = incompatible_keys.missing_keys
    missing[:] = [name for name in missing if not is_added(name)]

"""The tensors of a module that can be averaged, by the names that its files use."""

from typing import cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from ._added import is_aside

__all__ = ["LiveTensors", "plain_name"]


class LiveTensors:
    """Floating parameters and saved floating buffers of a module, each once, whatever it shares.

    `torch.compile` puts a part into a wrapper, whose `_orig_mod.` is left out of the names. A constant that is not
    finite, such as an attention mask of minus infinities, has no average and is left out; so is what trains beside the
    module.

    Args:
        module: Whose tensors; a parameter must stay the same object for as long as this is used, a buffer need not.
    """

    def __init__(self, module: LightningModule) -> None:
        named = [(name, it) for name, it in module.named_parameters() if not is_aside(name)]
        parameters = {plain_name(name): it for name, it in named if _has_average(it)}
        saved = {id(value) for value in module.state_dict(keep_vars=True).values()}
        buffers = {
            plain_name(f"{prefix}.{key}" if prefix else key): (owner, key, value)
            for prefix, owner in module.named_modules()
            for key, value in owner.named_buffers(recurse=False)
            if id(value) in saved and _has_average(value)
        }
        once = {id(value): name for name, (_, _, value) in reversed(buffers.items())}
        self.buffers = [name for name in buffers if name in once.values()]
        self.names = [*parameters, *self.buffers]
        self._parameters = list(parameters.values())
        # torch's own dictionaries, since asking the module for an attribute takes ten times as long, in every step.
        self._owners = [(owner._buffers, key) for owner, key, _ in map(buffers.__getitem__, self.buffers)]

    def read(self) -> list[Tensor]:
        """The tensors as the module holds them now, in the order of `names`."""
        return [*self._parameters, *self.read_buffers()]

    def read_buffers(self) -> list[Tensor]:
        """The buffers among them, in the order of `buffers`."""
        return [cast(Tensor, owner[key]) for owner, key in self._owners]

    def copies(self) -> dict[str, Tensor]:
        """Copies of the tensors as they are now, by name."""
        return {name: value.detach().clone() for name, value in zip(self.names, self.read(), strict=True)}

    @torch.no_grad()
    def write(self, values: dict[str, Tensor]) -> None:
        """Copy values into the module's tensors, in place; names that the module has not are passed over."""
        pairs = [(it, values[name]) for name, it in zip(self.names, self.read(), strict=True) if name in values]
        if pairs:
            torch._foreach_copy_([it for it, _ in pairs], [value for _, value in pairs])

    def hold(self, values: dict[str, Tensor]) -> bool:
        """Whether the module's tensors equal these, rounded to its types, bit for bit."""
        mine = dict(zip(self.names, self.read(), strict=True))
        return values.keys() <= mine.keys() and all(
            torch.equal(mine[name], value.to(mine[name])) for name, value in values.items()
        )


def plain_name(name: str) -> str:
    """The name that a tensor has when no part is compiled."""
    return name.replace("_orig_mod.", "")


def _has_average(value: Tensor) -> bool:
    continuous = value.is_floating_point() or value.is_complex()
    return continuous and (value.requires_grad or bool(value.isfinite().all()))

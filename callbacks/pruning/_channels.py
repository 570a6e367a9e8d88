"""Channels of a network: where they lie in its layers, how they are zeroed there, and how they are cut out."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["ChannelGroup", "Cut", "Member", "layer_kind", "scratch", "zeroed"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# What a cut changes of a layer beside its tensors.
WIDTHS = ("in_channels", "out_channels", "groups", "in_features", "out_features", "num_features", "num_parameters")


@dataclass(frozen=True, eq=False)
class Member:
    """How a layer takes part in a group.

    Args:
        layer: Dotted name in the model.
        role: `makes` the channels (its rows), `carries` them along (batch norm, depth-wise convolution, PReLU), or
            `reads` them (its columns).
        tensors: Names of its parameters and buffers in the model, each with the dimension along which positions lie.
        position: Along these dimensions, int64 `(N,)`; behind a flattening several belong to one channel.
        channel: The group's channel that each position belongs to, int64 `(N,)`.
    """

    layer: str
    role: Literal["makes", "carries", "reads"]
    tensors: Mapping[str, int]
    position: Tensor
    channel: Tensor

    def positions(self, channels: Iterable[int]) -> list[int]:
        """Where these channels of the group lie in the layer, ascending."""
        wanted = torch.isin(self.channel, torch.tensor(sorted(channels), dtype=torch.int64))
        return sorted(self.position[wanted].tolist())


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels `0 .. size - 1`, any of which can be cut out of all members at once.

    Args:
        name: The first layer that makes them.
        size: How many there are.
        members: All layers that they pass.
    """

    name: str
    size: int
    members: tuple[Member, ...]


@contextmanager
def scratch(model: nn.Module) -> Iterator[None]:
    """Inside, the model has other parameters and statistics, drawn at random, and may be cut.

    At the end, also by an exception, its own tensors, the very same objects, and its widths are back. Random values
    show what initial zeros would hide: a branch scaled by zero says nothing of what is cut in it.
    """
    random, drawn = torch.Generator().manual_seed(0), dict[int, Tensor]()
    with ExitStack() as stack:
        for part in model.modules():
            stack.callback(_restore, part, _kept(part))
            stores: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
            for store in stores:
                for name, own in store.items():
                    if own is None or not own.is_floating_point():
                        continue
                    if store is stores[1] and not name.startswith("running_"):
                        continue
                    if id(own) not in drawn:
                        shape, fan_in = own.shape, own[0].numel() if own.ndim > 1 else 1
                        value = torch.rand(shape, generator=random) + 0.5
                        if own.ndim > 1:
                            value = torch.randn(shape, generator=random) / fan_in**0.5
                        value = value.to(own)
                        drawn[id(own)] = nn.Parameter(value) if store is stores[0] else value
                    store[name] = drawn[id(own)]
        yield


def zeroed(tensors: Mapping[str, Tensor], gone: Mapping[ChannelGroup, Sequence[int]]) -> dict[str, Tensor]:
    """Boolean masks by parameter name, False in all that belongs to channels that go.

    Args:
        tensors: The model's parameters by name; only shapes are looked at. Names that are not among them, such as
            buffers, are passed over.
        gone: By group, the channels that go.
    """
    masks: dict[str, Tensor] = {}
    for group, channels in gone.items():
        for member in group.members:
            positions = torch.tensor(member.positions(channels), dtype=torch.int64)
            for name, dim in member.tensors.items():
                if name in tensors and len(positions):
                    mask = masks.setdefault(name, torch.ones(tensors[name].shape, dtype=torch.bool))
                    mask.index_fill_(dim, positions, False)
    return masks


class Cut:
    """Channels cut out of a model in place: its layers are those of a narrower network, with nothing else in them.

    Args:
        model: The model, which need not be the one that the groups were found in, if it has the same layers.
        gone: By group, the channels that go; each group keeps at least one.
    """

    def __init__(self, model: nn.Module, gone: Mapping[ChannelGroup, Sequence[int]]) -> None:
        import torch_pruning

        self.model = model
        self._whole: dict[str, Any] = {}  # by layer
        self._left: dict[str, dict[int, Tensor]] = {}  # by tensor, positions that stay along each dimension
        for (layer_name, reads), (tensors, positions) in _places(gone).items():
            layer = model.get_submodule(layer_name)
            self._whole.setdefault(layer_name, _kept(layer))
            for name, dim in tensors.items():
                tensor: Any = getattr(layer, name.rpartition(".")[2])
                stays = torch.ones(tensor.shape[dim], dtype=torch.bool)
                stays[positions] = False
                self._left.setdefault(name, {})[dim] = stays.nonzero().squeeze(1)
            kind = "depthwise_conv" if getattr(layer, "groups", 1) > 1 else layer_kind(layer)
            getattr(torch_pruning, f"prune_{kind}_{'in' if reads else 'out'}_channels")(layer, positions)
        for layer_name, (parameters, _, _) in self._whole.items():
            for name, parameter in model.get_submodule(layer_name).named_parameters(recurse=False):
                parameter.requires_grad_(parameters[name].requires_grad)

    @torch.no_grad()
    def undo(self, carry: bool = True) -> None:
        """Give the layers their own tensors back, the same objects; what had been cut out is as it was.

        Args:
            carry: Whether the values that the narrow ones have now go into them.

        Raises:
            ValueError: `carry`, and a layer has been cut again since.
        """
        if carry:
            self._refuse_other_widths()
        for layer_name, (parameters, buffers, _) in self._whole.items():
            layer = self.model.get_submodule(layer_name)
            if not carry:
                _restore(layer, self._whole[layer_name])
                continue
            for name, narrow in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
                whole = parameters.get(name, buffers.get(name))
                if narrow is whole:
                    continue
                left = self._left.get(f"{layer_name}.{name}", {})
                places = [left.get(dim, torch.arange(size)).to(whole.device) for dim, size in enumerate(whole.shape)]
                whole[torch.meshgrid(*places, indexing="ij") if places else ()] = narrow
            _restore(layer, self._whole[layer_name])

    def _refuse_other_widths(self) -> None:
        for name, left in self._left.items():
            layer_name, _, tensor = name.rpartition(".")
            shape = getattr(self.model.get_submodule(layer_name), tensor).shape
            if any(shape[dim] != len(stays) for dim, stays in left.items()):
                raise ValueError(
                    f"{name} is of shape {tuple(shape)}, so {layer_name} was cut again since it was first cut and its "
                    "first width cannot be given back; train it with a new callback."
                )


def _places(
    gone: Mapping[ChannelGroup, Sequence[int]],
) -> dict[tuple[str, bool], tuple[Mapping[str, int], list[int]]]:
    """By layer and whether it reads: its tensors and the positions that go, of all groups that meet in it."""
    found: dict[tuple[str, bool], tuple[Mapping[str, int], list[int]]] = {}
    for group, channels in gone.items():
        for member in group.members:
            if positions := member.positions(channels):
                _, earlier = found.get((member.layer, member.role == "reads"), ({}, []))
                found[member.layer, member.role == "reads"] = member.tensors, sorted({*earlier, *positions})
    return found


def _kept(part: nn.Module) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    widths = {name: value for name, value in vars(part).items() if name in WIDTHS}
    return dict(part._parameters), dict(part._buffers), widths


def _restore(part: nn.Module, kept: tuple[dict[str, Any], dict[str, Any], dict[str, Any]]) -> None:
    stores: tuple[dict[str, Any], ...] = (part._parameters, part._buffers, vars(part))
    for store, values in zip(stores, kept, strict=True):
        store.update(values)


def layer_kind(layer: nn.Module) -> str:
    """What torch-pruning calls a layer whose channels we cut; nothing for others."""
    if isinstance(layer, CONVOLUTIONS):
        whole = layer.groups == 1 or layer.groups == layer.in_channels == layer.out_channels
        return "conv" if whole else ""
    kinds = {nn.Linear: "linear", _BatchNorm: "batchnorm", nn.PReLU: "prelu"}
    return next((kind for type_, kind in kinds.items() if isinstance(layer, type_)), "")

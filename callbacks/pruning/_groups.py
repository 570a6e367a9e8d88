"""Which channels of a network must go together, found by tracing, and cutting them out.

torch-pruning follows the network's graph: a convolution that makes a channel, the batch norms and depth-wise
convolutions that carry it along, the layers whose sum it is part of, and those that read it form one group. What
tracing says is not believed but tried: a group is offered only if cutting its channels gives what zeroing them gives.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_vision.catalogue import nearest
from lightning_vision.inspection.at_rest import at_rest

__all__ = ["ChannelGroup", "Cut", "Member", "channel_groups", "require_torch_pruning", "scratch", "zeroed"]

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


def channel_groups(model: nn.Module, example: Tensor, ignore: Sequence[str] = ()) -> list[ChannelGroup]:
    """The groups of channels that can be cut out of a network, in the order of its layers.

    Left alone are the network's outputs and whatever a cut would change: attention heads, channels that a layer or
    group norm averages over, grouped convolutions, shortcuts padded to a fixed width.

    Args:
        model: Called as `model(images)`; left as it was.
        example: Images `(B, C, H, W)` of the size that the network runs on; two are enough, their values do not matter.
        ignore: Shell patterns on layer names; a group that one of these layers makes is left alone.

    Raises:
        ModuleNotFoundError: torch-pruning is not installed.
        ValueError: a pattern matches no layer, the network has compiled parts, or it cannot be traced.
    """
    require_torch_pruning(type(model).__name__)
    paths = {name: part for name, part in model.named_modules() if name}
    for pattern in ignore:
        if not any(fnmatchcase(name, pattern) for name in paths):
            hint = nearest(pattern, list(paths)) or f"; its layers begin {', '.join(list(paths)[:3])}."
            raise ValueError(f"ignore={pattern!r} matches no layer of {type(model).__name__}{hint}")
    if any("_orig_mod" in name for name in paths) or hasattr(model, "_orig_mod"):
        raise ValueError(
            f"{type(model).__name__} has compiled parts, whose channels cannot be traced; cut the plain one and compile "
            "what is left."
        )
    with at_rest(model), scratch(model):
        # Made here: what an inference mode around has made cannot be differentiated.
        images = torch.randn(example.shape, generator=torch.Generator().manual_seed(0)).to(example)
        groups = [it for it in _traced(model, images) if not _ignored(it, ignore)]
        with torch.no_grad():
            return _sound(model, images, groups)


def require_torch_pruning(owner: str) -> None:
    """Refuse to go on without the package that traces channels.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    if find_spec("torch_pruning") is None:
        raise ModuleNotFoundError(
            f'cutting channels of {owner} needs torch-pruning; pip install "lightning_vision[pruning]"'
        )


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
            for store in (part._parameters, part._buffers):
                for name, own in store.items():
                    if own is None or not own.is_floating_point():
                        continue
                    if store is part._buffers and not name.startswith("running_"):
                        continue
                    if id(own) not in drawn:
                        shape, fan_in = own.shape, own[0].numel() if own.ndim > 1 else 1
                        value = torch.rand(shape, generator=random) + 0.5
                        if own.ndim > 1:
                            value = torch.randn(shape, generator=random) / fan_in**0.5
                        value = value.to(own)
                        drawn[id(own)] = nn.Parameter(value) if store is part._parameters else value
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
            kind = "depthwise_conv" if getattr(layer, "groups", 1) > 1 else _kind(layer)
            getattr(torch_pruning, f"prune_{kind}_{'in' if reads else 'out'}_channels")(layer, positions)
        for layer_name, (parameters, _, _) in self._whole.items():
            for name, parameter in model.get_submodule(layer_name).named_parameters(recurse=False):
                parameter.requires_grad_(parameters[name].requires_grad)

    @torch.no_grad()
    def undo(self) -> None:
        """Give the layers their own tensors back, the same objects, with the values that the narrow ones have now.

        What had been cut out is as it was.
        """
        for layer_name, (parameters, buffers, _) in self._whole.items():
            layer = self.model.get_submodule(layer_name)
            for name, narrow in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
                whole = parameters.get(name, buffers.get(name))
                if narrow is whole:
                    continue
                left = self._left.get(f"{layer_name}.{name}", {})
                places = [left.get(dim, torch.arange(size)).to(whole.device) for dim, size in enumerate(whole.shape)]
                whole[torch.meshgrid(*places, indexing="ij") if places else ()] = narrow
            _restore(layer, self._whole[layer_name])


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
    for store, values in zip((part._parameters, part._buffers, vars(part)), kept, strict=True):
        store.update(values)


def _kind(layer: nn.Module) -> str:
    """What torch-pruning calls a layer whose channels we cut; nothing for others."""
    if isinstance(layer, CONVOLUTIONS):
        whole = layer.groups == 1 or layer.groups == layer.in_channels == layer.out_channels
        return "conv" if whole else ""
    kinds = {nn.Linear: "linear", _BatchNorm: "batchnorm", nn.PReLU: "prelu"}
    return next((kind for type_, kind in kinds.items() if isinstance(layer, type_)), "")


def _traced(model: nn.Module, images: Tensor) -> list[ChannelGroup]:
    from torch_pruning import DependencyGraph

    try:
        graph = DependencyGraph().build_dependency(
            model, images, forward_fn=lambda network, given: network(given), verbose=False
        )
        found = list(graph.get_all_groups())
    except Exception as error:  # whatever a stranger's forward, or tracing it, raises
        reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        raise ValueError(
            f"the channels of {type(model).__name__} cannot be traced, by calling it on images of shape "
            f"{tuple(images.shape)} ({reason}); it must be callable as model(images) and give tensors."
        ) from error
    names = {part: name for name, part in model.named_modules()}
    order = {name: place for place, name in enumerate(names.values())}
    owners: dict[int, int] = {}
    for part in names:
        for parameter in part.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    groups = []
    for it in found:
        members = [_member(graph, item, names, owners) for item in it]
        if None not in members:
            joined = _joined([member for member in members if member])
            makers = [member.layer for member in joined if member.role == "makes"]
            readers = [member for member in joined if member.role == "reads"]
            if makers and readers:
                groups.append(ChannelGroup(min(makers, key=order.__getitem__), len(it[0].idxs), joined))
    return sorted(groups, key=lambda group: order[group.name])


def _member(graph: Any, item: Any, names: Mapping[Any, str], owners: Mapping[int, int]) -> Member | bool | None:
    """What a step of torch-pruning's means; False if it touches no layer, None if it touches one that we leave alone."""
    layer = item.dep.target.module
    if layer not in names:
        # One of its own stands for a function; a parameter of a stranger's layer has no place that we know.
        return None if isinstance(layer, nn.Parameter) else False
    kind = _kind(layer)
    if isinstance(layer, nn.PReLU) and layer.num_parameters == 1:
        return False
    if not kind or any(owners[id(it)] > 1 for it in layer.parameters(recurse=False)):
        return None
    role: Literal["makes", "carries", "reads"] = "reads"
    if kind in ("batchnorm", "prelu") or (kind == "conv" and layer.groups > 1):
        role = "carries"
    elif graph.is_out_channel_pruning_fn(item.dep.handler):
        role = "makes"
    rows, columns = (1, 0) if kind == "conv" and layer.transposed else (0, 1)
    dims = {"weight": columns if role == "reads" else rows if role == "makes" else 0}
    if role != "reads":
        dims |= {"bias": 0, "running_mean": 0, "running_var": 0}
    tensors = {f"{names[layer]}.{name}": dim for name, dim in dims.items() if getattr(layer, name, None) is not None}
    return Member(names[layer], role, tensors, torch.tensor(item.idxs), torch.tensor(item.root_idxs))


def _joined(members: Sequence[Member | bool]) -> tuple[Member, ...]:
    """One member for each layer and role, in order."""
    found: dict[tuple[str, str], Member] = {}
    for it in members:
        if isinstance(it, Member):
            key = (it.layer, it.role)
            if key in found:
                it = Member(
                    it.layer,
                    it.role,
                    it.tensors,
                    torch.cat([found[key].position, it.position]),
                    torch.cat([found[key].channel, it.channel]),
                )
            found[key] = it
    return tuple(found.values())


def _ignored(group: ChannelGroup, ignore: Sequence[str]) -> bool:
    makers = [member.layer for member in group.members if member.role == "makes"]
    return any(fnmatchcase(name, pattern) for name in makers for pattern in ignore)


def _sound(model: nn.Module, images: Tensor, groups: list[ChannelGroup]) -> list[ChannelGroup]:
    """Those groups without whose ends the network computes what it does with them at zero; halves are tried apart."""
    groups = [group for group in groups if group.size > 1]
    if not groups or _cut_is_zeroing(model, images, groups):
        return groups
    if len(groups) == 1:
        return []
    middle = len(groups) // 2
    return _sound(model, images, groups[:middle]) + _sound(model, images, groups[middle:])


def _cut_is_zeroing(model: nn.Module, images: Tensor, groups: Sequence[ChannelGroup]) -> bool:
    gone = {group: sorted({0, group.size // 2} if group.size > 2 else {0}) for group in groups}
    parameters = dict(model.named_parameters())
    with ExitStack() as stack:
        try:
            masks = zeroed(parameters, gone)
            expected = functional_call(
                model, {name: parameters[name] * mask.to(images.device) for name, mask in masks.items()}, (images,)
            )
            stack.callback(Cut(model, gone).undo)
            found = model(images)
        except Exception:  # a width that is fixed in a stranger's forward shows itself in many ways
            return False
    return _alike(found, expected)


def _alike(found: Any, expected: Any) -> bool:
    if isinstance(found, Tensor) and isinstance(expected, Tensor):
        if found.shape != expected.shape:
            return False
        return bool((found - expected).abs().max() <= 1e-4 * expected.abs().max() + 1e-6)
    if isinstance(found, Mapping):
        return all(_alike(found[key], expected[key]) for key in found)
    if isinstance(found, (list, tuple)):
        return all(_alike(left, right) for left, right in zip(found, expected, strict=True))
    return bool(found == expected)

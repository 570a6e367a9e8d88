"""Which channels of a network must go together, found by tracing, and cutting them out.

torch-pruning follows the network's graph: a convolution that makes a channel, the batch norms and depth-wise
convolutions that carry it along, the layers whose sum it is part of, and those that read it form one group. What
tracing says is not believed but tried: a group is offered only if cutting its channels gives what zeroing them gives.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from fnmatch import fnmatchcase
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_vision.catalogue import nearest
from lightning_vision.inspection.at_rest import at_rest

from ..hooks._lent import call_with
from ._channels import ChannelGroup, Cut, Member, layer_kind, scratch, zeroed

__all__ = ["channel_groups", "require_torch_pruning"]


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
            f"{type(model).__name__} has compiled parts, whose channels cannot be traced; cut it before it is compiled."
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


def _traced(model: nn.Module, images: Tensor) -> list[ChannelGroup]:
    from torch_pruning import DependencyGraph

    try:
        graph = DependencyGraph().build_dependency(model, images, forward_fn=_answer, verbose=False)
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


def _answer(model: nn.Module, images: Tensor) -> Any:
    answer = model(images)
    if isinstance(answer, Tensor) and not answer.requires_grad:
        raise ValueError("its answer has no gradient")
    return answer


def _member(graph: Any, item: Any, names: Mapping[Any, str], owners: Mapping[int, int]) -> Member | bool | None:
    """What a step of torch-pruning's means; False: it touches no layer; None: it touches one that is left alone."""
    layer = item.dep.target.module
    if layer not in names:
        # One of its own stands for a function; a parameter of a stranger's layer has no place that we know.
        return None if isinstance(layer, nn.Parameter) else False
    kind = layer_kind(layer)
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
            expected = call_with(
                model, {name: parameters[name] * mask.to(images.device) for name, mask in masks.items()}, (images,)
            )
            stack.callback(Cut(model, gone).undo, carry=False)
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

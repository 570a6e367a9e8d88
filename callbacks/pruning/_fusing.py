"""Channels fused into others: what one channel has in all layers of its group, and weighted sums of several."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from ._channels import ChannelGroup, Member
from ._groups import channel_groups

__all__ = ["channel_rows", "fusable_groups", "fuse"]


def fusable_groups(owner: str, model: nn.Module, images: Tensor, ignore: Sequence[str]) -> list[ChannelGroup]:
    """The groups of a network in which each channel lies equally often in a layer, so that channels can be added.

    Args:
        owner: Who asks, for errors.
        model: Called as `model(images)`.
        images: `(B, C, H, W)`.
        ignore: Shell patterns on names of layers whose outputs stay.

    Raises:
        ModuleNotFoundError: torch-pruning is not installed.
        ValueError: the images are no `(B, C, H, W)`, the model cannot be traced, or a pattern matches no layer.
    """
    if images.ndim != 4:
        raise ValueError(f"{owner}: images are of shape {tuple(images.shape)}; give (B, C, H, W).")
    found = channel_groups(model, images, ignore)
    return [
        group
        for group in found
        if all(len(it.channel.bincount(minlength=group.size).unique()) == 1 for it in group.members)
    ]


def channel_rows(group: ChannelGroup, tensors: Mapping[str, Tensor], roles: Collection[str]) -> Tensor:
    """What each channel has in the layers of these roles, side by side, `(size, N)` in float64.

    Args:
        group: The channels.
        tensors: By name; names that are not among them are passed over.
        roles: Of `makes`, `carries` and `reads`.
    """
    parts = [
        tensors[name].detach().double().movedim(dim, 0)[_places(member, group.size)].flatten(1)
        for member in group.members
        if member.role in roles
        for name, dim in member.tensors.items()
        if name in tensors
    ]
    return torch.cat(parts, dim=1) if parts else torch.zeros(group.size, 0, dtype=torch.float64)


@torch.no_grad()
def fuse(
    tensors: Mapping[str, Tensor],
    group: ChannelGroup,
    into: Sequence[int],
    made: Tensor,
    read: Tensor,
    carried: Tensor | None = None,
) -> None:
    """Write weighted sums of all channels of a group, in place, where some of them lie.

    Args:
        tensors: Parameters and buffers by name.
        group: The channels.
        into: The channels that are written over, K of `size`.
        made: Their weights of what makes channels, and is added to them on their way, `(K, size)` in float64.
        read: Their weights of what reads them, likewise.
        carried: Their weights of what channels are multiplied with on their way, of rows that sum to 1; as `made` if
            these do.
    """
    for member in group.members:
        places = _places(member, group.size)
        for name, dim in member.tensors.items():
            weights = read if member.role == "reads" else made
            if carried is not None and member.role == "carries" and name.endswith((".weight", ".running_var")):
                weights = carried
            along = tensors[name].movedim(dim, 0)
            whole = along[places]
            fused = weights.to(whole.device) @ whole.double().flatten(1)
            along[places[list(into)]] = fused.view(len(into), *whole.shape[1:]).to(whole)


def _places(member: Member, size: int) -> Tensor:
    """Positions of each channel, `(size, N)`, ascending; behind a flattening N is its number of pixels."""
    order = torch.argsort(member.channel * (int(member.position.max()) + 1) + member.position)
    return member.position[order].view(size, -1)

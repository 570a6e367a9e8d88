"""Cutting channels that do nothing out of a network: what masks have emptied becomes a narrower network."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from lightning_vision.inspection.at_rest import at_rest

from ._channels import ChannelGroup, Cut
from ._groups import channel_groups

__all__ = ["idle_channels", "shrink"]

Model = TypeVar("Model", bound=nn.Module)
# Sums over fewer numbers differ in the last digits: of the largest output, and at least.
RELATIVE, ABSOLUTE = 1e-5, 1e-6


def shrink(model: Model, example_images: Tensor, ignore: Sequence[str] = ()) -> Model:
    """Cut out of a network, in place, all channels that are zero; its outputs stay as they were.

    What `StructuredPruning` has masked, also in a checkpoint, comes out as an ordinary network of narrower layers,
    which has nothing of the masks in it. A channel goes if no weight reads it, or if the weights, biases and norms
    that make it are zero and its absence changes no output on the images. Channels that a sum ties together go together
    or not at all; of each such group one stays.

    Args:
        model: Called as `model(images)`; a LightningModule is one, too. Its train flags stay.
        example_images: Of the size that it runs on, `(B, C, H, W)`, on its device.
        ignore: Shell patterns on names of layers whose outputs stay.

    Returns:
        The model itself.

    Raises:
        ModuleNotFoundError: torch-pruning is not installed.
        ValueError: the images are no `(B, C, H, W)`, the model cannot be traced, or a pattern matches no layer.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).requires_grad_(False)
        >>> network[2].weight[:, 1:] = 0
        >>> shrink(network, torch.zeros(2, 1, 8, 8))[0].out_channels
        1

    Reference: Fang et al. 2023, arXiv:2301.12900

    See also:
        `StructuredPruning`, which makes such networks.
    """
    if example_images.ndim != 4:
        raise ValueError(f"shrink: example_images are of shape {tuple(example_images.shape)}; give (B, C, H, W).")
    groups = channel_groups(model, example_images, ignore)
    tensors = dict(model.named_parameters())
    unread = idle_channels(groups, tensors, ["reads"])
    unmade = idle_channels(groups, tensors, ["makes", "carries"])
    either = {group: sorted({*unread[group], *unmade[group]}) for group in groups}
    either = {group: it[len(it) == group.size :] for group, it in either.items()}
    gone = either if either == unread or _changes_nothing(model, example_images, either) else unread
    Cut(model, {group: channels for group, channels in gone.items() if channels})
    return model


def idle_channels(
    groups: Sequence[ChannelGroup], tensors: Mapping[str, Tensor], roles: Sequence[str]
) -> dict[ChannelGroup, list[int]]:
    """The channels of each group whose parameters in all members of these roles are zero; all but one at most."""
    found = {}
    for group in groups:
        idle = torch.ones(group.size, dtype=torch.bool)
        for member in group.members:
            for name, dim in member.tensors.items():
                if member.role in roles and name in tensors:
                    used = (
                        (tensors[name].detach() != 0)
                        .transpose(0, dim)
                        .reshape(tensors[name].shape[dim], -1)
                        .any(dim=1)
                        .cpu()
                    )
                    idle[member.channel[used[member.position]]] = False
        channels = idle.nonzero().squeeze(1).tolist()
        found[group] = channels[len(channels) == group.size :]
    return found


def _changes_nothing(model: nn.Module, images: Tensor, gone: Mapping[ChannelGroup, Sequence[int]]) -> bool:
    with at_rest(model), torch.no_grad():
        images = images.clone()
        expected = model(images)
        cut = Cut(model, gone)
        try:
            found = model(images)
        finally:
            cut.undo(carry=False)
    return bool((found - expected).abs().max() <= RELATIVE * expected.abs().max() + ABSOLUTE)

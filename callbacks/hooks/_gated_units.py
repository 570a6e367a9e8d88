"""Convolutions whose filters may be left out one by one: what lies between a filter and its activation is its own.

A unit is a convolution, perhaps a batch norm behind it, and the activation that alone is given the result. With an
activation that is zero at zero, a filter that is left out is a map of zeros.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ._activations import ACTIVATIONS
from ._layer_names import that_match
from ._live_tensors import plain_name
from ._successions import successions

__all__ = ["GatedUnit", "gated_units"]


@dataclass(frozen=True)
class GatedUnit:
    """Layers of a unit.

    Args:
        name: Of the convolution, without wrappers of `torch.compile`.
        conv: The convolution.
        norm: The batch norm behind it, which may hold the activation, as timm's do; None if there is none.
        activation: What follows; None if the norm holds it.
    """

    name: str
    conv: nn.Conv2d
    norm: nn.BatchNorm2d | None
    activation: nn.Module | None

    @property
    def tail(self) -> nn.Module:
        """The layer whose output is masked."""
        return self.conv if self.norm is None else self.norm

    def heat(self, output: Tensor) -> Tensor:
        """Absolute heat maps `(B, C, H, W)` of what the tail puts out, which is left alone."""
        output = output.detach()
        # A copy, for activations may work in place.
        return (output if self.activation is None else self.activation(output.clone())).abs()


def gated_units(owner: str, model: nn.Module, patterns: Sequence[str]) -> list[GatedUnit]:
    """The units of a network, or those whose convolutions' names match.

    Grouped convolutions count if they are depthwise. A convolution that is called twice is none.

    Raises:
        ValueError: there is none, or a pattern matches none.
    """
    layers = {name: part for name, part in model.named_modules() if name}
    follows = successions(model, (nn.BatchNorm2d,))
    found = {}
    for name, layer in layers.items():
        unit = _unit(plain_name(name), layer, name, layers, follows)
        if unit is not None:
            found[unit.name] = unit
    if not found:
        raise ValueError(
            f"{owner}: {type(model).__name__} has no convolution that is followed, perhaps after a batch norm, by an "
            "activation layer alone, so no filter can be left out; make its activations layers instead of functions, "
            "or leave the callback out."
        )
    if patterns:
        return [found[name] for name in that_match(owner, "layers", patterns, found, "convolutions before activations")]
    return list(found.values())


def _unit(
    name: str, conv: nn.Module, path: str, layers: dict[str, nn.Module], follows: dict[str, list[str | None]]
) -> GatedUnit | None:
    if not isinstance(conv, nn.Conv2d) or not _plain(conv):
        return None
    follower = _only(follows, path)
    norm = layers.get(follower or "")
    if not isinstance(norm, nn.BatchNorm2d):
        return GatedUnit(name, conv, None, norm) if norm is not None and _activates(norm) else None
    if not norm.track_running_stats:
        return None
    own: Any = getattr(norm, "act", None)
    if own is not None and not isinstance(own, nn.Identity):
        return GatedUnit(name, conv, norm, None) if _activates(own) and _only_call(follows, follower) else None
    activation = layers.get(_only(follows, follower) or "")
    return GatedUnit(name, conv, norm, activation) if activation is not None and _activates(activation) else None


def _plain(conv: nn.Conv2d) -> bool:
    depthwise = conv.groups == conv.in_channels == conv.out_channels
    return (conv.groups == 1 or depthwise) and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def _only_call(follows: dict[str, list[str | None]], path: str | None) -> bool:
    return path is not None and len(follows.get(path, [])) == 1


def _only(follows: dict[str, list[str | None]], path: str | None) -> str | None:
    return follows[path][0] if path is not None and _only_call(follows, path) else None


def _activates(layer: nn.Module) -> bool:
    return type(layer).__name__ in ACTIVATIONS

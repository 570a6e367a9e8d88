"""Where a network's hidden activations are: what the layers between the two linear maps of an MLP put out."""

from collections.abc import Sequence

from torch import nn

from ._layer_names import that_match

__all__ = ["ACTIVATIONS", "activations_of"]

# By name, for timm has its own of each, some in several makes. All are zero at zero, as a gate (sigmoid) is not.
ACTIVATIONS = {
    *("ReLU", "ReLU6", "LeakyReLU", "PReLU", "RReLU", "ELU", "CELU", "SELU", "GELU", "GELUTanh", "QuickGELU", "SiLU"),
    *("Swish", "SwishMe", "Mish", "MishMe", "Hardswish", "HardSwish", "HardSwishMe", "HardMish", "HardMishMe"),
}
RECTIFIERS = {"ReLU", "ReLU6", "GELU", "GELUTanh", "QuickGELU"}


def activations_of(owner: str, model: nn.Module, patterns: Sequence[str]) -> dict[str, bool]:
    """Names of the layers whose outputs are hidden activations, and whether features are the last dimension.

    With patterns, the layers whose names match; without, the `act` of each MLP block (a module with `fc1`, `act` and
    `fc2`, as timm's are, that is no gate), else each ReLU and GELU. Features are last where `fc1` is linear; elsewhere
    they are the second dimension of maps `(B, C, H, W)` and the last of anything else.

    Raises:
        ValueError: a pattern matches no layer, or without patterns there is nothing of the kind.
    """
    layers = dict(model.named_modules())
    blocks = {f"{name}.act": it for name, it in layers.items() if _is_mlp(it)}
    last = {name: isinstance(it.fc1, nn.Linear) for name, it in blocks.items()}
    if patterns:
        chosen = that_match(owner, "layers", patterns, [name for name in layers if name], "layers")
        return {name: last.get(name, False) for name in chosen}
    found = last or {name: False for name, it in layers.items() if type(it).__name__ in RECTIFIERS}
    if not found:
        raise ValueError(
            f"{owner}: {type(model).__name__} has no MLP block with an activation and neither ReLU nor GELU layers; "
            "name layers with layers=, or make its activations layers instead of functions."
        )
    return found


def _is_mlp(part: nn.Module) -> bool:
    return all(isinstance(getattr(part, it, None), nn.Module) for it in ("fc1", "act", "fc2")) and not hasattr(
        part, "gate"
    )

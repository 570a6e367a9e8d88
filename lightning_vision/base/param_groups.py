"""Parameter groups that any optimizer and schedule understands: each group carries its own `lr` and `weight_decay`."""

from collections.abc import Iterable, Mapping
from typing import Any

from timm.models import group_parameters
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = [
    "check_rates_kept",
    "classifier_names",
    "layer_scales",
    "parameter_groups",
    "required_classifier",
    "undecayed",
]


def undecayed(network: nn.Module) -> set[str]:
    """Names of the parameters that weight decay would only hurt: norms, biases and what timm's networks list.

    Besides the network itself those within it are asked what they list, as a backbone before a head is.
    """
    asked: dict[str, set[str]] = {
        path: getattr(part, "no_weight_decay", set)() for path, part in network.named_modules()
    }
    listed = {f"{path}.{name}" if path else name for path, names in asked.items() for name in names}
    return {name for name, param in network.named_parameters() if param.ndim <= 1 or name in listed}


def classifier_names(network: nn.Module) -> tuple[str, ...]:
    """Prefixes (`"fc."`) of the parameters of a timm network's classifier, empty for other modules."""
    names = (getattr(network, "pretrained_cfg", None) or {}).get("classifier") or ()
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))


def required_classifier(network: nn.Module, wanted_by: str) -> tuple[str, ...]:
    """Prefixes of the parameters of a network's classifier, as `classifier_names` gives them, but never none.

    Args:
        network: A timm network.
        wanted_by: The setting that needs to know, for the error.

    Raises:
        ValueError: the network does not say what its classifier is.
    """
    names = classifier_names(network)
    if not names:
        kind = type(network).__name__
        raise ValueError(f"{wanted_by} needs a timm backbone, which names its classifier; {kind} does not")
    return names


def layer_scales(network: nn.Module, layer_decay: float = 1.0, head_lr_multiple: float = 1.0) -> dict[str, float]:
    """Factor on the learning rate of each parameter, 1 where a name is missing.

    A layer that lies `d` layers below the classifier gets `layer_decay ** d` (Bao et al. 2021, arXiv:2106.08254,
    section 3.1); the classifier gets `head_lr_multiple`.

    Args:
        network: A timm network; layers are counted by its `group_matcher`.
        layer_decay: Factor a layer, fraction; neutral 1.
        head_lr_multiple: Factor of the classifier; neutral 1.

    Raises:
        ValueError: the network does not say what its layers or its classifier are.
    """
    scales: dict[str, float] = {}
    if layer_decay != 1.0:
        matcher: Any = getattr(network, "group_matcher", None)
        if matcher is None:
            kind = type(network).__name__
            raise ValueError(f"layer_decay={layer_decay} needs a network with timm's group_matcher; {kind} has none")
        layers = group_parameters(network, matcher(coarse=False), reverse=True)
        last = max(layers.values())
        scales = {name: layer_decay ** (last - layer) for name, layer in layers.items()}
    if head_lr_multiple != 1.0:
        head = classifier_names(network)
        found = [name for name, _ in network.named_parameters() if name.startswith(head)] if head else []
        if not found:
            kind = type(network).__name__
            raise ValueError(
                f"head_lr_multiple={head_lr_multiple} needs a timm network with a classifier; {kind} has none"
            )
        scales |= {name: head_lr_multiple for name in found}
    return scales


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    lr: float,
    weight_decay: float,
    undecayed: Iterable[str] = (),
    scales: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """One group for each distinct pair of learning rate and weight decay; frozen parameters are left out.

    Args:
        named_parameters: Names and parameters, in the order in which they appear in the groups.
        lr: Learning rate of a parameter whose scale is 1.
        weight_decay: Weight decay of a parameter that is not in `undecayed`.
        undecayed: Names that get weight decay 0.
        scales: Factor on `lr` by name, 1 where a name is missing.

    Returns:
        Groups `{"params", "lr", "weight_decay"}` for an optimizer.
    """
    undecayed, scales = set(undecayed), scales or {}
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, param in named_parameters:
        if param.requires_grad:
            own = {"lr": lr * scales.get(name, 1.0), "weight_decay": 0.0 if name in undecayed else weight_decay}
            groups.setdefault((float(own["lr"]), own["weight_decay"]), {"params": [], **own})["params"].append(param)
    return list(groups.values())


def check_rates_kept(optimizer: Optimizer, rates: list[float], scheduler: LRScheduler) -> None:
    """Refuse a schedule that starts all groups from one rate of its own.

    Args:
        optimizer: The optimizer after `scheduler` was made.
        rates: Learning rate of each group before that.
        scheduler: Whom the message names.

    Raises:
        ValueError: the groups' rates no longer stand in the proportion of `rates`.
    """
    starts = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
    factors = [start / rate for start, rate in zip(starts, rates, strict=True) if rate]
    if factors and max(factors) - min(factors) > 1e-6 * max(factors):
        name = type(scheduler).__name__
        raise ValueError(
            f"{name} gives all parameter groups one learning rate of its own, which undoes layer_decay and"
            " head_lr_multiple; use a schedule that scales each group's rate, or leave both at 1"
        )

"""EvoNorm: one layer in the place of a norm and the activation behind it, found by evolution.

Liu et al. 2020, arXiv:2004.02967, table 2. Symbols: x `(B, C, H, W)`; gamma `weight`, beta `bias`, v1 `v`, all `(C,)`.
The layers are timm's; what is here finds the pairs in a network and swaps them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any, Literal, final, get_args

from lightning.pytorch import LightningModule
from timm.layers import EvoNorm2dB0, EvoNorm2dB1, EvoNorm2dS0, EvoNorm2dS1
from torch import Tensor, nn

from ..hooks._activations import ACTIVATIONS
from ..hooks._checks import number, whole
from ..hooks._layer_names import patterns_of, that_match
from ..hooks._successions import successions
from ..hooks.network import Network

__all__ = ["EvoNorm", "SwappedNorms", "swap_norms"]

Variant = Literal["B0", "B1", "S0", "S1"]
LAYERS = {"B0": EvoNorm2dB0, "B1": EvoNorm2dB1, "S0": EvoNorm2dS0, "S1": EvoNorm2dS1}
NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, nn.GroupNorm, nn.InstanceNorm2d)
MARK = "evonorm_output"


@dataclass(frozen=True)
class SwappedNorms:
    """What a swap did to a network.

    Args:
        swapped: Names of the norms in whose place an EvoNorm stands.
        left: Names of the norms that stay, each with the reason.
    """

    swapped: tuple[str, ...]
    left: dict[str, str]


def swap_norms(
    model: nn.Module,
    variant: Variant = "S0",
    groups: int = 32,
    momentum: float = 0.1,
    eps: float | None = None,
    skip: str | Sequence[str] = (),
) -> SwappedNorms:
    """Put a fresh EvoNorm in the place of every norm whose output goes to an activation and nowhere else, in place.

    A pair is a batch, group or instance norm over maps and the activation that alone is given what the norm puts out,
    in the forward itself, or timm's two in one. The activation becomes an identity; one that the network also uses
    elsewhere, as torchvision's blocks do after their addition, stays for those calls. Names and order of layers stay; a
    state dict has EvoNorm's `weight`, `bias`, perhaps `v` and `running_var` under the norm's name. The new layers
    begin as timm makes them (gamma, v1 = 1, beta = 0), on the norm's device, in its type.

    Args:
        model: Whose layers they are.
        variant: B0 and B1 look at the batch while training, S0 and S1 at one image alone.
        groups: Of channels, in S0 and S1, >= 1; where it does not divide the channels, their greatest common divisor.
        momentum: Share of the batch in the running variance of B0 and B1, 0 to 1.
        eps: Added to variances, >= 0; None is timm's of the variant (B0 1e-3, else 1e-5).
        skip: Names of norms that stay, a shell pattern or several.

    Raises:
        ValueError: an argument out of its range, or a pattern that matches no norm.

    Example:
        >>> import timm
        >>> from lightning_vision.callbacks import swap_norms
        >>> len(swap_norms(timm.create_model("resnet18"), "S0").swapped)
        9

    Reference: Liu et al. 2020, arXiv:2004.02967
    """
    _check("swap_norms", variant, groups, momentum, eps)
    layers = {name: it for name, it in model.named_modules() if isinstance(it, NORMS)}
    kept = set(that_match("swap_norms", "skip", patterns_of("swap_norms", "skip", skip), layers, "norms"))
    follows = successions(model, NORMS)
    swapped, left = [], {name: "it was to be skipped" for name in kept}
    pairs: dict[str, set[str]] = {}
    for name, layer in layers.items():
        if name in kept:
            continue
        reason = _no_pair(model, layer, follows.get(name))
        if reason is not None:
            left[name] = reason
            continue
        swapped.append(name)
        for activation in filter(None, follows[name] if _bare(layer) else ()):
            pairs.setdefault(activation, set()).add(name)
        settings = {"groups": gcd(groups, _channels(layer)), "momentum": momentum} | (
            {} if eps is None else {"eps": eps}
        )
        weight = next(iter(layer.parameters()), None)
        where = {} if weight is None else {"device": weight.device, "dtype": weight.dtype}
        made = LAYERS[variant](_channels(layer), **settings, **where)
        _put(model, name, made.train(layer.training))
    for activation, norms in pairs.items():
        own = sum(len(follows[name]) for name in norms)
        if own == len(follows[activation]):
            _put(model, activation, nn.Identity())
            continue
        for name in norms:
            model.get_submodule(name).register_forward_hook(_mark)
        _put(model, activation, _Elsewhere(model.get_submodule(activation)))
    return SwappedNorms(tuple(swapped), left)


@final
class EvoNorm(Network):
    """Trains a network whose pairs of norm and activation are EvoNorm layers, swapped before optimizers are made.

    At set-up, of a fit and also of `validate`, `test` and `predict`, each pair that `swap_norms` finds in the module is
    swapped; a module that has EvoNorm layers of the variant already is left alone. The layers stay after the fit, and
    files hold them. So a file needs a module whose norms were swapped: give the Trainer, or the command, this callback
    with the file, or call `swap_norms(module, ...)` before `load_state_dict`. `load_from_checkpoint` makes a module
    without them and refuses. How many were swapped, and which norms stayed and why, is told once.

    Args:
        variant: B0 or B1, which see the batch while training and keep a running variance, or S0 or S1, which see one
            image alone and fit small batches (the paper's default in name: B0 for classification, S0 for batches of
            few images).
        groups: Of channels, in S0 and S1, >= 1 (32 as the paper); where it does not divide the channels, their
            greatest common divisor is taken.
        momentum: Share of a batch in the running variance of B0 and B1, 0 to 1.
        eps: Added to variances, >= 0; None is timm's (B0 1e-3, else 1e-5).
        skip: Names of norms that stay, a shell pattern or a list of them.
        name: Part of the state key.

    Shape:
        Maps `(B, C, H, W)` in and out, as the norm had.

    Raises:
        ValueError: from the constructor, for a setting out of range; at set-up, if a pattern matches no norm, the
            module has EvoNorm layers of another variant, or it has no pair, because it has none or makes its network
            later (in `configure_model` or `setup`).

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import EvoNorm
        >>> trainer = Trainer(callbacks=[EvoNorm(variant="S0")], accelerator="cpu", logger=False)

    Reference: Liu et al. 2020, arXiv:2004.02967

    BibTeX:
        @inproceedings{liu2020evolving,
          title = {Evolving Normalization-Activation Layers},
          author = {Liu, Hanxiao and Brock, Andrew and Simonyan, Karen and Le, Quoc V.},
          booktitle = {Advances in Neural Information Processing Systems},
          year = {2020},
          eprint = {2004.02967},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        A norm that no activation follows, such as the last of a residual branch, stays; the paper builds its networks
        with EvoNorm without its non-linear part there.

    See also:
        `swap_norms`, the same without a Trainer.
    """

    neutral = "the layers of the network are other ones; a network with its own norms is one without the callback"
    changes_architecture = "an EvoNorm layer stands where a norm was, so files hold its weights under the norm's name"

    def __init__(
        self,
        variant: Variant = "S0",
        groups: int = 32,
        momentum: float = 0.1,
        eps: float | None = None,
        skip: str | list[str] = "",
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        _check("EvoNorm", variant, groups, momentum, eps)
        patterns_of("EvoNorm", "skip", skip or [])
        self.variant, self.groups, self.momentum, self.eps, self.skip = variant, groups, momentum, eps, skip

    def change(self, pl_module: LightningModule) -> str | None:
        kinds = {variant for variant, kind in LAYERS.items() for it in pl_module.modules() if type(it) is kind}
        if kinds - {self.variant}:
            raise ValueError(
                f"EvoNorm: variant is {self.variant!r} and {type(pl_module).__name__} has EvoNorm-{min(kinds)} layers "
                f"already; give variant={min(kinds)!r}, or a new module."
            )
        if kinds:
            return None
        done = swap_norms(pl_module, self.variant, self.groups, self.momentum, self.eps, self.skip or ())
        reasons: dict[str, list[str]] = {}
        for norm, reason in done.left.items():
            reasons.setdefault(reason, []).append(norm)
        stayed = "; ".join(
            f"{', '.join(norms)} stay{'s' * (len(norms) == 1)}, for {reason}" for reason, norms in reasons.items()
        )
        if not done.swapped:
            raise ValueError(
                f"EvoNorm: {type(pl_module).__name__} has no norm over maps whose output goes to an activation alone "
                f"({stayed or 'it has no such norm'}); make the network in the constructor, with activations that are "
                "layers, or leave the callback out."
            )
        count = len(done.swapped)
        return f"EvoNorm: {count} norm{'s' * (count > 1)} swapped for EvoNorm-{self.variant}. {stayed}".strip()


class _Elsewhere(nn.Module):
    """An activation that lets through what an EvoNorm put out."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        # A new tensor has no mark: what is added to it in place is activated the next time.
        result: Tensor = x.view_as(x) if getattr(x, MARK, False) else self.activation(x)
        return result


def _mark(layer: nn.Module, inputs: Any, output: Tensor) -> None:
    setattr(output, MARK, True)


def _check(owner: str, variant: object, groups: object, momentum: object, eps: object) -> None:
    if variant not in get_args(Variant):
        raise ValueError(f"{owner}: variant is {variant!r}; give one of {', '.join(map(repr, get_args(Variant)))}.")
    whole(owner, "groups", groups, 1)
    number(owner, "momentum", momentum, 0.0, 1.0)
    if eps is not None:
        number(owner, "eps", eps, 0.0)


def _channels(norm: Any) -> int:
    return int(norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features)


def _bare(norm: nn.Module) -> bool:
    """Whether the norm has no activation of its own."""
    return isinstance(getattr(norm, "act", nn.Identity()), nn.Identity)


def _no_pair(model: nn.Module, norm: Any, follows: list[str | None] | None) -> str | None:
    """Why a norm is no part of a pair, None if it is."""
    if not _bare(norm):
        kind = type(norm.act).__name__
        return None if kind in ACTIVATIONS else f"its own {kind} is no activation of the kind"
    if follows is None:
        return "no forward that can be followed calls it"
    for name in follows:
        if name is None:
            return "its output does not go to one layer alone"
        kind = type(model.get_submodule(name)).__name__
        if kind not in ACTIVATIONS:
            return f"a {kind} follows it"
    return None


def _put(model: nn.Module, path: str, layer: nn.Module) -> None:
    owner, _, name = path.rpartition(".")
    model.get_submodule(owner).add_module(name, layer)

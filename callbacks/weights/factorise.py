"""Linear layers become two thin ones each, by a truncated singular value decomposition of their weights.

Guo, Wang and Kankanhalli 2023, arXiv:2310.10700 (PELA), its first stage. Symbols: W a layer's weight `(m, n)` with m
outputs and n inputs; W = U S V^T its singular value decomposition; r the rank that is kept; c `ratio`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..hooks._checks import number, whole
from ..hooks._frozen import part_name
from ..hooks._layer_names import patterns_of, that_match

__all__ = ["FactorisedLayers", "factorise", "low_rank_factors"]

# What the authors leave whole by name, and heads too small for any rank.
OMITTED = ("head", "patch_embed", "downsample", "norm")
FEWEST_OUTPUTS = 10


def low_rank_factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The factors U_r S_r^(1/2) and S_r^(1/2) V_r^T of the matrix of a rank that is nearest to a weight.

    Their product differs from the weight by the singular values that were left out, in the Frobenius norm by the root
    of their squares' sum, and no matrix of this rank is nearer (Eckart and Young). It is computed in float32 at least.

    Args:
        weight: W, `(m, n)`.
        rank: r, from 1 to the smaller of m and n.

    Returns:
        U_r S_r^(1/2), `(m, r)`, and S_r^(1/2) V_r^T, `(r, n)`, in the weight's type.

    Example:
        >>> import torch
        >>> up, down = low_rank_factors(torch.diag(torch.tensor([9.0, 1.0])), rank=1)
        >>> (up @ down).tolist()
        [[9.0, 0.0], [0.0, 0.0]]

    Reference: Guo et al. 2023, arXiv:2310.10700
    """
    left, values, right = torch.linalg.svd(
        weight.detach().to(torch.promote_types(weight.dtype, torch.float32)), full_matrices=False
    )
    root = values[:rank].sqrt()
    return (left[:, :rank] * root).to(weight.dtype), (root[:, None] * right[:rank]).to(weight.dtype)


@dataclass(frozen=True)
class FactorisedLayers:
    """What factorising did to a network.

    Args:
        ranks: Of the layers that became two, by their names.
        left: Names of the Linear layers that stay, each with the reason.
        before: Parameters that the network had.
        after: Parameters that it has.
    """

    ranks: dict[str, int]
    left: dict[str, str]
    before: int
    after: int


def factorise(
    model: nn.Module,
    ratio: float = 2.0,
    rank: int | None = None,
    layers: str | Sequence[str] | None = None,
    skip: str | Sequence[str] | None = None,
) -> FactorisedLayers:
    """Put two thin Linear layers in the place of Linear ones, by a truncated singular value decomposition, in place.

    A layer `fc` of n inputs and m outputs becomes `nn.Sequential(nn.Linear(n, r, bias=False), nn.Linear(r, m))`: a
    state dict has `fc.0.weight`, `fc.1.weight` and the bias, unchanged, as `fc.1.bias`. Only what is an `nn.Linear`
    itself is replaced, no subclass, with a weight of its own; what `factorise` has made stays.

    Args:
        model: Whose layers they are; it is not called.
        ratio: c, above 1: a layer's factors have a c-th of its numbers, with r = floor(m n / (c (m + n))).
        rank: r of all layers in the place of a ratio, at least 1; it is taken even where it saves nothing.
        layers: Names of the layers that are replaced, a shell pattern or several; None is all.
        skip: Names of layers that stay, likewise; None are those that the authors leave: with `head`, `patch_embed`,
            `downsample` or `norm` in their name, or fewer than 10 outputs.

    Raises:
        ValueError: an argument out of its range, or a pattern that matches no Linear layer.

    Example:
        >>> from torch import nn
        >>> from lightning_vision.callbacks import factorise
        >>> factorise(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), ratio=2.0, layers="0").ranks
        {'0': 10}

    Reference: Guo et al. 2023, arXiv:2310.10700
    """
    check_rank("factorise", ratio, rank)
    parts = {part_name(path): part for path, part in model.named_modules()}
    pairs = {name: part for name, part in parts.items() if is_pair(part)}
    thin = {id(part) for pair in pairs.values() for part in pair.children()}
    linear = {name: part for name, part in parts.items() if name and type(part) is nn.Linear and id(part) not in thin}
    known = [name for name in parts if name in linear or name in pairs]
    chosen, kept = known, [name for name in linear if any(part in name for part in OMITTED)]
    if layers is not None:
        chosen = that_match("factorise", "layers", patterns_of("factorise", "layers", layers), known, "Linear layers")
    if skip is not None:
        kept = that_match("factorise", "skip", patterns_of("factorise", "skip", skip), known, "Linear layers")
    before, ranks, left = _count(model), dict[str, int](), dict[str, str]()
    read_elsewhere = _weights_that_others_read(model)
    for name in (it for it in chosen if it in linear):
        layer = linear[name]
        own = _rank(layer, ratio, rank)
        if name in kept:
            left[name] = "it was to be skipped" if skip is not None else "its name is one that the authors leave out"
        elif skip is None and layer.out_features < FEWEST_OUTPUTS:
            left[name] = f"it has fewer than {FEWEST_OUTPUTS} outputs"
        elif id(layer.weight) in read_elsewhere:
            left[name] = "its weight is computed, or something else reads it"
        elif (reason := _saves_nothing(layer, own, rank)) is not None:
            left[name] = reason
        else:
            ranks[name] = own
            pair = _pair(layer, own)
            for path in [path for path, part in model.named_modules(remove_duplicate=False) if part is layer]:
                model.set_submodule(path, pair)
    return FactorisedLayers(ranks, left, before, _count(model))


def check_rank(owner: str, ratio: object, rank: object) -> None:
    number(owner, "ratio", ratio, 0)
    if not (isinstance(ratio, (int, float)) and ratio > 1):
        raise ValueError(f"{owner}: ratio is {ratio!r}; give a number above 1, such as 2.0 for half of the parameters.")
    if rank is not None:
        whole(owner, "rank", rank, 1)


def is_pair(part: nn.Module) -> bool:
    """Whether these are two linear layers, one behind the other, and the first has no bias."""
    if type(part) is not nn.Sequential or [type(it) for it in part] != [nn.Linear, nn.Linear]:
        return False
    return part[0].bias is None and part[0].out_features == part[1].in_features


def _rank(layer: nn.Linear, ratio: float, rank: int | None) -> int:
    """Of a layer's factors, as the authors round it."""
    if rank is not None:
        return rank
    return int(layer.in_features * layer.out_features // (ratio * (layer.in_features + layer.out_features)))


def _saves_nothing(layer: nn.Linear, own: int, asked: int | None) -> str | None:
    """Why a layer cannot be replaced at this rank, None if it can."""
    most = min(layer.in_features, layer.out_features)
    if own > most:
        return f"its rank is {most} at most"
    if own == 0:
        return "nothing of it would be left at this ratio"
    if asked is None and own * (layer.in_features + layer.out_features) >= layer.in_features * layer.out_features:
        return "two layers would have no fewer parameters"
    return None


def _weights_that_others_read(model: nn.Module) -> set[int]:
    """Ids of Linear layers' weights that are not theirs alone."""
    held = Counter(id(it) for part in model.modules() for it in part.parameters(recurse=False))
    found = {id(it.weight) for it in model.modules() if isinstance(it, nn.Linear) and held[id(it.weight)] != 1}
    for part in model.modules():
        # Its fast path takes the weights of its layers itself.
        if isinstance(part, nn.TransformerEncoderLayer):
            found |= {id(it.weight) for it in part.children() if isinstance(it, nn.Linear)}
    return found


def _pair(layer: nn.Linear, rank: int) -> nn.Sequential:
    """Two layers in the place of one; its bias is the second's, the very parameter."""
    up, down = low_rank_factors(layer.weight, rank)
    # On the meta device nothing is drawn.
    first = nn.Linear(layer.in_features, rank, bias=False, device="meta")
    second = nn.Linear(rank, layer.out_features, bias=layer.bias is not None, device="meta")
    first.weight = nn.Parameter(down, requires_grad=layer.weight.requires_grad)
    second.weight = nn.Parameter(up, requires_grad=layer.weight.requires_grad)
    second.bias = layer.bias
    return nn.Sequential(first, second).train(layer.training)


def _count(model: nn.Module) -> int:
    return sum(it.numel() for it in model.parameters())

"""PELA: every linear layer becomes two thin ones, which then learn from the network that was there before.

Guo, Wang and Kankanhalli 2023, arXiv:2310.10700. Symbols: W a layer's weight `(m, n)`, m outputs and n inputs;
W = U S V^T its singular value decomposition; r the rank that is kept; c `ratio`, epsilon `perturbation_radius`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from ..hooks._checks import number, whole
from ..hooks._fields import Fields
from ..hooks._frozen import part_name
from ..hooks._layer_names import patterns_of, that_match
from ..hooks.replaced import Replaced

__all__ = [
    "FactorisedLayers",
    "LowRank",
    "factorise",
    "feature_distillation_loss",
    "low_rank_factors",
    "weight_perturbation_loss",
]

# What the authors leave whole by name, and heads too small for any rank.
OMITTED = ("head", "patch_embed", "downsample", "norm")
FEWEST_OUTPUTS = 10


def low_rank_factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The two factors of the nearest matrix of a rank, each with the root of the singular values: U_r S_r^(1/2) and V.

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


def feature_distillation_loss(features: Sequence[Tensor], parents: Sequence[Tensor]) -> Tensor:
    """Mean squared difference between features and those of the parent, averaged over the layers.

    Args:
        features: What layers put out, of any shape, at least one.
        parents: What the same layers of the parent put out, without a gradient.

    >>> feature_distillation_loss([torch.ones(2, 3), torch.zeros(4)], [torch.zeros(2, 3), torch.zeros(4)])
    tensor(0.5000)
    """
    distances = [F.mse_loss(own, theirs) for own, theirs in zip(features, parents, strict=True)]
    return torch.stack(distances).mean()


def weight_perturbation_loss(
    factors: Sequence[tuple[Tensor, Tensor]], weights: Sequence[Tensor], radius: float = 0.0
) -> Tensor:
    """How far products of factors may stand from the weights they stand for: (max |A B - W| - radius)^2, the mean.

    Args:
        factors: A `(m, r)` and B `(r, n)` of each layer, at least one.
        weights: W of each layer, `(m, n)`.
        radius: Epsilon, the largest perturbation of a number that is asked for, at least 0.

    >>> weight_perturbation_loss([(torch.ones(2, 1), torch.ones(1, 2))], [torch.tensor([[1.0, 1.0], [1.0, 4.0]])])
    tensor(9.)
    """
    largest = [(up @ down - it).abs().max() for (up, down), it in zip(factors, weights, strict=True)]
    return (torch.stack(largest) - radius).square().mean()


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
    _check("factorise", ratio, rank)
    parts = {part_name(path): part for path, part in model.named_modules()}
    pairs = {name: part for name, part in parts.items() if _is_pair(part)}
    thin = {id(part) for pair in pairs.values() for part in pair.children()}
    linear = {name: part for name, part in parts.items() if type(part) is nn.Linear and id(part) not in thin}
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


@final
class LowRank(Replaced):
    """Trains a network whose linear layers are two thin ones each, taught by the network that was there before.

    At set-up, of a fit and also of `validate`, `test` and `predict`, `factorise` is applied to the module, with the
    weights that it has then; layers that are two already stay. While fitting, the loss gets two terms: the mean squared
    difference between features and those of the original, which is frozen and in evaluation mode, and the square of
    the largest perturbation of a weight beyond a radius. The layers stay after the fit, and files hold them. So a file
    needs a factorised module: give the Trainer this callback with the file, or call `factorise(module, ...)` before
    `load_state_dict`. What was factorised, what stayed and why, is told once.

    Args:
        ratio: c, above 1: a layer's factors have a c-th of its numbers (2 as the authors for DeiT-B, 1.5 for Swin-B).
        rank: Rank of all layers in the place of a ratio, at least 1, taken even where it saves nothing; None is none.
        layers: Names of the layers that are replaced, a shell pattern or a list of them; None is all.
        skip: Names of layers that stay, likewise; None are those that the authors leave: with `head`, `patch_embed`,
            `downsample` or `norm` in their name, or fewer than 10 outputs.
        distil_weight: Factor of the features' distance, at least 0; 1 as the authors, 0 is none.
        distil_layers: Names of the layers whose outputs are compared, likewise, as `network.blocks.?`; None are those
            that were replaced.
        perturbation_weight: Factor of the weights' perturbation, at least 0; 1 as the authors' run of Swin-B, 0 is
            none, as theirs of DeiT-B.
        perturbation_radius: Epsilon, in units of a weight, at least 0; 0 as the authors' run of Swin-B.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        name: Part of the state key.

    Shape:
        Linear layers on `(..., n)`. Images `(B, C, H, W)`; the module is called as `module(images)` for the original's
        features, if `distil_weight` is not 0.

    Raises:
        ValueError: from the constructor, for a setting out of range; at set-up, if a pattern matches nothing, if no
            layer can be factorised, or if terms of the loss are asked for under manual optimisation; before the first
            step, if these have weights and the original is not known.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import LowRank
        >>> trainer = Trainer(callbacks=[LowRank(ratio=2.0)], accelerator="cpu", logger=False)

    Reference: Guo et al. 2023, arXiv:2310.10700

    BibTeX:
        @inproceedings{guo2024pela,
          title = {{PELA}: Learning Parameter-Efficient Models with Low-Rank Approximation},
          author = {Guo, Yangyang and Wang, Guangzhi and Kankanhalli, Mohan},
          booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
          year = {2024},
          eprint = {2310.10700},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        Formulas follow the authors' code. There the outputs of a transformer's blocks are compared; `distil_layers`
        names them. A layer that would not become smaller stays.

    See also:
        `factorise`, the same without a Trainer; `LoRA`, whose low-rank updates leave the network's size.
    """

    neutral = "layers of the network are two thin ones; a network with its own layers is one without the callback"
    changes_architecture = (
        "two thin Linear layers stand where one was, so files hold their weights as NAME.0 and NAME.1"
    )

    def __init__(
        self,
        ratio: float = 2.0,
        rank: int | None = None,
        layers: str | list[str] | None = None,
        skip: str | list[str] | None = None,
        distil_weight: float = 1.0,
        distil_layers: str | list[str] | None = None,
        perturbation_weight: float = 1.0,
        perturbation_radius: float = 0.0,
        image_key: str = "image",
        name: str | None = None,
    ) -> None:
        _check("LowRank", ratio, rank)
        for argument, patterns in (("layers", layers), ("skip", skip), ("distil_layers", distil_layers)):
            patterns_of("LowRank", argument, patterns or [])
        number("LowRank", "distil_weight", distil_weight, 0)
        number("LowRank", "perturbation_weight", perturbation_weight, 0)
        number("LowRank", "perturbation_radius", perturbation_radius, 0)
        terms = {"feature_distillation": distil_weight, "weight_perturbation": perturbation_weight}
        super().__init__(weights={term: weight for term, weight in terms.items() if weight}, name=name)
        self.ratio, self.rank, self.layers, self.skip = ratio, rank, layers, skip
        self.distil_weight, self.distil_layers = distil_weight, distil_layers
        self.perturbation_weight, self.perturbation_radius = perturbation_weight, perturbation_radius
        self.image_key = image_key
        self.fields = Fields("LowRank", image_key, "target")

    def change(self, pl_module: LightningModule) -> str | None:
        done = factorise(pl_module, self.ratio, self.rank, self.layers, self.skip)
        stayed = "; ".join(f"{name} stays, for {reason}" for name, reason in done.left.items())
        if not done.ranks:
            if any(_is_pair(part) for part in pl_module.modules()):
                return None
            raise ValueError(
                f"LowRank: {type(pl_module).__name__} has no Linear layer to factorise ({stayed or 'it has none'}); "
                "make the network in the constructor, choose other layers or another ratio, or leave the callback out."
            )
        least, most = min(done.ranks.values()), max(done.ranks.values())
        ranks = f"rank {least}" if least == most else f"ranks {least} to {most}"
        return (
            f"LowRank: {len(done.ranks)} Linear layer{'s' * (len(done.ranks) > 1)} factorised at {ranks}; the module "
            f"has {done.after:,} parameters instead of {done.before:,}. {stayed}"
        ).strip()

    def originals(self, pl_module: LightningModule) -> Mapping[str, nn.Module]:
        found = {}
        for path, pair in pl_module.named_modules():
            if _is_pair(pair) and f"{path}.weight" in self.parent:
                outputs, inputs = self.parent[f"{path}.weight"].shape
                found[path] = nn.Linear(inputs, outputs, bias=f"{path}.bias" in self.parent, device="meta")
        return found

    def listened(self, pl_module: LightningModule) -> Sequence[str]:
        if not self.distil_weight:
            return ()
        parts = {part_name(path): path for path, _ in pl_module.named_modules() if path}
        if self.distil_layers is None:
            return [path for path in parts.values() if _is_pair(pl_module.get_submodule(path))]
        patterns = patterns_of("LowRank", "distil_layers", self.distil_layers)
        return [parts[name] for name in that_match("LowRank", "distil_layers", patterns, parts, "layers")]

    def term(self, pl_module: LightningModule, batch: Any, outputs: Mapping[str, list[Any]]) -> Mapping[str, Tensor]:
        terms = dict[str, Tensor]()
        if self.distil_weight:
            parents = self.parents_outputs(pl_module, self.fields.image(batch), list(outputs))
            pairs = [self._features(path, outputs[path][-1], parents[path]) for path in outputs]
            terms["feature_distillation"] = feature_distillation_loss(*zip(*pairs, strict=True))
        if self.perturbation_weight:
            named = dict(pl_module.named_parameters())
            # In full precision, whatever the rest is in: a largest difference has few digits.
            with torch.autocast(pl_module.device.type, enabled=False):
                factors = [(named[f"{path}.1.weight"], named[f"{path}.0.weight"]) for path in self.replaced]
                weights = [self.parent[f"{path}.weight"] for path in self.replaced]
                terms["weight_perturbation"] = weight_perturbation_loss(factors, weights, self.perturbation_radius)
        return terms

    def _features(self, path: str, own: Any, theirs: Any) -> tuple[Tensor, Tensor]:
        if isinstance(own, Tensor) and isinstance(theirs, Tensor) and own.shape == theirs.shape:
            return own, theirs
        came = [tuple(it.shape) if isinstance(it, Tensor) else type(it).__name__ for it in (own, theirs)]
        raise ValueError(
            f"LowRank: the layer {path!r} puts out {came[0]} in training_step and {came[1]} in the original's forward, "
            "which cannot be compared; choose others with distil_layers=."
        )


def _check(owner: str, ratio: object, rank: object) -> None:
    number(owner, "ratio", ratio, 0)
    if not (isinstance(ratio, (int, float)) and ratio > 1):
        raise ValueError(f"{owner}: ratio is {ratio!r}; give a number above 1, such as 2.0 for half of the parameters.")
    if rank is not None:
        whole(owner, "rank", rank, 1)


def _is_pair(part: nn.Module) -> bool:
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

"""PELA: every linear layer becomes two thin ones, which then learn from the network that was there before.

Guo, Wang and Kankanhalli 2023, arXiv:2310.10700. Symbols: W a layer's weight `(m, n)`, A `(m, r)` and B `(r, n)` the
factors in its place; c `ratio`, epsilon `perturbation_radius`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from ..hooks._checks import number
from ..hooks._fields import Fields
from ..hooks._frozen import part_name
from ..hooks._layer_names import patterns_of, that_match
from ..hooks.replaced import Replaced
from .factorise import check_rank, factorise, is_pair

__all__ = ["LowRank", "feature_distillation_loss", "weight_perturbation_loss"]


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
            layer can be factorised, beside `RobustPruning`, or if terms of the loss are asked for under manual
            optimisation; before the first step, if these have weights and a resumed file holds no original.

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
        check_rank("LowRank", ratio, rank)
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
            if _pairs(pl_module):
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
        for path in _pairs(pl_module):
            if f"{path}.weight" in self.parent:
                outputs, inputs = self.parent[f"{path}.weight"].shape
                found[path] = nn.Linear(inputs, outputs, bias=f"{path}.bias" in self.parent, device="meta")
        return found

    def listened(self, pl_module: LightningModule) -> Sequence[str]:
        if not self.distil_weight:
            return ()
        parts = {part_name(path): path for path, _ in pl_module.named_modules() if path}
        if self.distil_layers is None:
            return list(_pairs(pl_module))
        patterns = patterns_of("LowRank", "distil_layers", self.distil_layers)
        return [parts[name] for name in that_match("LowRank", "distil_layers", patterns, parts, "layers")]

    def term(self, pl_module: LightningModule, batch: Any, outputs: Mapping[str, list[Any]]) -> Mapping[str, Tensor]:
        terms = dict[str, Tensor]()
        if self.distil_weight:
            parents = self.parents_outputs(pl_module, self.fields.image(batch), list(outputs))
            pairs = [self._features(path, outputs[path][-1], parents[path]) for path in outputs]
            terms["feature_distillation"] = feature_distillation_loss(*zip(*pairs, strict=True))
        if self.perturbation_weight:
            # In full precision, whatever the rest is in: a largest difference has few digits.
            with torch.autocast(pl_module.device.type, enabled=False):
                found = _pairs(pl_module)
                factors = [(up.weight, down.weight) for down, up in found.values()]
                weights = [self._dense(path) for path in found]
                terms["weight_perturbation"] = weight_perturbation_loss(factors, weights, self.perturbation_radius)
        return terms

    def _dense(self, path: str) -> Tensor:
        """The weight `(m, n)` of a parent's layer, which may have been a pair itself."""
        if f"{path}.weight" in self.parent:
            return self.parent[f"{path}.weight"]
        return self.parent[f"{path}.1.weight"] @ self.parent[f"{path}.0.weight"]

    def _features(self, path: str, own: Any, theirs: Any) -> tuple[Tensor, Tensor]:
        if isinstance(own, Tensor) and isinstance(theirs, Tensor) and own.shape == theirs.shape:
            return own, theirs
        came = [tuple(it.shape) if isinstance(it, Tensor) else type(it).__name__ for it in (own, theirs)]
        raise ValueError(
            f"LowRank: the layer {path!r} puts out {came[0]} in training_step and {came[1]} in the original's forward, "
            "which cannot be compared; choose others with distil_layers=."
        )


def _pairs(pl_module: LightningModule) -> dict[str, Any]:
    return {path: part for path, part in pl_module.named_modules() if is_pair(part)}

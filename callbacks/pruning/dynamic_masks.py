"""Dynamic masks: for each image only the filters are computed that a small predictor expects to fire.

Elkerdawy et al. 2022, arXiv:2110.08232 ("fire together wire together", FTWT). Letters: B images, I input channels, C
filters, h and w of a layer's input, H and W of its output. The mass of a filter is the sum of its heat map, which is
what its activation puts out, as absolute values; r is the share of a layer's mass that the kept filters are to hold.
"""

from collections.abc import Mapping
from copy import deepcopy
from math import log
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..hooks._checks import number
from ..hooks._gated_units import GatedUnit, gated_units
from ..hooks._layer_names import patterns_of
from ..hooks.gates import Gates

__all__ = ["DynamicMasks", "FilterPredictor", "mass_target", "with_predictors"]

OPEN = 1.0  # logit of an untrained predictor, which keeps every filter


def mass_target(heat: Tensor, ratio: float) -> Tensor:
    """Of each image, the smallest set of filters whose heat maps hold a share of the mass, boolean `(B, C)`.

    Filters without mass are in no set, so a share of 1 keeps exactly those that are active.

    Args:
        heat: Heat maps `(B, C, H, W)`, >= 0, or their masses `(B, C)`.
        ratio: The share r, above 0 to 1.

    Example:
        >>> import torch
        >>> from lightning_vision.callbacks import mass_target
        >>> mass_target(torch.tensor([[5.0, 0.0, 3.0, 2.0]]), ratio=0.8)
        tensor([[ True, False,  True, False]])

    Reference: Elkerdawy et al. 2022, arXiv:2110.08232
    """
    # Double precision: shares close to 1 are told apart.
    mass = (heat.double().sum((2, 3)) if heat.ndim == 4 else heat.double()).contiguous()
    if ratio == 1.0:
        return mass > 0
    ordered, order = mass.sort(dim=1, descending=True)
    reached = ordered.cumsum(1)
    before = reached - ordered
    kept = torch.zeros_like(mass, dtype=torch.bool).scatter(1, order, before < ratio * reached[:, -1:])
    return kept & (mass > 0)


class FilterPredictor(nn.Linear):
    """Logits of the filters of a layer, from the largest value of each channel of the layer's input.

    It begins with weights of 0 and a logit of 1, which keeps every filter.

    Args:
        channels: Of the input, I.
        filters: Of the layer, C.

    Shape:
        Maps `(B, I, h, w)`, or their largest values `(B, I)`, to logits `(B, C)`.
    """

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__(channels, filters, device="meta")
        self.to_empty(device="cpu")
        nn.init.zeros_(self.weight)
        nn.init.constant_(self.bias, OPEN)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.amax((2, 3)) if input.ndim == 4 else input)


def with_predictors(model: nn.Module, state: Mapping[str, Any]) -> nn.Module:
    """A copy of a network, for inference, that computes of each image only the filters which predictors keep.

    Each masked convolution, with the batch norm behind it, becomes one layer that asks its predictor, gathers the
    kept filters, and leaves maps of zeros for the others; so time and multiplications are saved where filters are.
    Outputs are those that the Trainer's masks give. The copy is in eval mode and has no plain network's names: save the
    model and the state, and make it anew.

    Args:
        model: The network or LightningModule that was trained with `DynamicMasks`, or a part of it.
        state: The callback's `state_dict()`, or what a checkpoint holds under `callbacks`, `DynamicMasks`. Its names
            may go on above `model`: predictors of `network.conv1` fit the part `network` of the module.

    Raises:
        ValueError: the state has no predictors, or some of a layer that the model does not have.

    Example:
        >>> from torch import nn
        >>> from lightning_vision.callbacks import FilterPredictor, with_predictors
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> fast = with_predictors(net, {"predictors": {"0": FilterPredictor(3, 8).state_dict()}})

    Reference: Elkerdawy et al. 2022, arXiv:2110.08232
    """
    predictors = state.get("predictors")
    if not predictors:
        raise ValueError(
            "with_predictors: the state has no predictors; give `callback.state_dict()` after a fit with DynamicMasks, "
            "or `torch.load(file)['callbacks']['DynamicMasks']` of a whole checkpoint."
        )
    copy = deepcopy(model).eval()
    units = {unit.name: unit for unit in gated_units("with_predictors", copy, ())}
    paths = {id(part): name for name, part in copy.named_modules()}
    for name, values in predictors.items():
        near = next((it for it in units if it == name or name.endswith(f".{it}")), None)
        sizes = None if near is None else (units[near].conv.out_channels, units[near].conv.in_channels)
        if near is None or sizes != tuple(values["weight"].shape):
            raise ValueError(
                f"with_predictors: the state has a predictor of {name!r}, and {type(model).__name__} has no such "
                f"convolution before an activation, of its size, only {', '.join(units)}; give the network that was "
                "trained."
            )
        unit = units.pop(near)
        if unit.norm is not None:
            _put(copy, paths[id(unit.norm)], nn.Identity())
        _put(copy, paths[id(unit.conv)], _Gathering(unit, values, state.get("threshold", 0.5)))
    return copy


@final
class DynamicMasks(Gates):
    """Trains a network to compute, image by image, only the filters that small predictors expect to fire.

    For each chosen convolution a linear predictor sees the largest value of each channel of the layer's input and says
    which filters go on; maps of the others are zero, in training and whenever the Trainer evaluates. What the predictor
    learns, by binary cross-entropy, is the smallest set of filters that holds the share `ratio` of the image's
    activation in that layer. It has an optimizer of its own, so the two losses do not mix: the network learns under the
    masks, and no parameter, gradient clipping or schedule of the module knows of the predictors. In a fit all filters
    are computed and masked afterwards; `with_predictors` makes the network that leaves them out.

    Files are plain. A whole checkpoint holds the predictors in this callback's state, so `test` and `predict` with
    `ckpt_path` and the callback mask as the fit did; a weights-only file has lost them and holds a network that was
    trained under masks.

    Logged are `train/mask_loss`, and for each validation and test `filters_kept` and `flops_saved`, shares of the
    masked layers, the predictors' own multiplications counted.

    Args:
        ratio: Share r of a layer's mass that the kept filters hold, above 0 to 1; what is saved follows from it.
            Neutral: 1, which masks nothing.
        layers: Names of convolutions that are masked, a shell pattern or a list; None takes each that is followed,
            perhaps after a batch norm, by an activation alone.
        lr: Learning rate of the predictors' Adam, > 0.
        threshold: A filter is kept if its probability is above this, 0 to below 1.
        name: Part of the state key.

    Shape:
        Inputs `(B, I, h, w)`, masks `(B, C)`; I C + C parameters a layer.

    Raises:
        ValueError: from the constructor, for a setting out of range; before the first step, if a pattern matches no
            such convolution, there is none, or a checkpoint's predictors are of other layers.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import DynamicMasks
        >>> trainer = Trainer(callbacks=[DynamicMasks(ratio=0.9)], accelerator="cpu", logger=False)

    Reference: Elkerdawy et al. 2022, arXiv:2110.08232

    BibTeX:
        @inproceedings{elkerdawy2022fire,
          title = {Fire Together Wire Together: A Dynamic Pruning Approach with Self-Supervised Mask Prediction},
          author = {Elkerdawy, Sara and Elhoushi, Mostafa and Zhang, Hong and Ray, Nilanjan},
          booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
          year = {2022},
          eprint = {2110.08232},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        The mass of a filter is the sum of its map, where the authors' script takes the map's largest value; the set is
        the smallest that reaches r, where the script leaves out the filter that crosses r. Predictors begin by keeping
        everything instead of at random. Convolutions whose output is added to something first are left alone.

    See also:
        `mass_target`, what predictors learn, and `with_predictors`, the network that saves the time.
    """

    neutral = ({"ratio": 1.0},)

    def __init__(
        self,
        ratio: float = 0.9,
        layers: str | list[str] | None = None,
        lr: float = 0.01,
        threshold: float = 0.5,
        name: str | None = None,
    ) -> None:
        for argument, value in (("ratio", ratio), ("lr", lr), ("threshold", threshold)):
            number("DynamicMasks", argument, value, 0.0, 1.0)
        if not (ratio and lr and threshold < 1.0):
            raise ValueError(
                f"DynamicMasks: ratio is {ratio}, lr {lr} and threshold {threshold}; give a ratio and an lr above 0, "
                "and a threshold below 1."
            )
        patterns = () if layers is None else patterns_of("DynamicMasks", "layers", layers)
        super().__init__(patterns=patterns, lr=lr, name=name)
        self.ratio, self.layers, self.threshold = ratio, layers, threshold

    def predictor(self, unit: GatedUnit) -> FilterPredictor:
        return FilterPredictor(unit.conv.in_channels, unit.conv.out_channels)

    def summary(self, image: Tensor) -> Tensor:
        return image.amax((2, 3))

    def decided(self, logits: Tensor) -> Tensor:
        return logits > _logit(self.threshold)

    def target(self, heat: Tensor) -> Tensor:
        return mass_target(heat, self.ratio)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        return state | {"threshold": self.threshold} if state else state


class _Gathering(nn.Module):
    """A convolution and its batch norm that compute kept filters only, `(B, I, h, w)` to `(B, C, H, W)`."""

    def __init__(self, unit: GatedUnit, values: Mapping[str, Tensor], threshold: float) -> None:
        super().__init__()
        self.conv, self.norm, self.limit = unit.conv, unit.norm, _logit(threshold)
        self.predictor = FilterPredictor(unit.conv.in_channels, unit.conv.out_channels).to(unit.conv.weight.device)
        self.predictor.load_state_dict(dict(values))

    def forward(self, image: Tensor) -> Tensor:
        kept = self.predictor(image.float()) > self.limit
        spans = zip(image.shape[2:], *(getattr(self.conv, it) for it in _GEOMETRY), strict=True)
        size = [
            (side + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for side, pad, dilation, kernel, stride in spans
        ]
        result = image.new_zeros(len(image), self.conv.out_channels, *size)
        for row, filters in enumerate(kept):
            index = filters.nonzero().squeeze(1)
            if len(index):
                result[row].index_copy_(0, index, self._some(image[row : row + 1], index)[0])
        return result

    def _some(self, image: Tensor, index: Tensor) -> Tensor:
        conv, norm = self.conv, self.norm
        depthwise = conv.groups > 1
        kernels = conv.weight if len(index) == conv.out_channels else conv.weight.index_select(0, index)
        maps = F.conv2d(
            image.index_select(1, index) if depthwise else image,
            kernels,
            None if conv.bias is None else conv.bias[index],
            conv.stride,
            conv.padding,
            conv.dilation,
            len(index) if depthwise else 1,
        )
        if norm is None:
            return maps
        mean, variance, weight, bias = (
            None if it is None else it[index] for it in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        maps = F.batch_norm(maps, mean, variance, weight, bias, eps=norm.eps)
        own = getattr(norm, "act", None)
        return maps if own is None else own(maps)


_GEOMETRY = ("padding", "dilation", "kernel_size", "stride")


def _logit(probability: float) -> float:
    return float("-inf") if probability == 0.0 else log(probability / (1 - probability))


def _put(model: nn.Module, path: str, layer: nn.Module) -> None:
    owner, _, name = path.rpartition(".")
    model.get_submodule(owner).add_module(name, layer)

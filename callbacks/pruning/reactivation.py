"""Activating while pruning: a share of what is pruned goes to weights that hold dead ReLU units down.

A unit of a ReLU is dead for an image where it puts out zero; the share of such units in a batch is the dynamic dead
neuron rate. Taking away a weight whose contribution to the unit's input is never positive raises that input for every
image, so dead units can come alive and live ones stay so. Liu et al. 2022, arXiv:2212.06145; the rule for choosing
weights is this project's.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, final

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_vision.inspection.at_rest import at_rest

from ..hooks._checks import number
from ._asking import answer
from ._criterion import Criterion, Moment
from ._scores import keep_largest
from ._units import call_name, hooked, read_units, relus

__all__ = ["Reactivation", "dead_neuron_rate", "reactivation_masks", "reactivation_scores"]

# A unit that is dead for more than this share of images and places is a mostly dead one.
MOSTLY = 0.5


def dead_neuron_rate(
    module: nn.Module, images: Tensor, weights: Mapping[str, Tensor] | None = None
) -> dict[str, float]:
    """The share of zeros in what each ReLU of a network puts out, over a batch: its dynamic dead neuron rate.

    The module computes in evaluation mode and is left as it was.

    Args:
        module: Called on the images; its ReLUs are modules (`nn.ReLU`, `nn.ReLU6`).
        images: `(B, C, H, W)`.
        weights: In the place of the module's own, by parameter name.

    Returns:
        By the ReLU's name, in the order of the calls; the second call of one is `NAME:2`.

    Raises:
        ValueError: the module has no ReLU, or cannot be called on images.

    Example:
        >>> dead_neuron_rate(torch.nn.Sequential(torch.nn.ReLU()), torch.tensor([[1.0, -2.0, 0.0, 3.0]]))
        {'0': 0.5}
    """
    rates: dict[str, float] = {}

    def read(name: str, part: nn.Module, args: Any, output: Tensor) -> None:
        rates[call_name(name, rates)] = float((output == 0).sum(dtype=torch.int64)) / output.numel()

    with at_rest(module), torch.no_grad(), hooked(relus(module), read, None):
        answer("Reactivation", module, images, weights or {})
    return rates


def reactivation_scores(weight: Tensor, dead: Tensor, gain: Tensor, low: Tensor, high: Tensor, size: Tensor) -> Tensor:
    """By how much taking each weight away raises a mostly dead unit's input on average; 0 where that is not sure.

    It is sure if the weight's contribution, gain * weight * input, is at most 0 for each of its inputs. The score is
    then dead * |gain * weight| * size, for units that are dead more often than not.

    Args:
        weight: `(units, inputs, ...)`, masked ones at zero.
        dead: Share of images and places for which the unit is dead, `(units,)`, in [0, 1].
        gain: What the ReLU's input gains with the layer's output, `(units,)`: batch norm's factor; 0 if it has no sign.
        low: Least input, `(units, inputs)` or what broadcasts to it.
        high: Largest input, likewise.
        size: Mean of the inputs' absolute values, likewise.

    Example:
        >>> dead, gain, input = torch.tensor([0.75]), torch.tensor([1.0]), torch.tensor([[0.0]])
        >>> reactivation_scores(torch.tensor([[2.0, -2.0]]), dead, gain, input, input + 3.0, input + 1.0)
        tensor([[0.0000, 1.5000]])
    """
    behind = (...,) + (None,) * (weight.ndim - 2)
    dead, gain = dead[:, None][behind], gain[:, None][behind]
    low, high, size = low[behind], high[behind], size[behind]
    pull = gain * weight
    never_positive = ((pull < 0) & (low >= 0)) | ((pull > 0) & (high <= 0))
    return torch.where(never_positive & (dead > MOSTLY), dead * pull.abs() * size, 0.0)


def reactivation_masks(
    module: nn.Module, images: Tensor, weights: Mapping[str, Tensor], kept: Mapping[str, Tensor], budget: int
) -> dict[str, Tensor]:
    """Masks without up to `budget` weights whose removal activates dead units, the largest scores first.

    The gain is measured in root mean squares of the ReLU's input, so that layers compare. Layers are treated from the
    last to the first; one is left as it is if, on these images, the dead neuron rate of a treated ReLU were above what
    it was at first. So no treated ReLU's rate rises.

    Args:
        module: Called on the images.
        images: `(B, C, H, W)`.
        weights: By parameter name, masked ones at zero.
        kept: Their masks so far, boolean.
        budget: Weights that may go.

    Raises:
        ValueError: as `dead_neuron_rate`, or no layer among `weights` leads to a ReLU.
    """
    before = dead_neuron_rate(module, images, weights)
    units = read_units(module, images, weights)
    if not units:
        raise ValueError(
            f"Reactivation: no layer of {type(module).__name__} that may be pruned leads to an `nn.ReLU`, so no unit "
            "can be brought back; call such modules in its `forward`, or leave the share for reactivation 0."
        )
    scores = {
        name: reactivation_scores(weights[name], it.dead, it.gain, it.low, it.high, it.size)
        for name, it in units.items()
    }
    budget = min(budget, sum(int((score > 0).sum()) for score in scores.values()))
    if budget == 0:
        return dict(kept)
    chosen = keep_largest(scores, {name: kept[name] & (score > 0) for name, score in scores.items()}, budget)
    masks, treated = dict(kept), list[str]()
    for name in reversed(chosen):
        if not chosen[name].any():
            continue
        tried = {**masks, name: masks[name] & ~chosen[name]}
        after = dead_neuron_rate(module, images, {it: weights[it] * mask for it, mask in tried.items()})
        if all(after[relu] <= before[relu] for relu in (*treated, units[name].relu)):
            masks = tried
            treated.append(units[name].relu)
    return masks


@final
class Reactivation(Criterion):
    """Gives a share of each round's pruning to weights that hold dead ReLU units down, the rest to another criterion.

    The share is spent first, on the training batch that it is shown; what finds no such weight is spent by the other
    criterion too, so that as many weights are pruned as without it. Only layers whose output reaches a ReLU module of
    the same shape before the next layer are treated, through batch norm and sums.

    Args:
        base: The other criterion.
        share: In [0, 1]; 0 is the other criterion alone.

    Raises:
        ValueError: from the constructor, for a share out of range; from `fits` and `keep`, if the network has no ReLU
            module or cannot be called on images.

    Example:
        >>> from lightning_vision.callbacks.pruning.movement import Movement
        >>> from lightning_vision.callbacks.pruning.reactivation import Reactivation
        >>> criterion = Reactivation(Movement(), share=0.2)

    Reference: Liu et al. 2022, arXiv:2212.06145

    BibTeX:
        @article{liu2023ap,
          title = {{AP}: Selective Activation for De-sparsifying Pruned Networks},
          author = {Liu, Shiyu and Ghosh, Rohan and Tan, Dylan and Motani, Mehul},
          journal = {Transactions on Machine Learning Research},
          year = {2023},
          eprint = {2212.06145},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        Its abstract was at hand, not its rule. Which weights activate dead units is decided by the signs of their
        contributions on the batch, and a check of the rate after it. The rate is measured in evaluation mode, in which
        batch norm does not change with the weights.

    See also:
        `Pruning`, whose `reactivation` is the share.
    """

    needs_images = True

    def __init__(self, base: Criterion, share: float) -> None:
        number("Reactivation", "share", share, 0.0, 1.0)
        self.base, self.share = base, share

    def keep(self, moment: Moment, count: int) -> Mapping[str, Tensor]:
        left = sum(int(mask.sum()) for mask in moment.kept.values())
        budget = int(self.share * (left - count))
        if budget > 0:
            assert moment.images is not None
            kept = reactivation_masks(moment.module, moment.images, moment.weights, moment.kept, budget)
            weights = {name: weight * kept[name] for name, weight in moment.weights.items()}
            moment = replace(moment, kept=kept, weights=weights)
        return self.base.keep(moment, count)

    def fits(self, module: LightningModule) -> None:
        relus(module)
        self.base.fits(module)

    def observe(self, weights: Mapping[str, Tensor]) -> None:
        self.base.observe(weights)

    def state_dict(self) -> dict[str, Any]:
        return self.base.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.base.load_state_dict(state)

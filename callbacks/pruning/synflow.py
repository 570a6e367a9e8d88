"""SynFlow: pruning by the flow through a network, without looking at data.

All parameters are replaced by their absolute values and the network is shown an image of ones; R is the sum of what it
answers, and a weight's score is |dR/dw * w|, the part of R that passes through it. In each layer of a ReLU network
without biases the scores sum to R, so a layer with few weights left holds few, large ones, and none is emptied while
another has weights to give. Tanaka et al. 2020, arXiv:2006.05467, Eq. 2 and Algorithm 1.
"""

from collections.abc import Mapping
from typing import final

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from lightning_vision.inspection.at_rest import at_rest

from ..hooks._checks import whole
from ._asking import answer
from ._criterion import Criterion, Moment
from ._scores import keep_largest

__all__ = ["SynFlow", "synaptic_flow", "synflow_counts", "synflow_masks"]

# They take the mean of what comes in away, so ones do not flow through them in proportion.
CENTRING = (nn.LayerNorm, nn.GroupNorm, _InstanceNorm)


def synflow_counts(before: int, after: int, rounds: int) -> list[int]:
    """How many weights are left after each round, from `before` to `after` in equal proportions.

    After round k of n it is before * (after / before) ** (k / n), rounded (Algorithm 1, line 7); the last is `after`.

    Example:
        >>> synflow_counts(1000, 1, 3)
        [100, 10, 1]
    """
    return [round(before * (after / before) ** (k / rounds)) for k in range(1, rounds)] + [after]


def synaptic_flow(module: nn.Module, weights: Mapping[str, Tensor], images: Tensor) -> dict[str, Tensor]:
    """The part of the flow R that passes through each weight, by name, in double precision.

    The module computes in evaluation mode with the absolute values of all its parameters, and batch norms without the
    means that they have seen, so that nothing is negative. It is left as it was.

    Args:
        module: Called on images of ones.
        weights: Of which scores are wanted, in the place of the module's own, by parameter name.
        images: Whose shape `(B, C, H, W)` and device count, and nothing else; B becomes 1.

    Raises:
        ValueError: the module fails on ones or holds a norm that takes the input's mean away, or nothing flows.

    Example:
        >>> network = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False))
        >>> weights = {"0.weight": torch.tensor([[3.0, -4.0]])}
        >>> synaptic_flow(network, weights, torch.zeros(8, 2))
        {'0.weight': tensor([[3., 4.]], dtype=torch.float64)}
    """
    ones = torch.ones_like(images[:1], dtype=torch.float64)
    asked = {name: weight.detach().double().abs().requires_grad_() for name, weight in weights.items()}
    tensors = {name: it.detach().double().abs() for name, it in module.named_parameters() if name not in asked}
    tensors |= {name: it.double().abs() for name, it in module.named_buffers() if it.is_floating_point()}
    _refuse_centring(module)
    for path, part in module.named_modules():
        if isinstance(part, _BatchNorm) and part.running_mean is not None:
            tensors[f"{path}.running_mean"] = torch.zeros_like(part.running_mean, dtype=torch.float64)
    with at_rest(module):
        flow = answer("SynFlow", module, ones, {**tensors, **asked}).sum()
        found = torch.autograd.grad(flow, list(asked.values()), allow_unused=True) if flow.requires_grad else ()
    scores = {
        name: torch.zeros_like(weight) if gradient is None else (gradient * weight).detach().abs()
        for (name, weight), gradient in zip(asked.items(), found or [None] * len(asked), strict=True)
    }
    total = sum(float(score.sum()) for score in scores.values())
    if not 0 < total < float("inf"):
        raise ValueError(
            f"SynFlow: what {type(module).__name__} answers to an image of ones does not grow with its weights (scores "
            f"sum to {total}); let its `forward` return logits, or choose another criterion."
        )
    return scores


def synflow_masks(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    kept: Mapping[str, Tensor],
    images: Tensor,
    count: int,
    rounds: int,
) -> dict[str, Tensor]:
    """Masks that keep `count` weights by their flow, found in `rounds` rounds of scoring and pruning (Algorithm 1).

    Args:
        module: As in `synaptic_flow`.
        weights: As in `synaptic_flow`, masked ones at zero.
        kept: Their masks so far, boolean; none turns True again.
        images: Whose shape counts.
        count: Weights that stay.
        rounds: Above 0.
    """
    masks = dict(kept)
    left = sum(int(mask.sum()) for mask in kept.values())
    if left == count:
        return masks
    for fewer in synflow_counts(left, count, rounds):
        if fewer < left:
            pruned = {name: weight.detach() * masks[name] for name, weight in weights.items()}
            masks, left = keep_largest(synaptic_flow(module, pruned, images), masks, fewer), fewer
    return masks


@final
class SynFlow(Criterion):
    """Keeps the weights through which most flows from an image of ones to the outputs, without looking at data.

    Of the batch of images the shape alone counts. Weights, buffers, train flags and random streams of the network are
    as before.

    Args:
        rounds: Rounds of scoring and pruning of one question, above 0; 100 in the paper. 1 prunes by the first scores
            and may empty layers.

    Raises:
        ValueError: from the constructor, if `rounds` is no such number; from `fits`, if the network holds a norm that
            takes its input's mean away; from `keep`, as `synaptic_flow`.

    Example:
        >>> from lightning_vision.callbacks.pruning.synflow import SynFlow
        >>> SynFlow(rounds=100).needs_images  # for their shape
        True

    Reference: Tanaka et al. 2020, arXiv:2006.05467

    BibTeX:
        @inproceedings{tanaka2020pruning,
          title = {Pruning neural networks without any data by iteratively conserving synaptic flow},
          author = {Tanaka, Hidenori and Kunin, Daniel and Yamins, Daniel L. K. and Ganguli, Surya},
          booktitle = {Advances in Neural Information Processing Systems},
          year = {2020},
          eprint = {2006.05467},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        The authors' code takes the absolute value of batch norm's running means too, which is the same before training,
        where they are zero; here they are left out, so that the flow stays positive in a trained network. It computes
        in double precision, for R is a product over all layers.

    See also:
        `Pruning`, which asks it.
    """

    needs_images = True

    def __init__(self, rounds: int = 100) -> None:
        whole("SynFlow", "rounds", rounds, 1)
        self.rounds = rounds

    def fits(self, module: LightningModule) -> None:
        _refuse_centring(module)

    def keep(self, moment: Moment, count: int) -> Mapping[str, Tensor]:
        assert moment.images is not None
        return synflow_masks(moment.module, moment.weights, moment.kept, moment.images, count, self.rounds)


def _refuse_centring(module: nn.Module) -> None:
    for path, part in module.named_modules():
        if isinstance(part, CENTRING) or (isinstance(part, _BatchNorm) and part.running_mean is None):
            raise ValueError(
                f"SynFlow: {path} is a {type(part).__name__} that takes the mean of its input away, so no flow passes "
                "in proportion to the weights; choose another criterion."
            )

"""What shares of single samples need: blending before averaging, and the proof that a result keeps samples apart.

Letters: B samples, lam_i share of sample i, w class weights, y labels.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["blend", "keeps_samples_apart", "mean_or_sum", "reduces_samples", "weight_of_labels"]


def blend(own: Tensor, twin: Tensor, share: float | Tensor) -> Tensor:
    """`share * own + (1 - share) * twin`, with `share` a number or `(B,)` along the first dimension."""
    if isinstance(share, Tensor):
        share = share.to(torch.promote_types(own.dtype, torch.float32)).view(-1, *[1] * (own.ndim - 1))
    elif share in (0, 1):
        return own if share else twin
    return share * own + (1 - share) * twin


def mean_or_sum(reduction: str, own: Tensor, twin: Tensor, lam: Tensor, weights: Sequence[Tensor | None]) -> Tensor:
    """A loss of samples by torch's `reduction`, from what each costs with the own label and with the partner's.

    Args:
        reduction: `mean`, `sum` or `batchmean`.
        own: `(B, ...)`.
        twin: `(B, ...)`.
        lam: `(B,)`.
        weights: `weight_of_labels` in both worlds, by whose mixed sum a mean divides.
    """
    total = blend(own, twin, lam)
    if reduction == "sum":
        return total.sum()
    if reduction == "batchmean":
        return total.sum() / len(lam)
    ours, theirs = weights
    if ours is None or theirs is None:
        return total.mean()
    return total.sum() / blend(ours, theirs, lam).sum()


def reduces_samples(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether `sum` or `mean` with these arguments runs over the first dimension."""
    dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if dims is None:
        return True
    ndim = args[0].ndim
    return any(dim % ndim == 0 for dim in ([dims] if isinstance(dims, int) else dims))


def weight_of_labels(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """`w[y]`, 0 where y is ignored, by whose sum a cross entropy with integer labels divides; None for other losses."""
    labels: Tensor = args[1] if len(args) > 1 else kwargs["target"]
    if func not in (F.cross_entropy, F.nll_loss) or labels.is_floating_point():
        return None
    counted = labels != kwargs["ignore_index"]
    weight = kwargs["weight"]
    return counted.float() if weight is None else counted * weight[labels * counted]


def keeps_samples_apart(run: Callable[[Callable[[Any], Tensor]], Any], own: Any, twin: Any, size: int) -> bool:
    """Whether row i of a function of mixed arguments depends on the labels of sample i alone.

    Tried, not deduced: with the labels of some samples from the own world and of the others from the twin's, each row
    must be that of its world.

    Args:
        run: Computes the function; takes what to put in the place of a mixed argument.
        own: Its value for the own labels, a tensor or a sequence of tensors.
        twin: Its value for the partners' labels.
        size: B.
    """
    pairs = [(own, twin)] if isinstance(own, Tensor) else list(zip(own, twin, strict=True))
    if any(left.ndim == 0 or len(left) != size or left.shape != right.shape for left, right in pairs):
        return False
    rows = torch.arange(size, device=pairs[0][0].device)
    for chosen in (rows % 2 == 0, rows < size // 2):

        def pick(mixed: Any, chosen: Tensor = chosen) -> Tensor:
            return _by_row(chosen, mixed.own, mixed.twin)

        with torch.no_grad():
            tried = run(pick)
        for (left, right), value in zip(pairs, [tried] if isinstance(tried, Tensor) else tried, strict=True):
            if not torch.equal(_by_row(chosen, left, right).nan_to_num(), value.nan_to_num()):
                return False
    return True


def _by_row(chosen: Tensor, own: Tensor, twin: Tensor) -> Tensor:
    return torch.where(chosen.view(-1, *[1] * (own.ndim - 1)), own, twin)

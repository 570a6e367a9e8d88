"""Hearing the losses that a step takes, with what they were given, while it computes as ever."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["HeardLoss", "HeardLosses", "LabelsOutOfRangeError", "labels_in"]

_LOSSES = {
    F.cross_entropy: "cross_entropy",
    F.nll_loss: "nll_loss",
    F.binary_cross_entropy: "binary_cross_entropy",
    F.binary_cross_entropy_with_logits: "binary_cross_entropy_with_logits",
}
# Steps of autograd that leave numbers as they are, or in their range.
_SHAPES = (
    *("Alias", "Cat", "Clamp", "Clone", "Expand", "Index", "IndexSelect", "Permute", "ReshapeAlias", "Select"),
    *("Slice", "Split", "Squeeze", "Stack", "T", "ToCopy", "Transpose", "Unbind", "UnsafeView", "Unsqueeze", "View"),
)


@dataclass(frozen=True)
class HeardLoss:
    """A loss that was taken.

    Args:
        kind: torch's name of the function.
        given: What it was given to judge, `(N, K)` for a cross entropy.
        target: What it was judged by.
        settings: Further arguments by name.
        of_batch: Whether the target holds the values of one of the batch's labels, once or repeated for several views,
            or has its largest shares where they say. Not if it counts the rows, as a contrastive loss does.
        by_sigmoid: Whether a sigmoid has put out what was given.
    """

    kind: str
    given: Tensor
    target: Tensor
    settings: dict[str, Any]
    of_batch: bool
    by_sigmoid: bool = False


class LabelsOutOfRangeError(Exception):
    """Raised in the place of a loss whose labels name classes that are not there, which a GPU does not survive.

    Args:
        heard: The loss.
    """

    def __init__(self, heard: HeardLoss) -> None:
        super().__init__(f"labels from {int(heard.target.min())} to {int(heard.target.max())}")
        self.heard = heard


class HeardLosses(TorchFunctionMode):
    """Inside, losses of torch are kept in `losses` as they are taken.

    Args:
        labels: Of the batch, see `labels_in`.
    """

    def __init__(self, labels: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.labels, self.losses = list(labels), list[HeardLoss]()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if (kind := _LOSSES.get(func)) is not None:
            settings = dict(kwargs)
            given, target = (
                args[place] if len(args) > place else settings.pop(name)
                for place, name in enumerate(("input", "target"))
            )
            by_sigmoid = _by_sigmoid(given)
            heard = HeardLoss(kind, given.detach(), target.detach(), settings, self._is_label(target), by_sigmoid)
            self.losses.append(heard)
            if _out_of_range(heard):
                raise LabelsOutOfRangeError(heard)
        return func(*args, **kwargs)

    def _is_label(self, target: Tensor) -> bool:
        """Whether it is one of them, once or several times in a row, or has its largest shares where they say."""
        target = target.detach()
        counts = torch.arange(target.numel(), device=target.device)
        if len(counts) > 1 and target.dtype == counts.dtype and torch.equal(target, counts):
            return False
        flats = [target.flatten()]
        if target.is_floating_point() and target.ndim > 1 and target.shape[1] > 1:
            flats.append(target.argmax(1).flatten())
        return any(_repeats(flat, it.to(flat.device)) for flat in flats for it in self.labels)


def _by_sigmoid(given: Tensor) -> bool:
    """By the graph of gradients, behind what only cuts and shapes numbers, and only if all came from sigmoids."""
    nodes = [given.grad_fn]
    while nodes:
        node = nodes.pop()
        name = "" if node is None else node.name().rstrip("0123456789").removesuffix("Backward")
        if node is not None and name in _SHAPES:
            nodes += [before for before, _ in node.next_functions if before is not None]
        elif name != "Sigmoid":
            return False
    return True


def _repeats(values: Tensor, labels: Tensor) -> bool:
    """Whether one follows from the other by repetition: each view after the other, or the views of each sample."""
    times, rest = divmod(len(values), len(labels)) if len(labels) else (0, 1)
    if rest or not times or (len(labels) == 1 and times > 1):
        return False
    return torch.equal(values, labels.repeat(times)) or torch.equal(values, labels.repeat_interleave(times))


def labels_in(batch: Any) -> list[Tensor]:
    """What may be labels in a batch: tensors of one or two dimensions, and of any that hold integers, flattened."""
    if isinstance(batch, Tensor):
        fits = batch.ndim in (1, 2) or (batch.ndim > 2 and batch.dtype == torch.int64)
        return [batch.detach().flatten()] if fits else []
    parts = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, (list, tuple)) else ()
    return [found for part in parts for found in labels_in(part)]


def _out_of_range(heard: HeardLoss) -> bool:
    target, given = heard.target, heard.given
    if heard.kind not in ("cross_entropy", "nll_loss") or target.is_floating_point() or not target.numel():
        return False
    counted = target[target != heard.settings.get("ignore_index", -100)]
    classes = given.shape[1] if given.ndim > 1 else given.shape[0]
    return bool(counted.numel()) and not 0 <= int(counted.min()) <= int(counted.max()) < classes

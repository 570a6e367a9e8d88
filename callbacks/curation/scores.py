"""Scores of training samples that tell early in training which are worth their time.

Paul, Ganguli and Dziugaite 2021, arXiv:2107.07075, Definitions 2.1 (GraNd) and 2.2 (EL2N). Symbols: p(x) the softmax of
the logits, y the label as shares of classes, w the weights, l the cross entropy; N samples.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from ..hooks.recorded_losses import sample_losses

__all__ = ["el2n", "grand", "hardest_samples", "read_scores", "write_scores"]

# Numbers in all gradients of the samples that are computed at once.
_AT_ONCE = 2**26


def el2n(logits: Tensor, targets: Tensor) -> Tensor:
    """EL2N scores, the Euclidean norm of the error: `||p(x) - y||`, float32 `(B,)`, 0 to sqrt(2).

    Args:
        logits: `(B, K)`.
        targets: Classes, int64 `(B,)`, or shares of classes `(B, K)`.

    Example:
        >>> el2n(torch.zeros(1, 2), torch.tensor([0]))
        tensor([0.7071])
    """
    shares = nn.functional.one_hot(targets, logits.shape[1]) if targets.ndim == 1 else targets
    return (logits.float().softmax(1) - shares).norm(dim=1)


def grand(network: nn.Module, images: Tensor, targets: Tensor, last_layer_only: bool = False) -> Tensor:
    """GraNd scores, the Euclidean norm of each sample's gradient: `||grad_w l(p(x), y)||`, float32 `(B,)`.

    Args:
        network: `(B, C, H, W)` to logits `(B, K)`, in evaluation mode, so that samples do not see one another.
        images: `(B, C, H, W)`.
        targets: Classes, int64 `(B,)`, or shares of classes `(B, K)`.
        last_layer_only: Of the weights of that `nn.Linear` alone which the network calls last, at the cost of about two
            forward passes.

    Raises:
        ValueError: no `nn.Linear` is called.
    """
    weights = {name: it.detach() for name, it in network.named_parameters()}
    chosen = {name: weights[name] for name, it in network.named_parameters() if it.requires_grad}
    if last_layer_only:
        layer = _last_called(network, images[:1])
        chosen = {name: it for name, it in weights.items() if name.startswith(layer)}

    def loss(changed: dict[str, Tensor], image: Tensor, target: Tensor) -> Tensor:
        logits = functional_call(network, changed, (image[None],))
        return sample_losses(logits, target[None])[0]

    size = sum(it.numel() for it in chosen.values())
    gradients_of = vmap(grad(loss), in_dims=(None, 0, 0), randomness="same")
    norms = []
    for part, labels in zip(*(it.split(max(1, _AT_ONCE // size)) for it in (images, targets)), strict=True):
        each = gradients_of(chosen, part, labels).values()
        norms.append(sum(it.float().flatten(1).square().sum(1) for it in each).sqrt())
    return torch.cat(norms)


def _last_called(network: nn.Module, image: Tensor) -> str:
    """How names of the weights of that `nn.Linear` begin which is called last; one registered last may be another."""
    called: list[str] = []
    layers = {name: part for name, part in network.named_modules() if isinstance(part, nn.Linear)}
    hooks = [part.register_forward_hook(lambda *_, name=name: called.append(name)) for name, part in layers.items()]
    try:
        with torch.no_grad():
            network(image)
    finally:
        for hook in hooks:
            hook.remove()
    if not called:
        raise ValueError("a network without nn.Linear has no last layer; leave out last_layer_only")
    return f"{called[-1]}." if called[-1] else ""


def hardest_samples(scores: Tensor, keep_fraction: float, drop_top_fraction: float = 0.0) -> Tensor:
    """Positions of the samples that a data diet keeps, int64, rising.

    Of N samples the `round(drop_top_fraction N)` of highest score go, as they may be wrongly labelled, and of the
    others the `round(keep_fraction N)` of highest score stay.

    Args:
        scores: `(N,)`; a NaN counts as lowest.
        keep_fraction: Above 0, at most 1.
        drop_top_fraction: 0 to below 1.

    Example:
        >>> hardest_samples(torch.tensor([0.1, 0.9, 0.5, 0.3]), 0.5, 0.25).tolist()
        [2, 3]
    """
    ranked = scores.nan_to_num(-1.0).argsort(descending=True, stable=True)
    dropped = round(drop_top_fraction * len(scores))
    return ranked[dropped:][: max(1, round(keep_fraction * len(scores)))].sort().values


def write_scores(file: Path, scores: Tensor) -> None:
    """Write a data diet's scores as CSV: `position,score`, one line a training sample."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerow(["position", "score"])
        writer.writerows(enumerate(scores.tolist()))


def read_scores(files: Sequence[str | Path]) -> Tensor:
    """The mean of the scores in files of a data diet, as of several first weights, float32 `(N,)`.

    Raises:
        ValueError: a file is missing, is none of scores, or has another number of them than the first.
    """
    read: list[Tensor] = []
    for file in files:
        try:
            with Path(file).open(newline="", encoding="utf-8") as lines:
                rows = [(int(row["position"]), float(row["score"])) for row in csv.DictReader(lines)]
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{file} cannot be read as scores of samples ({error}); give a file of DataDiet") from None
        if [position for position, _ in rows] != list(range(len(rows))) or (read and len(rows) != len(read[0])):
            raise ValueError(f"{file} has not the scores of the samples of {files[0]}; give files of one training set")
        read.append(torch.tensor([score for _, score in rows]))
    return torch.stack(read).mean(0)

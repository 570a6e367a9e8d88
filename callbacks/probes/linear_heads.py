"""Many linear classifiers of the same features at once, and the one that few labels define.

A grid of learning rates and weight decays is trained in one go, as in the evaluations of Oquab et al. 2023,
arXiv:2304.07193: every head sees the same batches, and what differs is a number a head. Letters: N features, D their
size, K classes, G heads, B samples of a batch; X `(N, D)`, W `(G, D, K)`, b `(G, K)`.

The gradient of the cross entropy of a linear head is written out, for a batch:

    P = softmax(X W_g + b_g),    dL/dW_g = X^T (P - Y) / B,    dL/db_g = sum over the batch of (P - Y) / B

so that two matrix products of `(B, D)` and `(D, G K)` move all heads.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

__all__ = [
    "batches_of_an_epoch",
    "few_a_class",
    "head_logits",
    "head_scores",
    "held_out",
    "logistic_regression",
    "members_of_classes",
    "standardised",
    "train_heads",
]

# L-BFGS: the largest gradient at which the minimum counts as found, and the most passes over the features to get there.
FLAT, PASSES = 1e-6, 500
# Numbers among the answers of all heads that are held at a time.
ANSWERS = 2**24


def head_logits(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Answers of all heads, `(N, D)`, `(G, D, K)` and `(G, K)` to `(N, G, K)`."""
    heads, size, classes = weight.shape
    flat = weight.transpose(0, 1).reshape(size, heads * classes)
    return torch.addmm(bias.flatten(), features, flat).view(len(features), heads, classes)


def head_scores(features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Share of samples that each head classifies rightly, and its mean cross entropy, `(G,)` each.

    A bounded number of answers is held at a time.
    """
    right, loss = bias.new_zeros(len(weight)), bias.new_zeros(len(weight))
    rows = max(1, ANSWERS // bias.numel())
    for some, own in zip(features.split(rows), labels.split(rows), strict=True):
        answers = head_logits(some, weight, bias)
        right += (answers.argmax(2) == own[:, None]).sum(0)
        told = own[:, None, None].expand(-1, len(weight), 1)
        loss -= answers.log_softmax(2).gather(2, told).sum((0, 2))
    return right / len(labels), loss / len(labels)


def batches_of_an_epoch(samples: int, batch_size: int, random: Generator) -> list[Tensor]:
    """Positions of all samples in batches, in an order drawn from `random`; the last batch may be smaller."""
    return list(torch.randperm(samples, generator=random).split(batch_size))


def train_heads(
    features: Tensor,
    labels: Tensor,
    start: Tensor,
    rates: Sequence[float],
    decays: Sequence[float],
    batches: Sequence[Tensor],
    momentum: float = 0.9,
) -> tuple[Tensor, Tensor]:
    """Train G heads on the same batches by SGD with momentum, each rate falling along half a cosine to 0.

    Step t of T uses `rate * (1 + cos(pi t / T)) / 2`. Momentum and weight decay are `torch.optim.SGD`'s (decay joins
    the gradient, of biases too); weights start at `start` and biases at 0.

    Args:
        features: Float32 `(N, D)`.
        labels: Classes, int64 `(N,)`, 0 .. K - 1.
        start: Weights that every head begins with, `(D, K)`.
        rates: Learning rate of each head at its beginning, G of them.
        decays: Weight decay of each head.
        batches: Positions in `features`, int64, for each of the T steps.
        momentum: In [0, 1).

    Returns:
        Weights `(G, D, K)` and biases `(G, K)`.
    """
    size, classes = start.shape
    heads = len(rates)
    # The bias is the weight of a feature that is always 1. A row a feature, all heads side by side.
    weights = torch.cat([start, start.new_zeros(1, classes)]).repeat(1, heads)
    inputs = F.pad(features, (0, 1), value=1.0)
    columns = weights.new_tensor(list(rates)).repeat_interleave(classes)
    decay = weights.new_tensor(list(decays)).repeat_interleave(classes)
    decays_any = any(decays)
    velocity = torch.zeros_like(weights)
    for step, batch in enumerate(batches):
        batch = batch.to(inputs.device)
        given, targets = inputs[batch], labels[batch]
        error = (given @ weights).view(len(batch), heads, classes).softmax(2)
        error[torch.arange(len(batch), device=error.device), :, targets] -= 1
        gradient = given.T @ error.view(len(batch), heads * classes).div_(len(batch))
        if decays_any:
            gradient.addcmul_(weights, decay)
        velocity.mul_(momentum).add_(gradient)
        factor = (1 + math.cos(math.pi * step / len(batches))) / 2
        weights.addcmul_(velocity, columns, value=-factor)
    found = weights.view(size + 1, heads, classes).transpose(0, 1)
    return found[:, :-1].contiguous(), found[:, -1].contiguous()


def logistic_regression(features: Tensor, labels: Tensor, classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    """The head that minimises a convex loss, found on all features at once by L-BFGS, in float64.

        sum over samples of the cross entropy + penalty / 2 * (sum of squares of W)

    scikit-learn's `LogisticRegression` minimises the same with `C = 1 / penalty`. The bias is not penalised.

    Args:
        features: `(N, D)`, best of about unit size.
        labels: Classes, int64 `(N,)`.
        classes: K; those without a sample are answered with the least likelihood.
        penalty: Above 0.

    Returns:
        Weights `(1, D, K)` and biases `(1, K)`, float32.
    """
    inputs = features.double()
    weight = inputs.new_zeros(features.shape[1], classes, requires_grad=True)
    bias = inputs.new_zeros(classes, requires_grad=True)
    # Both are divided by N, which moves no minimum and keeps gradients of one size, by which the end is told.
    search = torch.optim.LBFGS(
        [weight, bias],
        max_iter=PASSES,
        max_eval=2 * PASSES,
        tolerance_grad=FLAT,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        search.zero_grad()
        own = F.cross_entropy(inputs @ weight + bias, labels) + penalty / (2 * len(inputs)) * weight.square().sum()
        own.backward()
        return own

    with torch.enable_grad():
        search.step(loss)
    return weight.detach().float()[None], bias.detach().float()[None]


def standardised(features: Tensor, by: Tensor) -> Tensor:
    """Features `(N, D)` less the mean of `by` `(M, D)`, divided by its standard deviation; constant ones become 0."""
    mean, deviation = by.mean(0), by.std(0, correction=0)
    alive = deviation > 1e-6 * by.abs().amax(0).clamp_min(1e-30)
    return torch.where(alive, (features - mean) / deviation.where(alive, torch.ones_like(deviation)), 0.0)


def members_of_classes(labels: Tensor, random: Generator) -> list[Tensor]:
    """Positions of the samples of each class that occurs, lower classes first, in an order drawn from `random`."""
    order = torch.randperm(len(labels), generator=random)
    ordered = labels.cpu()[order]
    return [order[ordered == label] for label in ordered.unique().tolist()]


def few_a_class(labels: Tensor, count: int, random: Generator) -> Tensor:
    """Positions of `count` samples of each class that occurs, of smaller ones all, drawn from `random`; ascending."""
    chosen = [members[:count] for members in members_of_classes(labels, random)]
    return torch.cat([torch.empty(0, dtype=torch.int64), *chosen]).sort().values


def held_out(labels: Tensor, fraction: float, random: Generator) -> tuple[Tensor, Tensor]:
    """Positions to train on and positions to choose by, int64 ascending, which hold `fraction` of every class.

    A class of one sample is trained on; of any other at least one sample is held out.
    """
    kept, apart = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.int64)]
    for members in members_of_classes(labels, random):
        count = 0 if len(members) == 1 else min(max(1, round(fraction * len(members))), len(members) - 1)
        apart.append(members[:count])
        kept.append(members[count:])
    return torch.cat(kept).sort().values, torch.cat(apart).sort().values

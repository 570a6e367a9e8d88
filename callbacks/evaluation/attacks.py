"""Attacks on classifiers: small changes of images, found by gradients, after which the answer is wrong.

Goodfellow et al. 2014, arXiv:1412.6572 (FGSM); Carlini and Wagner 2016, arXiv:1608.04644, section VI-A (C&W). Letters:
x images, delta their change, y labels, Z logits, kappa the confidence that is asked for, c the factor of the misfit.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["carlini_wagner", "fgsm"]

Classifier = Callable[[Tensor], Tensor]
# Where the authors stop raising c.
LARGEST = 1e10


def fgsm(
    model: Classifier, images: Tensor, labels: Tensor, epsilon: float, low: float = 0.0, high: float = 1.0
) -> Tensor:
    """Images moved by one step of the size epsilon along the sign of the loss's gradient, and cut to their range.

    It is x + epsilon sign(dL/dx) with L the cross entropy. The gradient is taken whether or not gradients are enabled.

    Args:
        model: Maps images to logits `(B, K)`.
        images: `(B, C, H, W)`, within `low` to `high`; left alone.
        labels: int64 `(B,)`.
        epsilon: Step, in the unit of the images, >= 0; 0 leaves them as they are.
        low: Least value of an image.
        high: Largest value of an image.

    Example:
        >>> import torch
        >>> from lightning_vision.callbacks import fgsm
        >>> fgsm(lambda x: torch.stack([x.sum(1), -x.sum(1)], 1), torch.tensor([[0.5]]), torch.tensor([0]), 0.1)
        tensor([[0.4000]])

    Reference: Goodfellow et al. 2014, arXiv:1412.6572
    """
    with torch.enable_grad():
        given = images.detach().clone().requires_grad_(True)
        # The sum, so that an image's gradient does not shrink with the others in the batch.
        loss = F.cross_entropy(model(given), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, given)
    return (images + epsilon * gradient.sign()).clamp(low, high)


def carlini_wagner(
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    targeted: bool = False,
    kappa: float = 0.0,
    steps: int = 1000,
    searches: int = 9,
    lr: float = 0.01,
    first_c: float = 1e-3,
    low: float = 0.0,
    high: float = 1.0,
) -> Tensor:
    """Images that are answered wrongly, each as near to its original as Adam finds; where it finds none, the original.

    Minimised is |delta|^2 + c max(Z_y - max_(i != y) Z_i, -kappa), or with a target class t the same with
    max_(i != t) Z_i - Z_t, over w, where x + delta = tanh(w) between `low` and `high`. The least c that succeeds is
    looked for image by image: bisection, and tenfold as long as none has. Of all steps of all searches the nearest
    image that succeeds is kept.

    Args:
        model: Maps images to logits `(B, K)`, K >= 2.
        images: `(B, C, H, W)`, within `low` to `high`; left alone.
        labels: int64 `(B,)`: what they are, or with `targeted` what they shall be taken for.
        targeted: Whether the labels are targets.
        kappa: By how much the wrong logit must lead, >= 0.
        steps: Steps of Adam a search, >= 1; 1000 in the authors' scripts, as all defaults.
        searches: Values of c that are tried, >= 1.
        lr: Learning rate of Adam, on w.
        first_c: The first c, above 0.
        low: Least value of an image.
        high: Largest value of an image.

    Example:
        >>> import torch
        >>> from lightning_vision.callbacks import carlini_wagner
        >>> line = lambda x: torch.cat([x, 1 - x], 1)
        >>> carlini_wagner(line, torch.tensor([[0.6]]), torch.tensor([0]), steps=100, first_c=1.0).round(decimals=2)
        tensor([[0.5000]])

    Reference: Carlini and Wagner 2016, arXiv:1608.04644

    Differs from the paper:
        A search is never ended early.
    """
    middle, half = (high + low) / 2, (high - low) / 2
    original = images.detach().clone()
    # A little inside, for the ends of the range lie at infinity.
    start = torch.atanh((original - middle) / half * (1 - 1e-6))
    best, nearest = original.clone(), original.new_full((len(original),), torch.inf)
    c, least = original.new_full((len(original),), first_c), original.new_zeros(len(original))
    largest = torch.full_like(least, LARGEST)
    for _ in range(searches):
        succeeded = torch.zeros_like(nearest, dtype=torch.bool)
        moved = start.clone().requires_grad_(True)
        adam = torch.optim.Adam([moved], lr=lr)
        for _ in range(steps):
            with torch.enable_grad():
                attempt = middle + half * moved.tanh()
                squares = (attempt - original).flatten(1).square().sum(1)
                misfit = _misfit(model(attempt), labels, targeted)
                loss = (squares + c * misfit.clamp(min=-kappa)).sum()
                (moved.grad,) = torch.autograd.grad(loss, moved)
            with torch.no_grad():
                hit = (misfit < 0) & (misfit <= -kappa)
                succeeded |= hit
                nearer = hit & (squares < nearest)
                nearest = torch.where(nearer, squares, nearest)
                best[nearer] = attempt.to(best.dtype)[nearer]
            adam.step()
        largest = torch.where(succeeded, torch.minimum(largest, c), largest)
        least = torch.where(succeeded, least, torch.maximum(least, c))
        c = torch.where(largest < LARGEST, (least + largest) / 2, c * 10)
    return best


def _misfit(logits: Tensor, labels: Tensor, targeted: bool) -> Tensor:
    """What is to become negative, `(B,)`: by how much the label leads, or with targets how far it is behind."""
    own = logits.gather(1, labels[:, None])[:, 0]
    others = logits.masked_fill(F.one_hot(labels, logits.shape[1]).bool(), -torch.inf).amax(1)
    return others - own if targeted else own - others

"""The picture of BD-KD: what each divergence makes of a student that cannot follow its teacher, and how they share."""

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_vision.callbacks.distillation.bd_kd import bd_kd_loss, bd_kd_weights

__all__ = ["draw"]

CLASSES = torch.arange(12.0)
FITS = {"forward alone": (1.0, 0.0, "C0"), "reverse alone": (0.0, 1.0, "C1"), "both, by entropies": (1.0, 1.0, "C3")}


def draw() -> Figure:
    """A student of one bump fitted to a teacher of two, by each divergence; weights along the student's entropy."""
    teacher = torch.log(0.62 * _bump(3.0, 0.9).exp() + 0.38 * _bump(8.5, 1.0).exp())
    figure = Figure(figsize=(10, 3.3), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.4, 1))
    left.bar(CLASSES, teacher.exp(), color="0.85", label="teacher")
    for label, (alpha, beta, colour) in FITS.items():
        left.plot(CLASSES, _fitted(teacher, alpha, beta).exp(), f"{colour}o-", markersize=4, label=label)
    left.set(xlabel="class", ylabel="probability", xticks=CLASSES[::2])
    left.legend(frameon=False, fontsize=9)
    logits = torch.linspace(0, 3, 60)[:, None] * _bump(3.0, 0.9)
    entropies = torch.special.entr(logits.softmax(dim=1)).sum(dim=1)
    for rule, style in (("share", "-"), ("step", ":")):
        weights = bd_kd_weights(logits, teacher.expand(60, -1), 1.0, rule)  # type: ignore[arg-type]  # is one of the rules
        for name, weight, colour in zip(("forward", "reverse"), weights, ("C0", "C1"), strict=True):
            right.plot(entropies, weight, f"{colour}{style}", label=f"{name}, {rule}")
    own = torch.special.entr(teacher.exp()).sum()
    right.axvline(own, color="0.6", linewidth=0.8)
    right.text(own + 0.03, 0.03, "teacher's", fontsize=8, color="0.4")
    right.set(xlabel="entropy of the student's answer", ylabel="weight of the divergence", ylim=(-0.08, 2.08))
    right.legend(frameon=False, fontsize=8, loc=(0.01, 0.78), ncols=2)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _bump(centre: float | Tensor, width: float | Tensor) -> Tensor:
    """Log probabilities `(12,)` of a bell over the classes."""
    return (-((CLASSES - centre) ** 2) / (2 * width**2)).log_softmax(dim=0)


def _fitted(teacher: Tensor, alpha: float, beta: float) -> Tensor:
    """The bump, in centre and width, that descends the loss."""
    place = torch.tensor([3.5, 0.2], requires_grad=True)
    optimizer = torch.optim.Adam([place], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        bump = _bump(place[0], place[1].exp())
        bd_kd_loss(bump[None], teacher[None], alpha, beta, temperature=1.0).backward()
        optimizer.step()
    centre, width = place.detach()
    return _bump(centre, width.exp())

"""The picture of decoupled distillation: what the sure teacher's other classes count, and what is lost with them."""

import torch
from matplotlib.figure import Figure

from lightning_vision.callbacks import decoupled_kd_loss, kd_loss

__all__ = ["draw"]

BETA = 2.0


def draw() -> Figure:
    """A teacher of ten classes that grows surer: the weight of the other classes, and how strongly they pull."""
    random = torch.Generator().manual_seed(0)
    beside = torch.randn(10, generator=random)
    label = torch.tensor([0])
    sure, of_kd, pulls, pulls_of_kd = list[float](), list[float](), list[float](), list[float]()
    for raised in torch.linspace(-2, 10, 60):
        teacher = beside.clone()
        teacher[0] = raised
        p = teacher.softmax(0)[0].item()
        sure.append(p)
        of_kd.append(1 - p)
        for loss, found in ((_decoupled, pulls), (_ordinary, pulls_of_kd)):
            student = torch.zeros(1, 10)
            student[0, 0] = raised
            student.requires_grad_()
            (gradient,) = torch.autograd.grad(loss(student, teacher[None], label), student)
            found.append(gradient[0, 1:].norm().item())
    figure = Figure(figsize=(9, 3.2))
    weight, pull = figure.subplots(1, 2)
    weight.plot(sure, of_kd, "0.5", label="distillation: 1 - p")
    weight.plot(sure, [BETA] * len(sure), "C3", label=f"decoupled: beta = {BETA:g}")
    weight.set(xlabel="the teacher's p of the label", ylabel="weight of the other classes", ylim=(0, 2.5))
    pull.plot(sure, pulls_of_kd, "0.5", label="distillation")
    pull.plot(sure, pulls, "C3", label="decoupled")
    pull.set(xlabel="the teacher's p of the label", ylabel="gradient of the other logits", yscale="log")
    for axes in (weight, pull):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


def _decoupled(student: torch.Tensor, teacher: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    return decoupled_kd_loss(student, teacher, label, beta=BETA, temperature=1.0)


def _ordinary(student: torch.Tensor, teacher: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    return kd_loss(student, teacher, temperature=1.0)

"""The picture of relational distillation: what becomes of the losses when an embedding is turned, scaled or bent."""

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor

from lightning_vision.callbacks import relational_angle_loss, relational_distance_loss

__all__ = ["draw"]


def draw() -> Figure:
    """Sixty digits on their first two principal axes: as the teacher has them, and as four students have."""
    digits = load_digits(n_class=4)
    points = torch.tensor(digits.data).float()
    points = points - points.mean(dim=0)
    teacher = (points @ torch.linalg.svd(points, full_matrices=False).Vh[:2].T)[:60] / 20
    turn = torch.tensor([[0.8, 0.6], [-0.6, 0.8]])
    noise = torch.randn(teacher.shape, generator=torch.Generator().manual_seed(0))
    students: dict[str, Tensor] = {
        "the teacher": teacher,
        "turned, twice as large": 2 * teacher @ turn,
        "stretched": teacher * torch.tensor([1.6, 0.4]),
        "bent": torch.stack([teacher[:, 0], teacher[:, 1] + teacher[:, 0] ** 2], dim=1),
        "disturbed": teacher + 0.8 * noise,
    }
    figure = Figure(figsize=(12, 3))
    for axes, (name, student) in zip(figure.subplots(1, 5), students.items(), strict=True):
        axes.scatter(student[:, 0], student[:, 1], c=digits.target[:60], cmap="tab10", vmax=9, s=12)
        distances, angles = (loss(student, teacher) for loss in (relational_distance_loss, relational_angle_loss))
        axes.set(title=name, xlabel=f"distances {distances:.3f}\nangles {angles:.3f}", xticks=[], yticks=[])
        axes.set_aspect("equal", adjustable="datalim")
    figure.tight_layout()
    return figure

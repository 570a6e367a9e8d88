"""The picture of UnusedParametersCheck: the gradients of each layer's weight over the first steps."""

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from ._trained_digits import digits

__all__ = ["draw"]

STEPS = 5


class Branches(nn.Module):
    """A network with a branch behind a factor that starts at zero, one that is never called, and one times zero."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(64, 32), nn.Linear(32, 10)
        self.late, self.gate = nn.Linear(64, 32), nn.Parameter(torch.zeros(()))
        self.spare, self.dead = nn.Linear(64, 32), nn.Linear(64, 32)

    def forward(self, image: Tensor) -> Tensor:
        rows = self.stem(image) + self.gate * self.late(image) + 0 * self.dead(image)
        logits: Tensor = self.head(rows.relu())
        return logits


def draw() -> Figure:
    """A row a parameter, a column a step: how large its gradient is, and what the check says of it."""
    norms, names = _gradients()
    figure = Figure(figsize=(8.2, 4.2), layout="constrained")
    axes = figure.subplots()
    shown = norms.clamp_min(1e-6).log10()
    picture = axes.imshow(shown.masked_fill(~(norms > 0), torch.nan), cmap="viridis", aspect="auto")
    for row in range(len(names)):
        for step in range(STEPS):
            text = "none" if norms[row, step] < 0 else "0" if norms[row, step] == 0 else ""
            axes.text(step, row, text, ha="center", va="center", color="tab:red", fontsize=10)
        wrong = bool((norms[row] <= 0).all())
        said = ("no gradient" if norms[row, 0] < 0 else "always zero") if wrong else ""
        axes.text(STEPS - 0.4, row, said, va="center", color="tab:red", fontsize=10)

    axes.set(xlabel="optimizer step", xticks=range(STEPS), xticklabels=range(1, STEPS + 1))
    axes.set_yticks(range(len(names)), names)
    axes.spines[:].set_visible(False)
    figure.colorbar(picture, ax=axes, label="log10 of the gradient's norm", pad=0.16)
    return figure


def _gradients() -> tuple[Tensor, list[str]]:
    """Norms `(parameters, steps)`, -1 where there is none, and names."""
    images, labels = digits()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Branches()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        columns = []
        for step in range(STEPS):
            batch = slice(64 * step, 64 * (step + 1))
            optimizer.zero_grad()
            F.cross_entropy(network(images[batch].flatten(1)), labels[batch]).backward()
            optimizer.step()
            columns.append([-1.0 if it.grad is None else float(it.grad.norm()) for it in network.parameters()])
    return torch.tensor(columns).T, [name for name, _ in network.named_parameters()]

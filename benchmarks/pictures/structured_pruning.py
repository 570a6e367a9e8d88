"""The picture of StructuredPruning: which channels a knapsack keeps at half of the operations, and what it gives up."""

import timm
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import lightning_vision.backbones  # noqa: F401  (registers the networks)
from lightning_vision.callbacks.pruning._choice import channel_importance, channels_to_cut
from lightning_vision.callbacks.pruning._costs import flop_costs
from lightning_vision.callbacks.pruning._groups import channel_groups

__all__ = ["draw"]

BUDGETS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def draw() -> Figure:
    """Channels of ResNet-20 after forty steps on digits, kept and cut; importance left at each budget."""
    network, images = _trained()
    groups = channel_groups(network, images)
    weights = dict(network.named_parameters())
    gradients = {name: it.grad for name, it in weights.items() if it.grad is not None}
    importance = [channel_importance(group, weights, gradients) for group in groups]
    costs = flop_costs(network, groups, images[:1])

    def kept(budget: float, ranked: list[torch.Tensor]) -> float:
        gone = channels_to_cut(groups, ranked, costs, budget)
        left = sum(float(it.sum() - it[gone[group]].sum()) for group, it in zip(groups, importance, strict=True))
        return left / sum(float(it.sum()) for it in importance)

    figure = Figure(figsize=(10, 3.4))
    layers, curve = figure.subplots(1, 2, width_ratios=(1.7, 1))
    gone = channels_to_cut(groups, importance, costs, 0.5)
    for column, (group, values) in enumerate(zip(groups, importance, strict=True)):
        order = values.argsort(descending=True).tolist()
        colours = ["C3" if channel in gone[group] else "C0" for channel in order]
        places = torch.linspace(-0.38, 0.38, group.size) + column
        layers.scatter(places, values[order].clamp(min=1e-6), s=7, c=colours)
    layers.set(yscale="log", ylabel="importance", xticks=range(len(groups)))
    layers.set_xticklabels([group.name.removeprefix("stages.").removesuffix(".conv1") for group in groups])
    layers.set_xlabel("stage.unit: channels between its two convolutions; red: cut at half of the FLOPs")
    alike = [torch.ones_like(it) for it in importance]
    curve.plot(BUDGETS, [kept(budget, importance) for budget in BUDGETS], "C0o-", label="by importance and cost")
    curve.plot(BUDGETS, [kept(budget, alike) for budget in BUDGETS], "0.6", marker="o", label="by cost alone")
    curve.set(xlabel="budget, fraction of the FLOPs", ylabel="importance kept", ylim=(0, 1.03))
    curve.legend(frameon=False, loc="lower right")
    for axes in (layers, curve):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


def _trained() -> tuple[torch.nn.Module, torch.Tensor]:
    """The network after forty steps, with the gradients of 256 digits, and two of them."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(digits.target)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        network = timm.create_model("resnet20_cifar", num_classes=10, in_chans=1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for step in range(40):
        batch = slice(32 * step, 32 * step + 32)
        optimizer.zero_grad()
        F.cross_entropy(network(images[batch]), labels[batch]).backward()
        optimizer.step()
    optimizer.zero_grad()
    F.cross_entropy(network(images[:256]), labels[:256]).backward()
    return network, images[:2]

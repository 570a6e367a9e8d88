"""What a mask of drop paths costs an answer, and whether the mean over many masks is the answer without them.

ResNet-20 learns 60 steps on digits with drop paths of final probability 0.2; then its drop paths alone are put into
training mode, with other probabilities, for the 359 test digits.
"""

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from lightning_vision.backbones import create
from lightning_vision.callbacks.schedules.scheduled_drop_path import depth_shares, drop_probabilities
from lightning_vision.datamodules import Digits

__all__ = ["FINALS", "blocks"]

FINALS = (0.1, 0.2, 0.4)


def blocks(quick: bool) -> dict[str, str]:
    """One table, a row for each final probability.

    Args:
        quick: Two steps, two masks.
    """
    network, steps, masks = _network(), 2 if quick else 60, 2 if quick else 64
    train, test = _digits("train"), _digits("test")
    _learn(network, train, steps)
    lines = [
        "| final probability | one mask: distance | accuracy | mean of masks: distance | accuracy | none: accuracy |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    images, labels = test
    with torch.no_grad():
        plain = network.eval()(images)
        for final in FINALS:
            _schedule(network, final)
            answers = torch.stack([network(images) for _ in range(masks)])
            single = torch.stack([_distance(it, plain) for it in answers]).mean()
            cells = [single, _right(answers[0], labels), _distance(answers.mean(0), plain)]
            cells += [_right(answers.mean(0), labels), _right(plain, labels)]
            lines.append(f"| {final:g} | {' | '.join(f'{100 * float(it):.1f}%' for it in cells)} |")
    note = (
        f"Distance of the logits from those without masks, over their norm; {masks} masks, {len(labels)} test digits, "
        f"after {steps} steps of 60 digits"
    )
    return {"study_drop_path": "\n".join(lines) + f"\n\n{note}"}


def _network() -> nn.Module:
    torch.manual_seed(0)
    return create("resnet20_cifar", num_classes=10, in_channels=1, drop_path_rate=0.2)


def _digits(split: str) -> tuple[Tensor, Tensor]:
    data = Digits(batch_size=10_000)
    (batch,) = getattr(data, f"{split}_dataloader")()
    images, labels = data.on_after_batch_transfer(batch, 0)
    return images, labels


def _learn(network: nn.Module, digits: tuple[Tensor, Tensor], steps: int) -> None:
    images, labels = digits
    optimizer = torch.optim.Adam(network.train().parameters(), lr=1e-3)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).repeat(4)
    for chosen in order.split(60)[:steps]:
        optimizer.zero_grad()
        F.cross_entropy(network(images[chosen]), labels[chosen]).backward()  # type: ignore[no-untyped-call]  # torch's
        optimizer.step()


def _schedule(network: nn.Module, final: float) -> None:
    """The probabilities that `ScheduledDropPath` sets for the last step, in drop paths that alone are training."""
    for name, share in depth_shares(drop_probabilities(network)).items():
        layer = network.get_submodule(name.rpartition(".")[0])
        assert isinstance(layer, DropPath)
        layer.train().drop_prob = final * share


def _distance(logits: Tensor, plain: Tensor) -> Tensor:
    return (logits - plain).norm() / plain.norm()


def _right(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(1) == labels).float().mean()

"""Training a copy of a module's features with a linear classifier behind them, the module left as it is.

Nothing is copied but tensors: the module's own code computes with them in the place of its own (`call_with`), so there
is no second module, and what hangs on the first (hooks, a Trainer) is not touched.
"""

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Generator, Tensor, nn

from ..hooks._lent import call_with

__all__ = ["Tuned", "fine_tuned", "from_scratch", "own_tensors"]

# Deviation of what no layer knows how to draw, such as tokens and positions of transformers; and of a new classifier.
SMALL, START = 0.02, 0.01


class Features(nn.Module):
    """A module's `features` as a forward."""

    def __init__(self, pl_module: LightningModule) -> None:
        super().__init__()
        self.module = pl_module

    def forward(self, image: Tensor) -> Any:
        return self.module.features(image)  # type: ignore[operator]  # the seam asks for it at set-up


@dataclass(frozen=True)
class Tuned:
    """A trained copy: its tensors by name, below `Features`, and the classifier, weight `(D, K)` and bias `(K,)`."""

    tensors: dict[str, Tensor]
    weight: Tensor
    bias: Tensor

    @torch.no_grad()
    def classes(self, pl_module: LightningModule, image: Tensor) -> Tensor:
        """The class of each image, int64 `(B,)`; the module is in evaluation mode."""
        features = call_with(Features(pl_module), self.tensors, (image.float(),))
        found: Tensor = (features.float() @ self.weight + self.bias).argmax(1)
        return found


def own_tensors(pl_module: LightningModule) -> dict[str, Tensor]:
    """Copies of all parameters and buffers by name, below `Features`; floating ones in float32."""
    whole = Features(pl_module)
    named = [*whole.named_parameters(), *whole.named_buffers()]
    return {name: it.detach().float().clone() if it.is_floating_point() else it.detach().clone() for name, it in named}


def from_scratch(pl_module: LightningModule) -> dict[str, Tensor]:
    """The same tensors as if nothing had been learned, drawn from torch's global stream.

    A layer's own are drawn by its `reset_parameters`. What belongs to none such, tokens and positions for example, is
    normal with a standard deviation of 0.02; in one dimension biases become 0 and scales 1.
    """
    found: dict[str, Tensor] = {}
    known = own_tensors(pl_module)
    for path, layer in Features(pl_module).named_modules():
        own = {f"{path}.{key}": key for key in (*layer._parameters, *layer._buffers) if f"{path}.{key}" in known}
        if not own:
            continue
        # timm's batch norms have children, an activation for one, without tensors.
        alone = not any(True for child in layer.children() for _ in (*child.parameters(), *child.buffers()))
        if alone and callable(getattr(layer, "reset_parameters", None)):
            # A shallow copy with tensors of its own, on the CPU, where draws are the same on any machine.
            fresh: Any = copy(layer)
            for kind in ("_parameters", "_buffers"):
                given = getattr(layer, kind)
                values = {key: None if it is None else it.detach().to("cpu", copy=True) for key, it in given.items()}
                if kind == "_parameters":
                    values = {key: None if it is None else nn.Parameter(it, False) for key, it in values.items()}
                fresh.__dict__[kind] = values
            fresh.reset_parameters()
            found |= {name: getattr(fresh, key).detach().to(known[name]) for name, key in own.items()}
            continue
        for name, key in own.items():
            if key in layer._buffers:
                continue
            if known[name].ndim > 1:
                found[name] = SMALL * torch.randn(known[name].shape, dtype=torch.float32).to(known[name])
            else:
                found[name] = torch.full_like(known[name], 0.0 if key.endswith("bias") else 1.0)
    return known | found


def fine_tuned(
    owner: str,
    pl_module: LightningModule,
    tensors: dict[str, Tensor],
    images: Tensor,
    labels: Tensor,
    classes: int,
    rate: float,
    batches: Sequence[Tensor],
    random: Generator,
) -> Tuned:
    """Train all of `features` and a new linear classifier by SGD with Nesterov momentum, the rate falling by a cosine.

    Step t of T uses `rate * (1 + cos(pi t / T)) / 2`, momentum 0.9 and no weight decay. Batch norm measures and
    dropout draws as in training.

    Args:
        owner: Who speaks in a refusal.
        pl_module: In training mode; whose code computes.
        tensors: What it begins with, as `own_tensors` gives them; they are written to.
        images: `(N, C, H, W)`.
        labels: Classes, int64 `(N,)`.
        classes: K.
        rate: Learning rate of the first step.
        batches: Positions in `images` for each of the T steps.
        random: Draws the classifier.

    Raises:
        ValueError: `features` gives no gradient, or no row of numbers an image.
    """
    whole, kind = Features(pl_module), type(pl_module).__name__
    names = {name for name, _ in whole.named_parameters()}
    trained = [it.requires_grad_() for name, it in tensors.items() if name in names and it.is_floating_point()]
    head: list[Tensor] = []
    used: set[int] = set()
    optimizer = torch.optim.SGD(trained, lr=rate, momentum=0.9, nesterov=True)
    for step, batch in enumerate(batches):
        batch = batch.to(images.device)
        features: Any = call_with(whole, tensors, (images[batch].float(),))
        if not isinstance(features, Tensor) or features.ndim != 2 or not features.requires_grad:
            raise ValueError(
                f"{owner}: features of {kind} gives no (B, D) with a gradient, so it cannot be fine-tuned; let it "
                "compute without torch.no_grad and return pooled features."
            )
        if not head:
            start = torch.randn(features.shape[1], classes, generator=random, dtype=torch.float32)
            head = [(START * start).to(images.device), torch.zeros(classes, device=images.device, dtype=torch.float32)]
            optimizer.add_param_group({"params": [it.requires_grad_() for it in head]})
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 + math.cos(math.pi * step / len(batches))) / 2
        optimizer.zero_grad()
        F.cross_entropy(features.float() @ head[0] + head[1], labels[batch]).backward()
        # In any step: a layer that is dropped in the last one was trained before.
        used |= {id(it) for it in trained if it.grad is not None}
        optimizer.step()
    kept = {name: it for name, it in tensors.items() if name not in names or id(it) in used}
    return Tuned({name: it.detach() for name, it in kept.items()}, head[0].detach(), head[1].detach())

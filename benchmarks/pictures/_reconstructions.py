"""What the pictures of MAE and SimMIM share: a short training on scikit-learn's digits, and images before and after."""

from collections.abc import Callable
from typing import Any

import torch
from matplotlib.figure import Figure

from lightning_vision.self_supervised.masked import MaskedLearner

from ._trained_digits import digits, rows_of

__all__ = ["reconstructions"]

# A small transformer for images of 8 pixels, in patches of 2.
NETWORK: dict[str, Any] = {
    "backbone": "vit_tiny_patch16_224",
    "in_channels": 1,
    "image_size": 8,
    "backbone_settings": {"patch_size": 2, "embed_dim": 48, "depth": 2, "num_heads": 3, "weight_init": "moco"},
}
SHOWN = 9


def reconstructions(kind: Callable[..., MaskedLearner], steps: int, **settings: Any) -> Figure:
    """Rows of digits that were never trained on: whole, what is seen of them, and with what is hidden as predicted.

    Args:
        kind: The learner's class.
        steps: Of training, on 64 digits each.
        **settings: Further arguments of the learner.
    """
    images = 2 * digits()[0] - 1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        learner = kind(**(NETWORK | settings))
        adam = torch.optim.AdamW([it for it in learner.parameters() if it.requires_grad], 3e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(adam, 3e-3, steps)
        for _ in range(steps):
            batch = images[torch.randint(100, len(images), (64,))]
            adam.zero_grad()
            learner.losses(batch, torch.rand(64, learner.draws))["loss"].backward()
            adam.step()
            schedule.step()
        learner.eval()
        shown = images[:SHOWN]
        mask = learner.mask(torch.rand(SHOWN, learner.draws))
    seen = shown.masked_fill(learner.hidden_pixels(mask), 0)
    made = learner.reconstruct(shown, mask).clamp(-1, 1)
    rows = zip(("image", "visible", "reconstruction"), (shown, seen, made), strict=True)
    return rows_of([(name, (it + 1) / 2, [""] * SHOWN) for name, it in rows])
